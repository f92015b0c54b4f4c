//! The device as its driver and its network see it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::net::{HEADER, Offloads};
use crate::virtio::testing::{Buf, FakeNet, Guest, GuestQueue, Kind, Source, eventually};

const ALL: u64 = u64::MAX;
/// As Linux posts them, more or less.
const BUFFER: u32 = 1526;

struct Bench {
    guest: Guest,
    network: Arc<FakeNet>,
    counters: Arc<Counters>,
    queues: Vec<GuestQueue>,
}

impl Bench {
    fn new(pairs: u16, features: u64) -> Self {
        let network = FakeNet::new(pairs, FakeNet::ALL);
        let counters = Arc::<Counters>::default();
        let options = NetOptions { mac: [2, 0, 0, 0, 0, 1], mtu: None };
        let backend = Arc::<FakeNet>::clone(&network);
        let net = Net::new("net0".to_owned(), backend, options, Arc::clone(&counters)).unwrap();
        let mut guest = Guest::new(Kind::Mmio, Box::new(net));
        let queues = guest.start(features);
        Self { guest, network, counters, queues }
    }

    /// Post this many receive buffers and say where they are.
    fn post(&mut self, count: u64) -> u64 {
        let at = self.guest.alloc(count * u64::from(BUFFER));
        for index in 0..count {
            self.queues[0].add(&[Buf::writable(at + index * u64::from(BUFFER), BUFFER)]);
        }
        self.guest.registers.notify(0);
        at
    }

    fn send(&mut self, queue: usize, header: [u8; HEADER], frame: &[u8]) {
        let at = self.guest.put(&[&header[..], frame].concat());
        let len = (HEADER + frame.len()) as u32;
        self.guest.request(&mut self.queues[queue], &[Buf::readable(at, len)]);
    }

    /// Give a command and return the answer.
    fn control(&mut self, command: &[u8]) -> u8 {
        let at = self.guest.put(&[command, &[0xee]].concat());
        let len = command.len() as u32;
        let buffers = [Buf::readable(at, len), Buf::writable(at + u64::from(len), 1)];
        let queue = self.queues.last_mut().unwrap();
        assert_eq!(self.guest.request(queue, &buffers), 1);
        self.guest.get(at + u64::from(len), 1)[0]
    }

    fn pairs_set(&mut self, pairs: u8) -> u8 {
        self.control(&[4, 0, pairs, 0])
    }

    fn link_up(&self) -> bool {
        let mut status = [0; 2];
        self.guest.registers.read_config(6, &mut status);
        status == [1, 0]
    }

    /// The next frame that the guest received, its header before it, and in how many buffers it came.
    fn received(&mut self, buffers: u64) -> (Vec<u8>, u64) {
        let mut bytes = Vec::new();
        let mut chains = 0;
        loop {
            let (head, len) = self.queues[0].wait_used();
            // One buffer a descriptor, given out in order.
            bytes.extend(self.guest.get(buffers + u64::from(head) * u64::from(BUFFER), len as usize));
            chains += 1;
            if chains >= u64::from(u16::from_le_bytes([bytes[10], bytes[11]])) {
                return (bytes, chains);
            }
        }
    }
}

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
}

/// A large TCP segment's header.
const LARGE: [u8; HEADER] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

#[test]
fn a_large_frame_comes_in_many_buffers_and_the_rest_is_kept() {
    let mut bench = Bench::new(1, ALL);
    let at = bench.post(64);
    let (large, small) = (noise(60_000), noise(60));
    assert!(bench.network.give(0, LARGE, &large));
    assert!(bench.network.give(0, [0; HEADER], &small));
    let (bytes, chains) = bench.received(at);
    assert_eq!((chains, &bytes[12..]), (40, &large[..]));
    assert_eq!((&bytes[..10], &bytes[10..12]), (&LARGE[..10], &[40, 0][..]));
    let (bytes, chains) = bench.received(at);
    assert_eq!((chains, &bytes[12..]), (1, &small[..]));
    assert_eq!(bench.counters.to_guest.get(), 60_060);
    assert_eq!((bench.counters.requests.get(), bench.counters.errors.get()), (2, 0));
}

