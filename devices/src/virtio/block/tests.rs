//! The device as its driver sees it, without a transport.

mod failing;
mod growing;
mod limited;
mod saved;

use super::*;

use std::str::FromStr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tempfile::{NamedTempFile, TempDir};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_RO};
use virtio_queue::{Queue as Ring, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use arch::memory::{GuestRam, SharedRam};

use crate::disk::DiskOptions;
use crate::disk::tests::{file, layered, options, pattern};
use crate::virtio::device::{Interrupt, STATUS_NEEDS_RESET, Signal};

const SIZE: usize = 1 << 20;
const QUEUE: u16 = 64;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// How often the device interrupted.
#[derive(Default)]
struct Interrupts {
    queue: AtomicU64,
    config: AtomicU64,
}

impl Signal for Interrupts {
    fn queue(&self, _index: u16) {
        self.queue.fetch_add(1, Ordering::SeqCst);
    }

    fn config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

/// A driver of one queue, with three descriptors a request.
struct Driver {
    ram: SharedRam,
    kick: EventFd,
    base: u64,
    avail: u16,
    used: u16,
}

impl Driver {
    fn new(ram: &SharedRam, index: u16) -> (Self, Queue) {
        let base = 0x1000 + u64::from(index) * 0x4000;
        ram.write_slice(&[0; 0x4000], GuestAddress(base)).unwrap();
        let mut ring = Ring::new(QUEUE).unwrap();
        ring.set_desc_table_address(Some(base as u32), Some(0));
        ring.set_avail_ring_address(Some(base as u32 + 0x1000), Some(0));
        ring.set_used_ring_address(Some(base as u32 + 0x2000), Some(0));
        ring.set_ready(true);
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let queue = Queue::new(index, ring, kick.try_clone().unwrap(), false);
        (Self { ram: Arc::clone(ram), kick, base, avail: 0, used: 0 }, queue)
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(self.base + at)).unwrap();
    }

    /// Make a request of up to three buffers available, without a kick. `slot` is below 16.
    fn add(&mut self, slot: u16, buffers: &[(u64, u32, u16)]) {
        for (i, (addr, len, flags)) in (0..).zip(buffers) {
            let index = slot * 4 + i;
            let flags = flags | if usize::from(i) + 1 < buffers.len() { NEXT } else { 0 };
            let at = u64::from(index) * 16;
            self.store(at, &addr.to_le_bytes());
            self.store(at + 8, &len.to_le_bytes());
            self.store(at + 12, &flags.to_le_bytes());
            self.store(at + 14, &(index + 1).to_le_bytes());
        }
        self.store(0x1004 + u64::from(self.avail % QUEUE) * 2, &(slot * 4).to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.ram.store(self.avail.to_le(), GuestAddress(self.base + 0x1002), Ordering::Release).unwrap();
    }

    fn wants_kick(&self) -> bool {
        std::sync::atomic::fence(Ordering::SeqCst);
        let flags: u16 = self.ram.load(GuestAddress(self.base + 0x2000), Ordering::SeqCst).unwrap();
        u16::from_le(flags) & 1 == 0
    }

    fn kick(&self) {
        if self.wants_kick() {
            self.kick.write(1).unwrap();
        }
    }

    /// The slot and length of the next used request, if there is one.
    fn used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.ram.load(GuestAddress(self.base + 0x2002), Ordering::Acquire).unwrap();
        if u16::from_le(index) == self.used {
            return None;
        }
        let at = self.base + 0x2004 + u64::from(self.used % QUEUE) * 8;
        let [head, len]: [u32; 2] = self.ram.read_obj(GuestAddress(at)).unwrap();
        self.used = self.used.wrapping_add(1);
        Some((head as u16 / 4, len))
    }

    fn wait(&mut self) -> (u16, u32) {
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(used) = self.used() {
                return used;
            }
            assert!(Instant::now() < limit, "the request is answered");
            std::thread::yield_now();
        }
    }
}

