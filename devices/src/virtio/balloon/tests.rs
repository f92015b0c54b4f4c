//! The device on a transport, driven through its queues.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{Buf, Guest, GuestQueue, HOLE, Kind, RAM, Source, eventually};

/// Memory that [`Guest::alloc`] does not give out.
const AREA: u64 = RAM[1].0;

struct Bench {
    guest: Guest,
    control: BalloonControl,
    counters: Arc<Counters>,
    queues: Vec<GuestQueue>,
}

fn bench(features: u64) -> Bench {
    bench_with(features, true)
}

fn bench_with(features: u64, reclaim: bool) -> Bench {
    let control = BalloonControl::new().unwrap();
    let counters = Arc::<Counters>::default();
    let device = Balloon::new("balloon0", control.clone(), Arc::clone(&counters), reclaim);
    let mut guest = Guest::new(Kind::Mmio, Box::new(device));
    let queues = guest.start(features);
    Bench { guest, control, counters, queues }
}

impl Bench {
    fn send(&mut self, queue: usize, buffers: &[Buf]) {
        self.guest.request(&mut self.queues[queue], buffers);
    }

    fn list(&mut self, queue: usize, pages: &[u64]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| ((page / PAGE) as u32).to_le_bytes()).collect();
        let addr = self.guest.put(&bytes);
        self.send(queue, &[Buf::readable(addr, bytes.len() as u32)]);
    }

    fn fill(&self, addr: u64, pages: u64) {
        self.guest.ram.write_slice(&vec![7; (pages * PAGE) as usize], GuestAddress(addr)).unwrap();
    }

    /// Which of `pages` from [`AREA`] on still hold what was there.
    fn kept(&self, pages: u64) -> Vec<u64> {
        (0..pages).filter(|page| self.guest.get(AREA + page * PAGE, 4096) == [7; 4096]).collect()
    }

    fn config(&self) -> [u32; 4] {
        [0, 4, 8, 12].map(|offset| {
            let mut word = [0; 4];
            self.guest.registers.read_config(offset, &mut word);
            u32::from_le_bytes(word)
        })
    }
}

use super::pages::PAGE;

#[test]
fn queues_have_the_numbers_that_drivers_give_them() {
    let all = feature::STATS_VQ | feature::PAGE_REPORTING;
    let roles = |features| [0, 1, 2, 3].map(|index| role(index, features));
    let [inflate, deflate] = [Some(Role::Inflate), Some(Role::Deflate)];
    assert_eq!(roles(all), [inflate, deflate, Some(Role::Stats), Some(Role::Reporting)]);
    assert_eq!(roles(feature::PAGE_REPORTING), [inflate, deflate, Some(Role::Reporting), None]);
    assert_eq!(roles(feature::STATS_VQ), [inflate, deflate, Some(Role::Stats), None]);
    assert_eq!(roles(0), [inflate, deflate, None, None]);
}

#[test]
fn inflated_pages_are_given_back_and_come_back_empty() {
    let mut bench = bench(u64::MAX);
    bench.fill(AREA, 8);
    // Out of order, twice, and what is no memory.
    let pages = [5, 2, 1, 5].map(|page| AREA + page * PAGE);
    bench.list(0, &[pages[0], HOLE, pages[1], pages[2], pages[3], 0xffff_ffff * PAGE]);
    assert_eq!(bench.kept(8), [0, 3, 4, 6, 7]);
    assert_eq!(bench.counters.from_guest.get(), 3 * PAGE);
    bench.list(1, &pages);
    assert_eq!(bench.counters.to_guest.get(), 3 * PAGE);
    assert_eq!(bench.counters.requests.get(), 2);
    assert!(!bench.guest.broken());
}

#[test]
fn reported_pages_are_given_back_and_counted() {
    let mut bench = bench(u64::MAX);
    bench.fill(AREA, 8);
    bench.send(3, &[Buf::writable(AREA + PAGE, 8192), Buf::writable(AREA + 5 * PAGE + 1, 8192)]);
    assert_eq!(bench.kept(8), [0, 3, 4, 5, 7]);
    assert_eq!(bench.control.reported_free(), 3 * PAGE);
}

#[test]
fn pages_that_hold_a_poison_are_left_alone() {
    let mut bench = bench(u64::MAX);
    bench.fill(AREA, 1);
    bench.guest.registers.write_config(12, &[0xaa, 0, 0, 0]);
    assert_eq!(bench.config()[3], 0xaa);
    bench.send(3, &[Buf::writable(AREA, 4096)]);
    assert_eq!(bench.kept(1), [0]);
    assert_eq!(bench.control.reported_free(), 0);
    // The next driver has another.
    bench.queues = bench.guest.start(u64::MAX);
    assert_eq!(bench.config()[3], 0);
    bench.send(3, &[Buf::writable(AREA, 4096)]);
    assert!(bench.kept(1).is_empty());
}

