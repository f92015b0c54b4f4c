//! virtio-blk, with the data checked on the host.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use skiff_tests::machine::{Machine, Transport, guest};
use skiff_tests::pattern;
use tempfile::TempDir;
use vmm::control::{Outcome, Vm, VmAction, VmReply};
use vmm::machine::Setup;
use vmm::spec::{self, DiskSpec, Memory, MemorySpec, Stream, VmSpec};

use crate::on_both;

on_both!(
    data_goes_both_ways,
    data_goes_both_ways_without_io_uring,
    data_goes_both_ways_past_the_page_cache,
    large_requests_arrive_whole,
    sectors_are_discarded_and_zeroed,
    a_readonly_disk_stays_as_it_is,
    every_queue_works,
    impossible_requests_end_with_an_error,
    a_host_without_room_is_an_error_of_the_write,
    a_limited_disk_keeps_to_its_limit,
    a_disk_grows_under_its_guest,
);

const SECTORS: u64 = 8192;

fn disk(name: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    pattern::make(&path, SECTORS).unwrap();
    (directory, path)
}

fn run(test: &str, transport: Transport, path: &Path, options: &str) -> skiff_tests::machine::Ended {
    let disk = format!("path={}{options}", path.display());
    let ended = Machine::guest(test).transport(transport).disk(disk).run();
    ended.passed(&[test]);
    ended
}

fn contents(transport: Transport, options: &str) {
    let (_directory, path) = disk("disk");
    let ended = run("block", transport, &path, &format!(",serial=ABC-123{options}"));
    assert_eq!(ended.said("serial"), "ABC-123");
    assert!(ended.said("disk").ends_with(&format!("sectors {SECTORS}")), "{ended:#?}");
    assert!(pattern::is_written(&path, 64, 64).unwrap(), "the guest's sectors are not in the file");
    let first: Vec<u8> = (0..64).flat_map(pattern::sector).collect();
    assert_eq!(pattern::read(&path, 0, 64).unwrap(), first, "sectors that were only read have changed");
    assert!(pattern::read(&path, 128, 128).unwrap().iter().all(|&byte| byte == 0xee), "others have changed");
}

fn data_goes_both_ways(transport: Transport) {
    contents(transport, "");
}

fn data_goes_both_ways_without_io_uring(transport: Transport) {
    contents(transport, ",io=plain");
}

fn data_goes_both_ways_past_the_page_cache(transport: Transport) {
    // The guest's buffers are wherever its compiler put them, at any alignment.
    contents(transport, ",direct=on");
    contents(transport, ",direct=on,io=plain");
}

fn large_requests_arrive_whole(transport: Transport) {
    for options in ["", ",io=plain"] {
        let (_directory, path) = disk("disk");
        run("block-large", transport, &path, options);
    }
}

fn sectors_are_discarded_and_zeroed(transport: Transport) {
    for options in ["", ",io=plain"] {
        let (_directory, path) = disk("disk");
        let ended = run("block-discard", transport, &path, options);
        assert_eq!(ended.said("discard"), "true write-zeroes true");
        let zeroed = pattern::read(&path, 192, 32).unwrap();
        assert!(zeroed.iter().all(|&byte| byte == 0), "not all is zero that was to be");
        // What is discarded may keep its contents; what is not must.
        for (first, count) in [(64, 64), (160, 32), (224, 32)] {
            let kept = pattern::read(&path, first, count).unwrap();
            assert!(kept.iter().all(|&byte| byte == 0xee), "sectors at {first} have changed");
        }
    }
}