struct Machine {
    file: NamedTempFile,
    /// Where the layers above the file are, if there are any.
    layers: Option<TempDir>,
    options: DiskOptions,
    disk: Arc<Disk>,
    ram: SharedRam,
    block: Block,
    drivers: Vec<Driver>,
    signal: Arc<Interrupts>,
    status: Arc<AtomicU8>,
}

const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STATUS: u64 = 0x18_0000;

impl Machine {
    fn new(disk: DiskOptions, file: NamedTempFile, options: BlockOptions) -> Self {
        Self::with(disk, file, None, options)
    }

    fn with(
        disk_options: DiskOptions,
        file: NamedTempFile,
        layers: Option<TempDir>,
        options: BlockOptions,
    ) -> Self {
        let disk = Arc::new(Disk::open(&disk_options).unwrap());
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap());
        let block = Block::new("disk0".to_owned(), Arc::clone(&disk), options);
        let mut machine = Self {
            file,
            layers,
            options: disk_options,
            disk,
            ram,
            block,
            drivers: Vec::new(),
            signal: Arc::default(),
            status: Arc::default(),
        };
        machine.activate(u64::MAX);
        machine
    }

    fn activate(&mut self, features: u64) {
        let queues = 0..self.block.queue_sizes().len() as u16;
        let (drivers, queues) = queues.map(|index| Driver::new(&self.ram, index)).unzip();
        self.drivers = drivers;
        self.resume(queues, features);
    }

    fn resume(&mut self, queues: Vec<Queue>, features: u64) {
        let signal = Arc::clone(&self.signal) as Arc<dyn Signal>;
        let interrupt = Interrupt::new(signal, Arc::clone(&self.status));
        let features = features & self.block.features();
        let ram = Arc::clone(&self.ram);
        self.block.activate(Activation { ram, queues, interrupt, features }).unwrap();
    }

    fn header(&self, slot: u16, kind: u32, sector: u64) -> (u64, u32, u16) {
        let at = HEADER + u64::from(slot) * 64;
        let bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.ram.write_slice(&bytes, GuestAddress(at)).unwrap();
        (at, 16, 0)
    }

    fn status_of(&self, slot: u16) -> u8 {
        self.ram.read_obj(GuestAddress(STATUS + u64::from(slot))).unwrap()
    }

    /// Make a read of sector 0, 4096 bytes, available in the slot of a queue.
    fn add_read(&mut self, queue: usize, slot: u16) {
        let header = self.header(slot, 0, 0);
        let status = (STATUS + u64::from(slot), 1, WRITE);
        self.drivers[queue].add(slot, &[header, (DATA, 4096, WRITE), status]);
    }

    /// Carry out one request: its status and used length.
    fn run(&mut self, kind: u32, sector: u64, data: Option<(u64, u32, u16)>) -> (u8, u32) {
        let status = (STATUS, 1, WRITE);
        self.ram.write_obj(0xee_u8, GuestAddress(STATUS)).unwrap();
        let buffers: Vec<_> =
            [Some(self.header(0, kind, sector)), data, Some(status)].into_iter().flatten().collect();
        let driver = &mut self.drivers[0];
        driver.add(0, &buffers);
        driver.kick();
        let (slot, len) = driver.wait();
        assert_eq!(slot, 0);
        (self.status_of(0), len)
    }

    fn get(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        data
    }

    fn put(&self, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(DATA)).unwrap();
    }
}

/// Until it is so, or the test fails.
fn until(what: &str, so: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::yield_now();
    }
}

fn everywhere_with(block: impl Fn() -> BlockOptions, test: impl Fn(Machine)) {
    for engine in [EngineKind::Auto, EngineKind::Plain] {
        let raw = file(SIZE);
        test(Machine::new(options(&raw), raw, BlockOptions { engine, ..block() }));
        let base = file(SIZE);
        let (dir, options) = layered(&base);
        test(Machine::with(options, base, Some(dir), BlockOptions { engine, ..block() }));
    }
}

