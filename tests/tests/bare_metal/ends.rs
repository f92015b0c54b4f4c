//! The ways in which a machine ends, or begins again.

use std::time::{Duration, Instant};

use skiff_tests::machine::{Machine, Transport};
use skiff_tests::pattern;

use crate::on_both;

on_both!(a_reset_boots_again_in_place, many_resets_cost_the_host_nothing);

#[test]
fn power_off_ends_with_success() {
    for cpus in [1, 2] {
        let ended = Machine::guest("cmdline").cpus(cpus).run();
        assert_eq!(ended.passed(&["cmdline"]).stderr, "");
    }
}

fn a_reset_boots_again_in_place(transport: Transport) {
    let directory = tempfile::tempdir().unwrap();
    for how in ["acpi", "keyboard", "chipset", "triple"] {
        let disk = directory.path().join(how);
        std::fs::write(&disk, [0; 64 * pattern::SECTOR]).unwrap();
        let machine = Machine::guest("reboot").cmdline(&format!("how={how}")).transport(transport).cpus(2);
        let ended = machine.disk(format!("path={}", disk.display())).run();
        ended.passed(&["reboot"]);
        assert!(ended.stdout.starts_with("first boot\nsecond boot\n"), "{how}: {ended:#?}");
        assert_eq!(std::fs::read(&disk).unwrap()[0], 2, "{how}: {ended:#?}");
    }
}

/// What a machine that was reset so often holds of the host: open files and threads.
fn held(transport: Transport, resets: u32) -> [usize; 2] {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(64 * pattern::SECTOR as u64).unwrap();
    let machine = Machine::guest("reboots").cmdline(&format!("times={resets}")).transport(transport).cpus(2);
    let mut running = machine.disk(format!("path={}", disk.path().display())).start();
    running.wait_for("here to stay");
    let count = |what| std::fs::read_dir(format!("/proc/{}/{what}", running.vm())).unwrap().count();
    [count("fd"), count("task")]
}

fn many_resets_cost_the_host_nothing(transport: Transport) {
    assert_eq!(held(transport, 40), held(transport, 1));
}

#[test]
fn a_triple_fault_at_once_is_an_error() {
    let ended = Machine::guest("triple-fault").run();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), "faulting\n"), "{ended:#?}");
    assert!(ended.stderr.contains("triple fault"), "{ended:#?}");
}

#[test]
fn a_panic_has_its_own_exit_code_and_shows_the_last_lines() {
    let ended = Machine::guest("serial-flood,panic").run();
    assert_eq!(ended.code, Some(3), "{ended:#?}");
    assert!(ended.stderr.contains("line 199\n"), "{ended:#?}");
    assert!(ended.stderr.contains("Kernel panic - not syncing: as the test wants it\n"), "{ended:#?}");
}

#[test]
fn a_hanging_guest_is_ended_by_a_signal() {
    for cpus in [1, 2] {
        let mut running = Machine::guest("hang").cpus(cpus).start();
        running.wait_for("hanging");
        let asked = Instant::now();
        let pid = rustix::process::Pid::from_raw(running.pid().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let ended = running.wait();
        assert_eq!(ended.code, Some(128 + 15), "{ended:#?}");
        assert!(asked.elapsed() < Duration::from_secs(30), "{ended:#?}");
    }
}

/// Who ends a VM need not read what it prints first.
#[test]
fn a_guest_that_prints_to_a_full_pipe_is_ended_by_a_signal() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut child = Machine::guest("serial-endless").command().stdout(writer).spawn().unwrap();
    // The pipe is full when nothing more comes; how much that is, is the host's choice.
    let waiting = || rustix::io::ioctl_fionread(&reader).unwrap();
    let mut before = 0;
    while before == 0 || waiting() != before {
        before = waiting();
        std::thread::sleep(Duration::from_millis(200));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let asked = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if asked.elapsed() > Duration::from_secs(30) => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("it does not end");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert_eq!(status.code(), Some(128 + 15));
}

#[test]
fn an_instruction_that_kvm_cannot_run_is_named() {
    let ended = Machine::guest("sse-in-ring0").run();
    if ended.code == Some(0) {
        // Here it can be run.
        ended.passed(&["sse-in-ring0"]);
        return;
    }
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("66 0f ef c0"), "the instruction's bytes are missing: {ended:#?}");
}
