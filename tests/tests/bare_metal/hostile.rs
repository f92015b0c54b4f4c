//! Guests that break the rules: the host and the VM stay alive, the device asks for a reset and works after it.

use skiff_tests::machine::{Machine, Transport};
use skiff_tests::pattern;

use crate::on_both;

on_both!(malformed_chains, malformed_rings, resets_in_flight, registers_at_random);

#[test]
fn bars_in_wrong_places() {
    attack("misuse-bars", Transport::Pci);
}

#[test]
fn configuration_space_at_random() {
    attack("misuse-configuration", Transport::Pci);
}

#[test]
fn messages_to_nowhere() {
    attack("misuse-messages", Transport::Pci);
}

#[test]
fn ports_at_random() {
    attack("misuse-ports", Transport::Pci);
}

/// All devices there are: two disks, one of them with several queues, console, entropy, balloon.
fn attack(test: &str, transport: Transport) {
    let directory = tempfile::tempdir().unwrap();
    let mut machine = Machine::guest(test).transport(transport).cpus(1);
    for (name, options) in [("one", ""), ("two", ",queues=3,io=plain")] {
        let disk = directory.path().join(name);
        pattern::make(&disk, 4096).unwrap();
        machine = machine.disk(format!("path={}{options}", disk.display()));
    }
    let ended = machine.console("file=/dev/null").run();
    ended.passed(&[test]);
    if ["hostile-queues", "hostile-rings", "hostile-reset"].contains(&test) {
        // 1 and 3 of the disks, 2 of the console, 1 of the entropy source, 4 of the balloon.
        assert_eq!(ended.said("queues-attacked"), "11");
    }
}

fn malformed_chains(transport: Transport) {
    attack("hostile-queues", transport);
}

fn malformed_rings(transport: Transport) {
    attack("hostile-rings", transport);
}

fn resets_in_flight(transport: Transport) {
    attack("hostile-reset", transport);
}

fn registers_at_random(transport: Transport) {
    attack("hostile-registers", transport);
}
