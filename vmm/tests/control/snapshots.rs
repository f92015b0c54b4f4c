//! Snapshots of running VMs: what is counted in memory goes on from where it was.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vmm::control::{Outcome, RunState, VmAction, VmReply};
use vmm::machine::{Home, Setup};
use vmm::snapshot::{Id, Places};
use vmm::spec::{DiskSpec, Stream, VmSpec};

use crate::guests::Code;
use crate::{Running, SERIAL, run_with};

/// Where the guest counts.
const COUNT: u32 = 0x20_0000;

/// What VMs of a test keep, and what they print.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(world.disk(), [7; 1 << 16]).unwrap();
        world
    }

    /// The base of all VMs' disks.
    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// The files of all layers.
    fn layers(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("data/layers")).unwrap().count()
    }

    /// What the VM called `name` prints.
    fn output(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The VM called `name`, from the start or from a snapshot.
    fn start(&self, name: &str, from: Option<Id>) -> Option<Running> {
        self.start_code(
            &Code::default().count(COUNT, SERIAL).again(),
            name,
            from,
            Stream::File(self.output(name)),
        )
    }

    fn start_code(&self, code: &Code, name: &str, from: Option<Id>, serial: Stream) -> Option<Running> {
        let spec = |spec: &mut VmSpec| {
            spec.serial = serial;
            spec.disks = vec![DiskSpec { layers: Some(true), ..DiskSpec::new(self.disk()) }];
        };
        let home = Home {
            places: Places::new(self.dir.path().join("data")),
            record: self.dir.path().join(format!("{name}.json")),
            passing: false,
        };
        run_with(code, spec, |setup: &mut Setup| {
            setup.home = Some(home);
            setup.from = from;
        })
    }
}

fn printed(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_default()
}

/// All that a paused guest has printed, which is written on another thread.
fn settled(path: &Path) -> Vec<u8> {
    let mut last = printed(path);
    loop {
        std::thread::sleep(Duration::from_millis(30));
        let now = printed(path);
        if now == last {
            return now;
        }
        last = now;
    }
}

/// Wait until the guest has printed more than that.
fn prints_beyond(vm: &Running, path: &Path, len: usize) {
    vm.until("the guest counts", || printed(path).len() > len + 20);
}

fn snapshot(vm: &Running, name: &str) -> Id {
    let id = Id::draw().unwrap();
    let action = VmAction::Snapshot { id, name: name.to_owned(), comment: String::new() };
    match vm.act(action) {
        VmReply::Snapshot { .. } => id,
        other => panic!("{other:?}"),
    }
}

fn roll_back(vm: &Running, snapshot: Id) {
    let reply = vm.act(VmAction::Rollback { snapshot });
    assert!(matches!(reply, VmReply::RolledBack { .. }), "{reply:?}");
}

/// The guest counts by one, from what it printed last.
fn counts(printed: &[u8]) {
    for pair in printed.windows(2) {
        assert_eq!(pair[1], pair[0].wrapping_add(1));
    }
}

#[test]
fn a_guest_that_panicked_is_kept_where_it_is_if_that_was_asked_for() {
    let world = World::new();
    // It waits for a letter, panics, and prints another.
    let code = Code::default().echo().out(0x505, 1).out(SERIAL, b'x').stay();
    let Some(vm) = world.start_code(&code, "first", None, Stream::Stdio) else { return };
    vm.done(VmAction::StopOnPanic);
    vm.controller.input(b"o");
    vm.until("it panics", || vm.act(VmAction::State) == VmReply::State(RunState::Panicked));
    assert_eq!(vm.written(), 1);
    // Asked again, nothing more happens.
    vm.done(VmAction::Pause);
    let id = snapshot(&vm, "panicked");
    assert_eq!(vm.act(VmAction::State), VmReply::State(RunState::Panicked));
    let Some(other) = world.start_code(&code, "second", Some(id), Stream::Stdio) else { return };
    // Both go on behind the panic, and tell of it no more.
    other.until("the copy prints", || other.written() == 1);
    vm.done(VmAction::Resume);
    vm.until("it goes on", || vm.written() == 2);
    for vm in [vm, other] {
        assert_eq!(vm.act(VmAction::State), VmReply::State(RunState::Running));
        vm.done(VmAction::Kill);
        assert_eq!(vm.end().0, Outcome::Killed);
    }
}

#[test]
fn a_guest_goes_on_from_a_snapshot_in_its_own_vm_and_in_others() {
    let world = World::new();
    let Some(vm) = world.start("first", None) else { return };
    let output = world.output("first");
    prints_beyond(&vm, &output, 0);
    vm.done(VmAction::Pause);
    let then = settled(&output);
    let id = snapshot(&vm, "then");
    assert_eq!(vm.act(VmAction::State), VmReply::State(RunState::Paused));
    vm.done(VmAction::Resume);
    for _ in 0..3 {
        let before = printed(&output).len();
        prints_beyond(&vm, &output, before);
        vm.done(VmAction::Pause);
        let last = settled(&output);
        roll_back(&vm, id);
        assert_eq!(vm.act(VmAction::State), VmReply::State(RunState::Running));
        prints_beyond(&vm, &output, last.len());
        let all = printed(&output);
        assert_eq!(all[last.len()], then.last().unwrap().wrapping_add(1));
        counts(&all[last.len()..]);
    }
    // The frozen one, and the top on it: those of the rollbacks are gone.
    assert_eq!(world.layers(), 2);
    let Some(other) = world.start("second", Some(id)) else { return };
    assert_eq!(world.layers(), 3);
    let output = world.output("second");
    prints_beyond(&other, &output, 0);
    let all = printed(&output);
    assert_eq!(all[0], then.last().unwrap().wrapping_add(1));
    counts(&all);
    for vm in [vm, other] {
        vm.done(VmAction::Kill);
        assert_eq!(vm.end().0, Outcome::Killed);
    }
}