#[test]
fn a_frame_waits_for_a_guest_that_has_more_to_give() {
    let mut bench = Bench::new(1, ALL);
    let at = bench.post(40);
    assert!(bench.network.give(0, LARGE, &noise(50_000)));
    assert_eq!(bench.received(at).1, 33);
    // Seven are left.
    let frame = noise(20_000);
    assert!(bench.network.give(0, LARGE, &frame));
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(bench.queues[0].used_index(), 33);
    // The descriptors go on behind those of before, and so do the buffers.
    let more = bench.post(10);
    assert_eq!(more, (at + 40 * u64::from(BUFFER)).next_multiple_of(0x1000));
    let heads: Vec<(u32, u32)> = (0..14).map(|_| bench.queues[0].wait_used()).collect();
    let place = |head: u32| {
        if head < 40 { at + u64::from(head * BUFFER) } else { more + u64::from((head - 40) * BUFFER) }
    };
    let bytes: Vec<u8> =
        heads.iter().flat_map(|(head, len)| bench.guest.get(place(*head), *len as usize)).collect();
    assert_eq!(bytes[12..], frame);
    assert_eq!(bench.counters.errors.get(), 0);
}

#[test]
fn a_frame_larger_than_all_the_guest_gives_is_dropped_and_counted() {
    for features in [ALL, ALL & !(1 << VIRTIO_NET_F_MRG_RXBUF)] {
        let mut bench = Bench::new(1, features);
        let at = bench.post(1);
        let small = noise(60);
        assert!(bench.network.give(0, LARGE, &noise(2000)));
        assert!(bench.network.give(0, [0; HEADER], &small));
        let (bytes, _) = bench.received(at);
        assert_eq!((&bytes[10..12], &bytes[12..]), (&[1, 0][..], &small[..]));
        assert_eq!((bench.counters.requests.get(), bench.counters.errors.get()), (2, 1));
        assert!(!bench.guest.broken());
    }
}

#[test]
fn buffers_in_hand_go_back_when_the_device_is_stopped() {
    let mut bench = Bench::new(1, ALL);
    let at = bench.post(50);
    for round in 0..5 {
        assert!(bench.network.give(0, [0; HEADER], &noise(100 + round)));
        let (bytes, _) = bench.received(at);
        assert_eq!(bytes[12..], noise(100 + round));
        bench.guest.transport().pause();
        bench.guest.transport().resume();
    }
    assert_eq!(bench.queues[0].used_index(), 5);
    assert!(!bench.guest.broken());
}

#[test]
fn receive_buffers_without_room_for_a_header_break_the_device() {
    let bad = [vec![Buf::writable(0x8000, 11)], vec![Buf::readable(0x8000, 4), Buf::writable(0x9000, 1600)]];
    for buffers in bad {
        let mut bench = Bench::new(1, ALL);
        bench.queues[0].add(&buffers);
        bench.guest.registers.notify(0);
        bench.guest.wait_broken();
    }
}

#[test]
fn frames_without_a_header_break_the_device() {
    for buffer in [Buf::readable(0x8000, 11), Buf::writable(0x8000, 100)] {
        let mut bench = Bench::new(1, ALL);
        bench.queues[1].add(&[buffer]);
        bench.guest.registers.notify(1);
        bench.guest.wait_broken();
    }
}

#[test]
fn what_the_guest_sends_arrives_with_a_checked_header() {
    let mut bench = Bench::new(1, ALL);
    let mut odd = LARGE;
    odd[0] = 0x87;
    odd[10] = 9;
    let frame = noise(40_000);
    bench.send(1, odd, &frame);
    let sent = bench.network.take(0).unwrap();
    assert_eq!((&sent[..HEADER], &sent[HEADER..]), (&LARGE[..], &frame[..]));
    // Segments of nothing, a checksum far away, nothing, and too much.
    let (mut no_size, mut far) = (LARGE, LARGE);
    no_size[4..6].fill(0);
    far[6..8].fill(0xff);
    bench.send(1, no_size, &frame);
    bench.send(1, far, &frame);
    bench.send(1, [0; HEADER], &[]);
    bench.send(1, [0; HEADER], &noise(70_000));
    assert_eq!(bench.network.take(0), None);
    assert_eq!((bench.counters.requests.get(), bench.counters.errors.get()), (5, 4));
    assert_eq!(bench.counters.from_guest.get(), 40_000);
    bench.send(1, [0; HEADER], &frame[..60]);
    assert_eq!(bench.network.take(0).unwrap()[HEADER..], frame[..60]);
    assert!(!bench.guest.broken());
}

