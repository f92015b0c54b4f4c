//! Interrupts and the serial port.

use skiff_tests::machine::{Machine, Transport};
use skiff_tests::pattern;

use crate::on_both;

on_both!(devices_interrupt);

#[test]
fn the_timer_fires() {
    Machine::guest("timer").run().passed(&["timer"]);
}

#[test]
fn the_serial_port_has_its_registers() {
    Machine::guest("serial").run().passed(&["serial"]);
}

#[test]
fn the_serial_port_takes_input() {
    let ended = Machine::guest("serial-echo").answer("say something", "one two\n").run();
    assert_eq!(ended.passed(&["serial-echo"]).said("echo"), "ONE TWO");
}

#[test]
fn the_serial_port_takes_more_input_than_it_can_hold() {
    let long = "0123456789".repeat(100);
    let ended = Machine::guest("serial-echo").answer("say something", &format!("{long}\n")).run();
    assert_eq!(ended.passed(&["serial-echo"]).said("echo"), long);
}

#[test]
fn the_serial_port_interrupts() {
    let ended = Machine::guest("serial-irq").answer("say something", "one two\n").run();
    assert_eq!(ended.passed(&["serial-irq"]).said("echo"), "one two");
}

#[test]
fn serial_output_is_whole_and_in_order() {
    let ended = Machine::guest("serial-flood").run();
    ended.passed(&["serial-flood"]);
    let lines: Vec<String> = ended.all("line").map(str::to_owned).collect();
    assert_eq!(lines, (0..200).map(|line| line.to_string()).collect::<Vec<_>>());
}

#[test]
fn serial_output_goes_where_it_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let ended = Machine::guest("serial-flood").serial(format!("file={}", log.display())).run();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{ended:#?}");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("line 199\n") && text.ends_with("done\n"), "{text}");

    let ended = Machine::guest("serial-flood").serial("null").run();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""), "{ended:#?}");
}

fn devices_interrupt(transport: Transport) {
    let directory = tempfile::tempdir().unwrap();
    let disks = ["one", "two"].map(|name| directory.path().join(name));
    let tests = if transport == Transport::Pci { "virtio-irq,msix" } else { "virtio-irq" };
    let mut machine = Machine::guest(tests).transport(transport);
    for disk in &disks {
        pattern::make(disk, 4096).unwrap();
        machine = machine.disk(format!("path={}", disk.display()));
    }
    machine.run().passed(&tests.split(',').collect::<Vec<_>>());
}
