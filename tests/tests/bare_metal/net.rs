//! virtio-net through a tap. Where no tap can be made these say so and test nothing.

use std::time::Duration;

use skiff_tests::machine::{Machine, Transport};
use skiff_tests::tap::{TYPE, Tap, ip};

use crate::on_both;

on_both!(frames_go_both_ways, every_queue_pair_sends, the_link_follows_the_tap);

const PATIENCE: Duration = Duration::from_secs(60);

/// From here to the guest, with `payload`.
fn frame(guest: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&guest[..], &[2, 0, 0, 0, 0, 9], &TYPE.to_be_bytes(), payload].concat()
}

fn frames_go_both_ways(transport: Transport) {
    let Some(tap) = Tap::make("") else { return };
    let net = format!("tap={},mac=02:00:00:00:00:07", tap.name);
    let mut machine = Machine::guest("net").transport(transport).flag("--net", net).start();
    machine.wait_for("ready");
    for number in 0..20_u8 {
        // From the shortest to the longest.
        let payload = vec![number; 46 + 76 * usize::from(number)];
        tap.send(&frame([2, 0, 0, 0, 0, 7], &payload));
        let answer = tap.receive(PATIENCE).expect("an answer");
        let mut want = frame([2, 0, 0, 0, 0, 9], &vec![!number; payload.len()]);
        want[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
        assert!(answer == want, "frame {number}: {answer:x?}");
    }
    let ended = machine.wait();
    ended.passed(&["net"]);
    assert_eq!(ended.said("mac"), "[2, 0, 0, 0, 0, 7]");
}

fn every_queue_pair_sends(transport: Transport) {
    let Some(tap) = Tap::make("multi_queue") else { return };
    let net = format!("tap={},queues=3", tap.name);
    let ended = Machine::guest("net-queues").transport(transport).flag("--net", net).run();
    ended.passed(&["net-queues"]);
    assert_eq!(ended.said("pairs"), "3");
    let mut senders: Vec<u8> =
        (0..3).map(|_| tap.receive(PATIENCE).expect("a frame from each pair")[14]).collect();
    senders.sort_unstable();
    assert_eq!(senders, [0, 1, 2]);
}

fn the_link_follows_the_tap(transport: Transport) {
    let Some(tap) = Tap::make("") else { return };
    let net = format!("tap={}", tap.name);
    let mut machine = Machine::guest("net-link").transport(transport).flag("--net", net).start();
    machine.wait_for("up");
    assert!(ip(&format!("link set {} down", tap.name)));
    machine.wait_for("down");
    assert!(ip(&format!("link set {} up", tap.name)));
    machine.wait_for("back");
    assert!(ip(&format!("link del {}", tap.name)));
    machine.wait().passed(&["net-link"]);
}

#[test]
fn a_tap_that_cannot_be_used_is_named_with_what_to_do() {
    let refused = |net: &str| {
        let ended = Machine::guest("net").flag("--net", net).run();
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        ended.stderr
    };
    let missing = refused("tap=sknone0");
    assert!(missing.contains("sudo ip tuntap add dev sknone0 mode tap user $USER; "), "{missing}");
    let Some(tap) = Tap::make("") else { return };
    let single = refused(&format!("tap={},queues=2", tap.name));
    assert!(single.contains("has one queue and 2 are asked for"), "{single}");
    let mut first = Machine::guest("hang").flag("--net", format!("tap={}", tap.name)).start();
    first.wait_for("hanging");
    let busy = refused(&format!("tap={}", tap.name));
    assert!(busy.contains("another VM has it"), "{busy}");
}