#[test]
fn without_reclaim_nothing_is_given_back() {
    let mut bench = bench_with(u64::MAX, false);
    assert_eq!(bench.guest.registers.device_features() & feature::PAGE_REPORTING, 0);
    bench.fill(AREA, 1);
    bench.list(0, &[AREA]);
    assert_eq!(bench.kept(1), [0]);
}

#[test]
fn a_new_target_interrupts_and_the_driver_says_what_it_holds() {
    let bench = bench(u64::MAX);
    assert!(bench.control.has_driver());
    bench.control.set_target(5 * PAGE + 17);
    bench.guest.wait_interrupt(Source::Config);
    assert_eq!(bench.config(), [5, 0, 0, 0]);
    bench.guest.registers.write_config(4, &[3, 1]);
    assert_eq!(bench.control.held(), 0x103 * PAGE);
    // The target is the host's.
    bench.guest.registers.write_config(0, &[9, 9, 9, 9]);
    assert_eq!(bench.config(), [5, 0x103, 0, 0]);
    // A pause is not the driver's end, a reset is; the target stays.
    bench.guest.transport().pause();
    assert!(bench.control.has_driver());
    bench.guest.registers.write_status(0);
    assert!(!bench.control.has_driver());
    assert_eq!((bench.control.held(), bench.config()[0]), (0, 5));
}

fn entry(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn statistics_stay_with_the_device_until_it_asks_for_new_ones() {
    let mut bench = bench(u64::MAX);
    let told = [entry(4, 100), entry(99, 1), entry(6, 50), entry(4, 200), vec![1, 2, 3]].concat();
    let addr = bench.guest.put(&told);
    bench.queues[2].add(&[Buf::readable(addr, 15), Buf::readable(addr + 15, told.len() as u32 - 15)]);
    bench.guest.registers.notify(2);
    assert!(eventually(|| bench.control.guest() == [("available", 50), ("free", 200)]));
    bench.guest.transport().pause();
    assert_eq!(bench.queues[2].take_used(), None, "nobody asked");
    bench.guest.transport().resume();
    bench.control.ask();
    bench.queues[2].wait_used();
    let addr = bench.guest.put(&entry(0, 1));
    bench.queues[2].add(&[Buf::readable(addr, 10)]);
    bench.guest.registers.notify(2);
    assert!(eventually(|| bench.control.guest() == [("swap_in", 1)]));
    bench.guest.registers.write_status(0);
    assert_eq!(bench.control.guest(), []);
}

#[test]
fn a_driver_without_statistics_reports_on_the_queue_before() {
    let mut bench = bench(!feature::STATS_VQ);
    bench.fill(AREA, 1);
    bench.send(2, &[Buf::writable(AREA, 4096)]);
    assert!(bench.kept(1).is_empty());
}

#[test]
fn a_list_without_end_is_cut() {
    let mut bench = bench(u64::MAX);
    bench.fill(AREA, 1);
    let addr = bench.guest.put(&[0xff; 4096]);
    let last = bench.guest.put(&((AREA / PAGE) as u32).to_le_bytes());
    // 240 KiB of numbers that are no memory, then one that is.
    let mut buffers = vec![Buf::readable(addr, 4096); 60];
    buffers.push(Buf::readable(last, 4));
    bench.send(0, &buffers);
    assert_eq!(bench.kept(1), [0]);
    assert!(!bench.guest.broken());
}

#[test]
fn what_the_balloon_holds_and_is_to_hold_is_restored() {
    let mut bench = bench(u64::MAX);
    bench.guest.registers.write_config(4, &[3, 1, 0, 0]);
    bench.guest.transport().pause();
    bench.control.set_target(5 * PAGE);
    let state = bench.guest.save();
    // On a machine that has asked for something else meanwhile.
    let control = BalloonControl::new().unwrap();
    control.set_target(9 * PAGE);
    let device = Balloon::new("balloon0", control.clone(), Arc::default(), true);
    bench.guest.restore(Box::new(device), &state).unwrap();
    assert!(control.has_driver());
    assert_eq!((control.held(), bench.config()), (0x103 * PAGE, [5, 0x103, 0, 0]));
    bench.guest.transport().resume();
    bench.guest.wait_interrupt(Source::Config);
    bench.fill(AREA, 1);
    bench.list(0, &[AREA]);
    assert!(bench.kept(1).is_empty());
}
