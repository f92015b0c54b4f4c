//! Frames that are over their direction's limit wait.

use std::num::NonZero;
use std::time::{Duration, Instant};

use super::*;
use crate::limit::{Limit, Limits};
use crate::virtio::testing::{Buf, FakeNet, Guest, GuestQueue, Kind, eventually};

const FRAME: [u8; 100] = [0x33; 100];

fn bandwidth(rate: u64, burst: u64) -> Option<Arc<Limiter>> {
    let limit = |rate, burst| Some(Limit { rate: NonZero::new(rate)?, burst: NonZero::new(burst)? });
    Limiter::new(Limits { bandwidth: limit(rate, burst), ops: limit(1000, 1000) })
}

/// Two frames go at once, and then one a second.
fn two() -> Option<Arc<Limiter>> {
    bandwidth(100, 200)
}

fn start(limiters: NetLimiters) -> (Arc<FakeNet>, Arc<Counters>, Guest, Vec<GuestQueue>) {
    let network = FakeNet::new(1, FakeNet::ALL);
    let counters = Arc::<Counters>::default();
    let options = NetOptions { mac: [2, 0, 0, 0, 0, 1], mtu: None };
    let backend = Arc::<FakeNet>::clone(&network);
    let net = Net::new("net0".to_owned(), backend, options, Arc::clone(&counters)).unwrap();
    let mut guest = Guest::new(Kind::Mmio, Box::new(net.limited(limiters)));
    let queues = guest.start(u64::MAX);
    (network, counters, guest, queues)
}

#[test]
fn what_is_sent_too_fast_waits_in_the_queue() {
    let limiters = NetLimiters { transmit: two(), receive: None };
    let (network, counters, mut guest, mut queues) = start(limiters);
    let at = guest.put(&[[0; 12].as_slice(), &FRAME].concat());
    let start = Instant::now();
    for _ in 0..3 {
        queues[1].add(&[Buf::readable(at, 112)]);
    }
    guest.registers.notify(1);
    assert!(eventually(|| counters.throttled.get() == 1), "the third waits");
    let mut arrived = 0;
    let all = eventually(|| {
        arrived += usize::from(network.take(0).is_some());
        arrived == 3
    });
    assert!(all, "all arrive");
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(counters.from_guest.get(), 300);
}

#[test]
fn what_comes_too_fast_waits_outside() {
    let limiters = NetLimiters { transmit: None, receive: bandwidth(1000, 200) };
    let (network, counters, mut guest, mut queues) = start(limiters);
    let at = guest.alloc(4 * 2048);
    for slot in 0..4 {
        queues[0].add(&[Buf::writable(at + slot * 2048, 2048)]);
    }
    guest.registers.notify(0);
    let start = Instant::now();
    for _ in 0..2 {
        assert!(network.give(0, [0; 12], &[0x44; 1400]));
    }
    for _ in 0..2 {
        assert_eq!(queues[0].wait_used().1, 1412);
    }
    // How long the first one is shows when it is there: it leaves a debt of 1200 bytes.
    assert!(start.elapsed() >= Duration::from_millis(1200));
    assert!(counters.throttled.get() >= 1);
    // What is sent the other way is not concerned.
    let out = guest.put(&[[0; 12].as_slice(), &FRAME].concat());
    for _ in 0..10 {
        guest.request(&mut queues[1], &[Buf::readable(out, 112)]);
    }
}

#[test]
fn a_device_that_waits_stops_at_once() {
    let limiters = NetLimiters { transmit: two(), receive: two() };
    let (network, counters, mut guest, mut queues) = start(limiters.clone());
    // In debt for an hour.
    let mut gate = Gate::new(limiters.transmit, Arc::default());
    gate.charge(360_000);
    let mut gate = Gate::new(limiters.receive, Arc::default());
    gate.charge(360_000);
    let at = guest.put(&[[0; 12].as_slice(), &FRAME].concat());
    queues[1].add(&[Buf::readable(at, 112)]);
    queues[0].add(&[Buf::writable(at, 112)]);
    network.give(0, [0; 12], &FRAME);
    guest.registers.notify(1);
    guest.registers.notify(0);
    assert!(eventually(|| counters.throttled.get() == 2), "both ways wait");
    guest.registers.write_status(0);
    assert_eq!(guest.registers.status(), 0);
    assert!(network.take(0).is_none());
}
