//! Snapshots, rollbacks and restores by the hundred leave nothing behind in their process and in their store. A program of its own, for
//! what it holds is counted. Without a usable /dev/kvm it says so and passes.

#[path = "control/guests.rs"]
#[expect(dead_code, reason = "other programs use the rest")]
mod guests;

use std::fs::File;
use std::path::Path;

use guests::Code;
use vmm::control::{Vm, VmAction, VmReply};
use vmm::machine::{Home, Setup, start};
use vmm::snapshot::{Id, Places};
use vmm::spec::{DiskSpec, Memory, MemorySpec, Stream, Transport, VmSpec};

/// What may be more after very many cycles than after a few, in KiB: what allocators keep.
const SLACK_KIB: u64 = 8 << 10;

/// What this process and the store hold.
#[derive(Debug, PartialEq)]
struct Held {
    files: usize,
    threads: usize,
    layers: usize,
}

impl Held {
    fn now(dir: &Path) -> Self {
        let count = |path: &Path| std::fs::read_dir(path).unwrap().count();
        let own = |what: &str| count(&Path::new("/proc/self").join(what));
        Self { files: own("fd"), threads: own("task"), layers: count(&dir.join("data/layers")) }
    }
}

/// Memory of this process's own, in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
}

fn vm(dir: &Path, kernel: &Path, name: &str, from: Option<Id>) -> Vm {
    let spec = VmSpec {
        kernel: kernel.to_owned(),
        initrd: None,
        cmdline: String::new(),
        cpus: 2,
        memory: MemorySpec { size: Memory(64 << 20), hugepages: false, overcommit: false },
        transport: Transport::Pci,
        serial: Stream::Null,
        console: Stream::Null,
        disks: vec![DiskSpec { layers: Some(true), ..DiskSpec::new(dir.join("disk")) }],
        nets: Vec::new(),
        ports: Vec::new(),
        vsock: None,
        folders: Vec::new(),
        cpu_template: None,
        balloon: true,
    };
    let home = Home {
        places: Places::new(dir.join("data")),
        record: dir.join(format!("{name}.json")),
        passing: false,
    };
    let listener = Box::new(|_| {});
    let setup =
        Setup { name: name.to_owned(), stdout: None, log: None, dir: None, home: Some(home), from, listener };
    start(spec, setup).unwrap()
}

fn roll_back(vm: &Vm, snapshot: Id) {
    let reply = vm.controller().act(VmAction::Rollback { snapshot });
    assert!(matches!(reply, VmReply::RolledBack { .. }), "{reply:?}");
}

/// How long memory and threads that are given back behind a rollback's back may take, at most.
fn settled(dir: &Path, wanted: &Held) -> Held {
    for _ in 0..1000 {
        if Held::now(dir) == *wanted {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Held::now(dir)
}

#[test]
fn hundreds_of_cycles_leave_nothing_behind() {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("skipped: /dev/kvm: {error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_code, kernel) = Code::default().count(0x20_0000, 0x80).touch(0x30_0000, 64).again().file();
    std::fs::write(dir.path().join("disk"), [7; 1 << 16]).unwrap();
    let first = vm(dir.path(), &kernel, "first", None);
    let snapshot = |name: String| {
        let id = Id::draw().unwrap();
        let reply = first.controller().act(VmAction::Snapshot { id, name, comment: String::new() });
        assert!(matches!(reply, VmReply::Snapshot { .. }), "{reply:?}");
        id
    };
    let ids = [snapshot("a".to_owned()), snapshot("b".to_owned())];
    let cycle = |times: usize| {
        for at in 0..times {
            roll_back(&first, ids[at % ids.len()]);
            if at % 10 == 0 {
                let clone = vm(dir.path(), &kernel, "clone", Some(ids[0]));
                roll_back(&clone, ids[1]);
                assert_eq!(clone.controller().act(VmAction::Kill), VmReply::Done);
                clone.wait().unwrap();
            }
        }
    };
    cycle(12);
    std::thread::sleep(std::time::Duration::from_millis(200));
    let (held, used) = (Held::now(dir.path()), memory());
    cycle(200);
    assert_eq!(settled(dir.path(), &held), held);
    let now = memory();
    assert!(now < used + SLACK_KIB, "{used} KiB have become {now} KiB");
    assert_eq!(first.controller().act(VmAction::Kill), VmReply::Done);
    first.wait().unwrap();
}