#[test]
fn a_snapshot_of_a_running_guest_is_one_instant_of_it() {
    let world = World::new();
    let Some(vm) = world.start("first", None) else { return };
    let output = world.output("first");
    prints_beyond(&vm, &output, 0);
    let ids: Vec<Id> = (0..5).map(|at| snapshot(&vm, &format!("s{at}"))).collect();
    counts(&printed(&output));
    for id in ids.into_iter().rev() {
        let before = printed(&output).len();
        roll_back(&vm, id);
        prints_beyond(&vm, &output, before);
    }
    vm.done(VmAction::Kill);
}

#[test]
fn a_vm_that_ends_while_its_memory_is_saved_leaves_what_can_be_started() {
    let world = World::new();
    let Some(vm) = world.start("first", None) else { return };
    prints_beyond(&vm, &world.output("first"), 0);
    let kept = snapshot(&vm, "kept");
    let id = Id::draw().unwrap();
    let action = VmAction::Snapshot { id, name: "lost".to_owned(), comment: String::new() };
    let answer = vm.controller.request(action);
    vm.done(VmAction::Kill);
    assert_eq!(vm.end().0, Outcome::Killed);
    // It may have been in time; else nobody answers.
    drop(answer);
    for from in [Some(kept), None] {
        let again = world.start("first", from).unwrap();
        let before = printed(&world.output("first")).len();
        prints_beyond(&again, &world.output("first"), before);
        again.done(VmAction::Kill);
        assert_eq!(again.end().0, Outcome::Killed);
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_the_reason() {
    let world = World::new();
    let Some(vm) = world.start("first", None) else { return };
    let refused = |action| match vm.act(action) {
        VmReply::Refused(why) => why,
        other => panic!("{other:?}"),
    };
    let id = Id::draw().unwrap();
    let unknown = refused(VmAction::Rollback { snapshot: id });
    assert!(unknown.contains(&id.to_string()), "{unknown}");
    let kept = snapshot(&vm, "same");
    let again = VmAction::Snapshot { id, name: "same".to_owned(), comment: String::new() };
    assert!(refused(again).starts_with("the VM has a snapshot called same already"));
    // The state is cut, and nothing of the VM changes.
    let state = world.dir.path().join(format!("data/snapshots/{kept}/state"));
    let whole = std::fs::read(&state).unwrap();
    std::fs::write(&state, &whole[..whole.len() / 2]).unwrap();
    let cut = refused(VmAction::Rollback { snapshot: kept });
    assert!(cut.contains("state"), "{cut}");
    assert_eq!(vm.act(VmAction::State), VmReply::State(RunState::Running));
    std::fs::write(&state, whole).unwrap();
    roll_back(&vm, kept);
    vm.done(VmAction::Kill);

    let code = Code::default().count(COUNT, SERIAL).again();
    let path = world.disk();
    let Some(vm) = run_with(&code, |spec| spec.disks = vec![DiskSpec::new(path)], |_| {}) else { return };
    let action = VmAction::Snapshot { id, name: "no".to_owned(), comment: String::new() };
    match vm.act(action) {
        VmReply::Refused(why) => assert!(why.starts_with("this VM keeps no snapshots"), "{why}"),
        other => panic!("{other:?}"),
    }
}

/// What is left away here every x86-64 processor has.
#[test]
fn a_cpu_template_goes_with_the_vm_and_its_snapshots() {
    let world = World::new();
    let template =
        || toml::from_str("without = [\"sse2\"]\n[[msr]]\nindex = 0x277\nbits = \"0b0\"\n").unwrap();
    let code = Code::default().count(COUNT, SERIAL).again();
    let start = |from| {
        let spec = |spec: &mut VmSpec| {
            spec.serial = Stream::File(world.output("masked"));
            spec.cpu_template = Some(template());
        };
        run_with(&code, spec, |setup: &mut Setup| {
            let record = world.dir.path().join("masked.json");
            setup.home =
                Some(Home { places: Places::new(world.dir.path().join("data")), record, passing: false });
            setup.from = from;
        })
    };
    let Some(vm) = start(None) else { return };
    prints_beyond(&vm, &world.output("masked"), 0);
    let id = snapshot(&vm, "masked");
    vm.done(VmAction::Kill);
    assert_eq!(vm.end().0, Outcome::Killed);
    let dir = world.dir.path().join(format!("data/snapshots/{id}"));
    let manifest = std::fs::read_to_string(dir.join("manifest.json")).unwrap();
    assert!(manifest.contains("[cpu-template]") && manifest.contains("sse2"), "{manifest}");
    let before = printed(&world.output("masked")).len();
    let again = start(Some(id)).unwrap();
    prints_beyond(&again, &world.output("masked"), before);
    again.done(VmAction::Kill);
}
