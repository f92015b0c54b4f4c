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
        let code = Code::default().count(COUNT, SERIAL).again();
        let spec = |spec: &mut VmSpec| {
            spec.serial = Stream::File(self.output(name));
            spec.disks = vec![DiskSpec { layers: Some(true), ..DiskSpec::new(self.disk()) }];
        };
        let home = Home {
            places: Places::new(self.dir.path().join("data")),
            record: self.dir.path().join(format!("{name}.json")),
        };
        run_with(&code, spec, |setup: &mut Setup| {
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
