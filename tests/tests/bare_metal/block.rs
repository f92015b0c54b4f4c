//! virtio-blk, with the data checked on the host.

use std::path::{Path, PathBuf};

use skiff_tests::machine::{Machine, Transport};
use skiff_tests::pattern;
use tempfile::TempDir;

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