#[test]
fn a_frame_in_a_thousand_pieces_is_dropped() {
    let mut bench = Bench::new(1, ALL);
    let at = bench.guest.alloc(0x4000);
    let table = bench.guest.alloc(16 * 1024);
    for index in 0..1024_u64 {
        let next = u16::from(index < 1023);
        let entry = (at + 4 * index, 4_u32, next, index as u16 + 1);
        let bytes = [
            &entry.0.to_le_bytes()[..],
            &entry.1.to_le_bytes(),
            &entry.2.to_le_bytes(),
            &entry.3.to_le_bytes(),
        ];
        bench.guest.ram.write_slice(&bytes.concat(), GuestAddress(table + 16 * index)).unwrap();
    }
    let queue = &mut bench.queues[1];
    queue.set_descriptor(0, table, 16 * 1024, 4, 0);
    queue.publish(0);
    bench.guest.registers.notify(1);
    assert_eq!(bench.queues[1].wait_used(), (0, 0));
    assert_eq!(bench.counters.errors.get(), 1);
    assert!(!bench.guest.broken());
}

#[test]
fn offloads_follow_what_the_guest_accepts() {
    let mut bench = Bench::new(1, ALL);
    assert_eq!(bench.network.accepted(), FakeNet::ALL);
    // GUEST_CSUM and GUEST_TSO4.
    assert_eq!(bench.control(&[5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0]), 0);
    let some = Offloads { csum: true, tso4: true, ..Offloads::default() };
    assert_eq!(bench.network.accepted(), some);
    assert_eq!(bench.control(&[5, 0, 1, 0, 0, 0, 0, 0, 0, 0]), 1, "none that is received");
    bench.guest.transport().pause();
    bench.guest.transport().resume();
    assert_eq!(bench.control(&[9, 9]), 1);
    assert_eq!(bench.network.accepted(), some, "a pause changes nothing");
    bench.queues = bench.guest.start(ALL);
    assert_eq!(bench.network.accepted(), FakeNet::ALL);
}

#[test]
fn queue_pairs_are_opened_and_closed_as_the_driver_asks() {
    let mut bench = Bench::new(2, ALL);
    let open = |bench: &Bench| [0, 1].map(|pair| bench.network.is_open(pair));
    assert!(eventually(|| open(&bench) == [true, false]));
    assert_eq!(bench.pairs_set(2), 0);
    assert_eq!(open(&bench), [true, true], "before it is answered");
    bench.send(3, [0; HEADER], &noise(80));
    assert_eq!(bench.network.take(1).unwrap()[HEADER..], noise(80));
    // A pause changes nothing.
    bench.guest.transport().pause();
    assert_eq!(open(&bench), [false, false]);
    bench.guest.transport().resume();
    assert!(eventually(|| open(&bench) == [true, true]));
    assert_eq!(bench.pairs_set(1), 0);
    assert_eq!(open(&bench), [true, false]);
    for wrong in [0, 3, 255] {
        assert_eq!(bench.pairs_set(wrong), 1);
    }
    bench.network.closed.store(true, Ordering::SeqCst);
    assert_eq!(bench.pairs_set(2), 1, "there is no other");
    assert!(bench.link_up());
    bench.network.closed.store(false, Ordering::SeqCst);
    assert_eq!(bench.pairs_set(2), 0);
    // A reset does.
    bench.queues = bench.guest.start(ALL);
    assert!(eventually(|| open(&bench) == [true, false]));
    assert_eq!(bench.pairs_set(1), 0);
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    let mut bench = Bench::new(2, ALL & !(1 << VIRTIO_NET_F_MQ));
    bench.queues.truncate(3);
    assert_eq!(bench.control(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert_eq!(bench.network.accepted(), Offloads::default());
    assert_eq!(bench.pairs_set(1), 1, "it was not agreed on");
}

#[test]
fn the_guest_sees_the_link_go_down_and_come_back() {
    let mut bench = Bench::new(1, ALL);
    assert!(bench.link_up());
    bench.network.set_down(true);
    bench.send(1, [0; HEADER], &noise(60));
    assert!(!bench.link_up());
    bench.guest.wait_interrupt(Source::Config);
    assert_eq!(bench.counters.errors.get(), 1);
    // Without the guest's doing.
    bench.network.set_down(false);
    assert!(eventually(|| bench.link_up()));
    bench.send(1, [0; HEADER], &noise(60));
    assert_eq!(bench.network.take(0).unwrap()[HEADER..], noise(60));
}

#[test]
fn a_network_that_goes_away_leaves_the_guest_running() {
    let mut bench = Bench::new(1, ALL);
    bench.post(40);
    bench.network.closed.store(true, Ordering::SeqCst);
    bench.network.hang_up();
    assert!(eventually(|| !bench.link_up()));
    for _ in 0..3 {
        bench.send(1, [0; HEADER], &noise(60));
    }
    assert_eq!(bench.counters.errors.get(), 3);
    assert!(!bench.guest.broken());
}
