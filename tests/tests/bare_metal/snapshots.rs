//! Snapshots, rollback and clones of guests that look themselves whether all of their machine is at one instant.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use skiff_tests::machine::{Transport, guest};
use skiff_tests::pattern;
use vmm::control::{Vm, VmAction, VmReply};
use vmm::machine::{Home, Setup};
use vmm::snapshot::{Id, Places};
use vmm::spec::{self, DiskSpec, FolderSpec, Memory, MemorySpec, Stream, VmSpec};

use crate::on_both;

on_both!(work_goes_on_from_any_snapshot_in_any_order, clocks_are_right_after_a_while);

const PATIENCE: Duration = Duration::from_secs(60);

/// VMs that share a store, and what they print.
pub struct World {
    dir: tempfile::TempDir,
    transport: Transport,
    /// What they do.
    test: &'static str,
    /// What they share.
    pub folders: Vec<FolderSpec>,
}

/// One of them.
pub struct Machine {
    vm: Vm,
    output: PathBuf,
    test: &'static str,
}

impl World {
    fn new(transport: Transport) -> Self {
        Self::of("snapshots", transport)
    }

    pub fn of(test: &'static str, transport: Transport) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap(), transport, test, folders: Vec::new() };
        pattern::make(&world.dir.path().join("disk"), 4096).unwrap();
        world
    }

    /// The one called `name`, booted or from a snapshot.
    pub fn start(&self, name: &str, cpus: u8, from: Option<Id>) -> Machine {
        let output = self.dir.path().join(name);
        let spec = VmSpec {
            kernel: guest("testguest"),
            initrd: None,
            cmdline: format!("test={}", self.test),
            cpus,
            memory: MemorySpec { size: Memory(64 << 20), hugepages: false, overcommit: false },
            transport: match self.transport {
                Transport::Pci => spec::Transport::Pci,
                Transport::Mmio => spec::Transport::Mmio,
            },
            serial: Stream::Stdio,
            console: Stream::Null,
            disks: vec![DiskSpec { layers: Some(true), ..DiskSpec::new(self.dir.path().join("disk")) }],
            nets: Vec::new(),
            ports: Vec::new(),
            vsock: None,
            folders: self.folders.clone(),
            cpu_template: None,
            balloon: true,
        };
        let home = Home {
            places: Places::new(self.dir.path().join("data")),
            record: self.dir.path().join(format!("{name}.json")),
            passing: false,
        };
        let stdout = File::create(&output).unwrap();
        let setup = Setup {
            name: name.to_owned(),
            stdout: Some(stdout.into()),
            log: None,
            dir: None,
            home: Some(home),
            from,
            listener: Box::new(|_| {}),
        };
        Machine { vm: vmm::machine::start(spec, setup).unwrap(), output, test: self.test }
    }
}

impl Machine {
    fn text(&self) -> String {
        let text = std::fs::read_to_string(&self.output).unwrap().replace('\r', "");
        assert!(!text.contains("FAIL"), "{text}");
        text
    }

    /// How many beats it has printed in all its lives.
    fn beats(&self) -> usize {
        self.text().matches("beat").count()
    }

    /// Wait until it has printed this many more.
    pub fn goes_on(&self, beats: usize) {
        let (before, start) = (self.beats(), Instant::now());
        while self.beats() < before + beats {
            assert!(start.elapsed() < PATIENCE, "the guest stands still: {}", self.text());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn snapshot(&self, name: &str) -> Id {
        let id = Id::draw().unwrap();
        let action = VmAction::Snapshot { id, name: name.to_owned(), comment: String::new() };
        let reply = self.vm.controller().act(action);
        assert!(matches!(reply, VmReply::Snapshot { .. }), "{reply:?}");
        id
    }

    pub fn roll_back(&self, snapshot: Id) {
        let reply = self.vm.controller().act(VmAction::Rollback { snapshot });
        assert!(matches!(reply, VmReply::RolledBack { .. }), "{reply:?}");
    }

    /// See that the guest finds this wrong, and ends.
    pub fn fails(self, why: &str) {
        self.vm.wait().unwrap();
        let text = std::fs::read_to_string(&self.output).unwrap();
        assert!(text.contains(&format!("FAIL {}: {why}", self.test)), "{text}");
    }

    /// Ask the guest to end, and see that it has found nothing wrong.
    pub fn end(self) {
        let start = Instant::now();
        let controller = self.vm.controller();
        controller.input(b"q");
        while !self.text().ends_with("done\n") {
            assert!(start.elapsed() < PATIENCE, "the guest does not end: {}", self.text());
            std::thread::sleep(Duration::from_millis(2));
        }
        self.vm.wait().unwrap();
        let text = std::fs::read_to_string(&self.output).unwrap().replace('\r', "");
        assert!(text.contains(&format!("ok {}\n", self.test)) && !text.contains("FAIL"), "{text}");
    }
}

fn work_goes_on_from_any_snapshot_in_any_order(transport: Transport) {
    let world = World::new(transport);
    let first = world.start("first", 2, None);
    first.goes_on(2);
    let mut snapshots = Vec::new();
    for name in ["a", "b", "c"] {
        snapshots.push(first.snapshot(name));
        first.goes_on(2);
    }
    for at in [1, 0, 2, 2, 0] {
        first.roll_back(snapshots[at]);
        first.goes_on(2);
    }
    // A branch off the first, and clones of everything.
    snapshots.push(first.snapshot("d"));
    let clones: Vec<Machine> = snapshots
        .iter()
        .enumerate()
        .map(|(at, id)| world.start(&format!("clone{at}"), 2, Some(*id)))
        .collect();
    for clone in clones {
        clone.goes_on(2);
        let id = clone.snapshot("own");
        clone.goes_on(1);
        clone.roll_back(id);
        clone.goes_on(1);
        clone.end();
    }
    first.goes_on(2);
    first.end();
}

/// The guest compares its time stamp with the clock all the time.
fn clocks_are_right_after_a_while(transport: Transport) {
    let world = World::new(transport);
    let first = world.start("first", 2, None);
    first.goes_on(2);
    let id = first.snapshot("then");
    std::thread::sleep(Duration::from_secs(5));
    first.roll_back(id);
    let second = world.start("second", 2, Some(id));
    for machine in [first, second] {
        machine.goes_on(3);
        machine.end();
    }
}
