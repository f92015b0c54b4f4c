//! A queue pair's thread, one step at a time.

use super::super::{Net, NetOptions};
use super::*;
use crate::virtio::device::{Activation, Signal, VirtioDevice};
use crate::virtio::testing::{Buf, FakeNet, Guest, GuestQueue, Kind};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

struct Deaf;

impl Signal for Deaf {
    fn queue(&self, _index: u16) {}
    fn config(&self) {}
}

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

fn device(network: &Arc<FakeNet>) -> Net {
    let options = NetOptions { mac: [2, 0, 0, 0, 0, 1], mtu: None };
    Net::new("net0".to_owned(), Arc::<FakeNet>::clone(network), options, Arc::default()).unwrap()
}

/// The device's end of a queue.
fn end_of(queue: &GuestQueue) -> Queue {
    let layout = queue.layout();
    let mut ring = virtio_queue::Queue::new(layout.size).unwrap();
    ring.try_set_desc_table_address(GuestAddress(layout.desc)).unwrap();
    ring.try_set_avail_ring_address(GuestAddress(layout.avail)).unwrap();
    ring.try_set_used_ring_address(GuestAddress(layout.used)).unwrap();
    ring.set_event_idx(true);
    ring.set_ready(true);
    Queue::new(queue.index(), ring, event(), true)
}

/// The first of several pairs, whose others nobody serves.
struct Bench {
    network: Arc<FakeNet>,
    guest: Guest,
    queues: Vec<GuestQueue>,
    pair: Pair,
    kill: EventFd,
}

impl Bench {
    fn new(pairs: u16) -> Self {
        let network = FakeNet::new(pairs, FakeNet::ALL);
        // Its registers are not used: the pair is made without them.
        let mut guest = Guest::new(Kind::Mmio, Box::new(device(&network)));
        let queues: Vec<_> =
            (0..=2 * pairs).map(|index| GuestQueue::new(&mut guest, index, 64, true)).collect();
        let mut device = device(&network);
        let activation = Activation {
            ram: Arc::clone(&guest.ram),
            queues: queues.iter().map(end_of).collect(),
            interrupt: Interrupt::new(Arc::new(Deaf), Arc::default()),
            features: device.features(),
        };
        let pair = device.pair_up(activation).unwrap().remove(0);
        Self { network, guest, queues, pair, kill: event() }
    }
}

#[test]
fn buffers_that_come_just_before_sleep_are_for_the_frame_that_waits() {
    // One that is not enough for the largest frame, and one that is.
    for len in [2048, 0x11000] {
        let mut bench = Bench::new(1);
        let at = bench.guest.alloc(len);
        let mut service = Service::new(&mut bench.pair, &bench.kill).unwrap();
        service.follow();
        assert!(bench.network.give(0, [0; 12], &[7; 60]));
        assert!(!service.receive().unwrap(), "there is no buffer");
        // Without a kick, for the device has not asked for one.
        bench.queues[0].add(&[Buf::writable(at, len as u32)]);
        assert!(service.kicks(true).unwrap(), "it looks again");
        assert!(service.receive().unwrap());
        assert_eq!(bench.queues[0].take_used(), Some((0, 72)));
        // One look is enough.
        assert!(!service.receive().unwrap());
        assert!(!service.kicks(true).unwrap());
    }
}

#[test]
fn a_limit_is_not_waited_for_when_the_port_is_gone() {
    let mut bench = Bench::new(1);
    let mut service = Service::new(&mut bench.pair, &bench.kill).unwrap();
    service.follow();
    let at = Some(Instant::now());
    service.limited = Limited { transmit: at, receive: at };
    bench.network.closed.store(true, std::sync::atomic::Ordering::SeqCst);
    service.lose_port();
    service.follow();
    let start = Instant::now();
    assert!(!service.transmit().unwrap() && !service.receive().unwrap());
    service.events(true).unwrap();
    service.events(true).unwrap();
    assert!(start.elapsed() > RETRY / 2, "woken for nothing");
}

/// The guest asks for two pairs, and writes something else over it while that is under way.
fn ask_for_two(bench: &mut Bench) -> u64 {
    let at = bench.guest.put(&[4, 0, 2, 0, 0xee]);
    bench.queues[4].add(&[Buf::readable(at, 4), Buf::writable(at + 4, 1)]);
    let mut service = Service::new(&mut bench.pair, &bench.kill).unwrap();
    assert!(!service.control().unwrap(), "the second has no port yet");
    bench.guest.ram.write_slice(&[9; 4], GuestAddress(at)).unwrap();
    assert!(!service.control().unwrap());
    assert_eq!((bench.pair.common.shared.wanted(), bench.queues[4].take_used()), (2, None));
    at + 4
}

#[test]
fn a_command_that_is_under_way_is_the_one_that_was_seen() {
    let mut bench = Bench::new(2);
    let answer = ask_for_two(&mut bench);
    bench.pair.common.shared.reached(1, State::On);
    let mut service = Service::new(&mut bench.pair, &bench.kill).unwrap();
    assert!(service.control().unwrap());
    assert_eq!(bench.queues[4].take_used(), Some((0, 1)));
    assert_eq!(bench.guest.get(answer, 1), [0]);
}

#[test]
fn a_command_that_is_under_way_is_in_the_ring_when_the_device_is_stopped() {
    let mut bench = Bench::new(2);
    ask_for_two(&mut bench);
    bench.kill.write(1).unwrap();
    bench.pair.run(&bench.kill);
    assert_eq!(bench.pair.common.shared.wanted(), 1);
    let control = bench.pair.into_queues().last().unwrap();
    assert_eq!((control.index, control.ring.next_avail(), control.ring.next_used()), (4, 0, 0));
}

#[test]
fn a_frame_that_waits_for_room_is_not_lost_when_the_device_is_stopped() {
    let mut bench = Bench::new(1);
    for _ in 0..40 {
        let at = bench.guest.alloc(1526);
        bench.queues[0].add(&[Buf::writable(at, 1526)]);
    }
    let mut service = Service::new(&mut bench.pair, &bench.kill).unwrap();
    service.follow();
    assert!(bench.network.give(0, [0; 12], &[7; 50_000]));
    assert!(service.receive().unwrap());
    // More than the seven that are left hold, and less than there were.
    assert!(bench.network.give(0, [0; 12], &[7; 20_000]));
    assert!(!service.receive().unwrap());
    drop(service);
    let counters = Arc::clone(&bench.pair.common.counters);
    assert_eq!((counters.requests.get(), counters.errors.get()), (1, 0));
    bench.kill.write(1).unwrap();
    bench.pair.run(&bench.kill);
    assert_eq!((counters.requests.get(), counters.errors.get()), (1, 0));
    let state = bench.pair.receiver.save(0);
    let frame = state.frame.unwrap().0;
    assert_eq!((state.pair, state.most, frame.len()), (0, 40, 20_012));
    assert_eq!(frame[12..], [7; 20_000]);
}