fn a_readonly_disk_stays_as_it_is(transport: Transport) {
    let (_directory, path) = disk("disk");
    let before = std::fs::read(&path).unwrap();
    run("block-readonly", transport, &path, ",readonly=on");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

fn every_queue_works(transport: Transport) {
    for queues in [1, 4] {
        let (_directory, path) = disk("disk");
        let ended = run("block-queues", transport, &path, &format!(",queues={queues}"));
        assert_eq!(ended.said("queues"), queues.to_string());
    }
}

fn impossible_requests_end_with_an_error(transport: Transport) {
    let (_directory, path) = disk("disk");
    run("block-errors", transport, &path, "");
}

fn a_host_without_room_is_an_error_of_the_write(transport: Transport) {
    for options in ["", ",io=plain"] {
        let (directory, path) = disk("disk");
        let log = directory.path().join("log");
        let machine = Machine::guest("block-full").cmdline("full=4096").file_size(4096 * 512);
        let machine = machine.transport(transport).disk(format!("path={}{options}", path.display()));
        machine.flag("--log-file", &log).run().passed(&["block-full"]);
        let log = std::fs::read_to_string(&log).unwrap();
        let failed = format!("a write on {} failed: File too large", path.display());
        let lines = log.lines().filter(|line| line.contains(&failed)).count();
        assert!((1..100).contains(&lines), "the host is told, and not at the guest's pace: {log}");
    }
}

fn a_limited_disk_keeps_to_its_limit(transport: Transport) {
    for options in ["", ",io=plain"] {
        let (_directory, path) = disk("disk");
        let ended = run("block-throttled", transport, &path, &format!(",ops=10{options}"));
        let took: u64 = ended.said("took-ms").parse().unwrap();
        assert!(took >= 150, "two of twelve reads had to wait for a tenth of a second each: {ended:#?}");
    }
}

fn a_disk_grows_under_its_guest(transport: Transport) {
    let (directory, path) = disk("disk");
    let serial = directory.path().join("serial");
    let vm = in_this_process("block-grow", transport, &path, &serial);
    let said = |what: &str| std::fs::read_to_string(&serial).unwrap_or_default().contains(what);
    let start = Instant::now();
    while !said("larger-than 8192\n") {
        assert!(start.elapsed() < Duration::from_secs(60), "the guest does not wait");
        std::thread::sleep(Duration::from_millis(5));
    }
    let VmReply::Stats(stats) = vm.controller().act(VmAction::Stats) else { panic!("no statistics") };
    let ids: Vec<&str> = stats.devices.iter().map(|device| device.id.as_str()).collect();
    assert!(ids.starts_with(&["disk0"]) && ids.contains(&"rng0"), "{ids:?}");
    assert!(stats.devices[0].requests > 0, "{stats:?}");
    let resize = |disk: &str, size| vm.controller().act(VmAction::ResizeDisk { disk: disk.to_owned(), size });
    let refused = |reply| matches!(reply, VmReply::Refused(why) if !why.is_empty());
    assert!(refused(resize("disk1", 10_000 * 512)));
    assert!(refused(resize("disk0", 8000 * 512)));
    assert_eq!(resize("disk0", 10_000 * 512), VmReply::Done);
    assert_eq!(vm.wait().unwrap(), Outcome::PoweredOff);
    assert!(said("sectors 10000\n") && said("ok block-grow"), "{:?}", std::fs::read_to_string(&serial));
    assert_eq!(path.metadata().unwrap().len(), 10_000 * 512);
    assert!(pattern::is_written(&path, 8192, 1).unwrap(), "the new sector is not in the file");
}

/// A machine whose serial port leads to a file.
fn in_this_process(test: &str, transport: Transport, disk: &Path, serial: &Path) -> Vm {
    let spec = VmSpec {
        kernel: guest("testguest"),
        initrd: None,
        cmdline: format!("test={test}"),
        cpus: 1,
        memory: MemorySpec { size: Memory(64 << 20), hugepages: false, overcommit: false },
        transport: match transport {
            Transport::Pci => spec::Transport::Pci,
            Transport::Mmio => spec::Transport::Mmio,
        },
        serial: Stream::File(serial.to_owned()),
        console: Stream::Null,
        disks: vec![DiskSpec::new(disk)],
        nets: Vec::new(),
        ports: Vec::new(),
        vsock: None,
        folders: Vec::new(),
        cpu_template: None,
        balloon: false,
    };
    let listener: vmm::notice::Listener = Box::new(|_| {});
    let setup =
        Setup { name: test.to_owned(), stdout: None, log: None, dir: None, home: None, from: None, listener };
    vmm::machine::start(spec, setup).unwrap()
}

#[test]
fn two_machines_never_write_one_disk() {
    let (_directory, path) = disk("disk");
    let machine = Machine::guest("hang").disk(format!("path={}", path.display()));
    let mut first = machine.start();
    first.wait_for("hanging");
    let second = machine.run();
    assert_eq!(second.code, Some(1), "{second:#?}");
    assert!(second.stderr.contains(&path.display().to_string()), "the disk is not named: {second:#?}");
}

#[test]
fn a_disk_is_free_when_its_machine_has_ended() {
    let (_directory, path) = disk("disk");
    let machine = Machine::guest("").disk(format!("path={}", path.display()));
    for end in ["done", "killed"] {
        let busy = machine.clone().kernel("ioguest");
        if end == "done" {
            let ended = busy.cmdline("ms=50 jobs=randread:4096:32,randwrite:4096:32").run();
            assert_eq!(ended.code, Some(0), "{ended:#?}");
            assert_eq!(ended.all("result").count(), 2, "{ended:#?}");
        } else {
            let mut running = busy.cmdline("ms=60000 jobs=randread:4096:32").start();
            running.wait_for("tsc-khz");
            std::thread::sleep(std::time::Duration::from_millis(20));
            // Dropped: killed, with requests under way.
        }
        let ended = machine.clone().kernel("hello").run();
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "H"), "{end}: {ended:#?}");
    }
}