fn everywhere(test: impl Fn(Machine)) {
    everywhere_with(BlockOptions::default, test);
}

#[test]
fn a_driver_reads_writes_and_flushes() {
    everywhere(|mut machine| {
        assert_eq!(machine.run(0, 8, Some((DATA, 4096, WRITE))), (0, 4097));
        assert!(machine.get(4096) == pattern(0, SIZE)[4096..8192]);
        machine.put(&pattern(9, 8192));
        assert_eq!(machine.run(1, 3, Some((DATA, 8192, 0))), (0, 1));
        assert_eq!(machine.run(4, 0, None), (0, 1));
        let content = machine.disk.content();
        assert!(content[1536..1536 + 8192] == pattern(9, 8192));
        assert!(content[1536 + 8192..] == pattern(0, SIZE)[1536 + 8192..]);
        assert!(machine.signal.queue.load(Ordering::SeqCst) > 0, "it interrupts");
    });
}

#[test]
fn a_driver_discards_and_zeroes() {
    everywhere(|mut machine| {
        let range = |sector: u64, count: u32, flags: u32| {
            [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        machine.put(&[range(8, 8, 0), range(32, 16, 1)].concat());
        assert_eq!(machine.run(13, 0, Some((DATA, 32, 0))), (0, 1));
        machine.put(&range(1024, 64, 0));
        assert_eq!(machine.run(11, 0, Some((DATA, 16, 0))), (0, 1));
        let content = machine.disk.content();
        let mut expected = pattern(0, SIZE);
        expected[4096..8192].fill(0);
        expected[16384..24576].fill(0);
        assert!(content[..512 * 1024] == expected[..512 * 1024]);
    });
}

#[test]
fn errors_are_answered_and_the_next_request_is_served() {
    everywhere(|mut machine| {
        assert_eq!(machine.run(0, 1 << 40, Some((DATA, 512, WRITE))), (1, 0));
        assert_eq!(machine.run(1, u64::MAX, Some((DATA, 512, 0))), (1, 1));
        assert_eq!(machine.run(77, 0, None), (2, 1));
        machine.file.as_file().set_len(4096).unwrap();
        assert_eq!(machine.run(0, 64, Some((DATA, 512, WRITE))), (1, 0));
        assert_eq!(machine.run(0, 0, Some((DATA, 512, WRITE))), (0, 513));
        assert_eq!(machine.status.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn the_serial_number_is_given_or_the_device_s_name() {
    everywhere(|mut machine| {
        machine.put(&[0xee; 24]);
        assert_eq!(machine.run(8, 0, Some((DATA, 20, WRITE))), (0, 21));
        assert_eq!(machine.get(21), b"disk0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xee");
    });
    let file = file(4096);
    let serial = Some(Serial::from_str("s-1").unwrap());
    let mut machine = Machine::new(options(&file), file, BlockOptions { serial, ..BlockOptions::default() });
    assert_eq!(machine.run(8, 0, Some((DATA, 30, WRITE))), (0, 20));
    assert_eq!(machine.get(4), b"s-1\0");
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let file = file(SIZE);
    let disk = DiskOptions { readonly: true, ..options(&file) };
    let mut machine = Machine::new(disk, file, BlockOptions::default());
    let features = machine.block.features();
    assert_eq!(features >> VIRTIO_BLK_F_RO & 1, 1);
    assert_eq!(features >> VIRTIO_BLK_F_DISCARD & 1, 0);
    assert_eq!(machine.run(1, 0, Some((DATA, 512, 0))).0, 1);
    assert_eq!(machine.run(4, 0, None).0, 0);
    assert_eq!(machine.run(0, 0, Some((DATA, 512, WRITE))).0, 0);
    assert!(machine.disk.content() == pattern(0, SIZE));
}

#[test]
fn a_broken_request_asks_for_a_reset_and_the_device_still_stops() {
    everywhere(|mut machine| {
        let header = machine.header(0, 0, 0);
        machine.drivers[0].add(0, &[header]);
        machine.drivers[0].kick();
        until("it says so", || machine.status.load(Ordering::SeqCst) == STATUS_NEEDS_RESET);
        assert_eq!(machine.block.stop().len(), 1);
        machine.status.store(0, Ordering::SeqCst);
        machine.activate(u64::MAX);
        assert_eq!(machine.run(0, 0, Some((DATA, 512, WRITE))), (0, 513));
    });
}

#[test]
fn stop_hands_back_the_queues_where_they_stand() {
    everywhere(|mut machine| {
        for round in 1..=3 {
            assert_eq!(machine.run(0, 0, Some((DATA, 512, WRITE))), (0, 513));
            let queues = machine.block.stop();
            assert_eq!(queues.len(), 1);
            assert_eq!((queues[0].ring.next_avail(), queues[0].ring.next_used()), (round, round));
            assert!(machine.block.stop().is_empty(), "an inactive device has none");
            machine.resume(queues, u64::MAX);
        }
    });
}

#[test]
fn the_disk_is_free_once_its_devices_are_gone() {
    everywhere(|mut machine| {
        for _ in 0..20 {
            assert_eq!(machine.run(0, 0, Some((DATA, 512, WRITE))), (0, 513));
            let Machine { file, layers, options, disk, block, .. } = machine;
            drop((disk, block));
            machine = Machine::with(options, file, layers, BlockOptions::default());
        }
    });
}

#[test]
fn stop_waits_for_what_is_in_flight() {
    everywhere(|mut machine| {
        for slot in 0..16 {
            let header = machine.header(slot, 1, u64::from(slot) * 8);
            let status = (STATUS + u64::from(slot), 1, WRITE);
            machine.drivers[0].add(slot, &[header, (DATA, 4096, 0), status]);
        }
        machine.drivers[0].kick();
        let taken = machine.block.stop()[0].ring.next_avail();
        let mut used = 0;
        while machine.drivers[0].used().is_some() {
            used += 1;
        }
        assert_eq!(used, taken, "each request that was taken is answered");
    });
}

#[test]
fn queues_work_side_by_side() {
    let file = file(SIZE);
    let mut machine =
        Machine::new(options(&file), file, BlockOptions { queues: 4, ..BlockOptions::default() });
    for index in 0..4 {
        let slot = index as u16;
        let header = machine.header(slot, 0, index as u64 * 8);
        let data = (DATA + index as u64 * 4096, 4096, WRITE);
        machine.drivers[index].add(slot, &[header, data, (STATUS + index as u64, 1, WRITE)]);
        machine.drivers[index].kick();
    }
    for driver in &mut machine.drivers {
        assert_eq!(driver.wait().1, 4097);
    }
    assert!(machine.get(16384) == pattern(0, 16384));
    assert_eq!(machine.block.stop().len(), 4);
}

#[test]
fn without_flush_each_write_is_durable() {
    let file = file(SIZE);
    let mut machine = Machine::new(options(&file), file, BlockOptions::default());
    machine.block.stop();
    machine.activate(0);
    machine.put(&pattern(5, 512));
    assert_eq!(machine.run(1, 1, Some((DATA, 512, 0))), (0, 1));
    assert!(machine.disk.content()[512..1024] == pattern(5, 512));
}

#[test]
fn the_configuration_space_is_read_in_any_pieces() {
    let file = file(SIZE);
    let machine = Machine::new(options(&file), file, BlockOptions::default());
    let mut whole = [0xff; 80];
    machine.block.read_config(0, &mut whole);
    assert_eq!(whole[..8], (SIZE as u64 / 512).to_le_bytes());
    assert_eq!(whole[60..], [0; 20]);
    let mut part = [0xff; 4];
    machine.block.read_config(20, &mut part);
    assert_eq!(part, whole[20..24]);
    machine.block.read_config(u64::MAX, &mut part);
    assert_eq!(part, [0; 4]);
}
