//! Block throughput from ring 3, by polling.
//!
//! `jobs=randread:4096:1,seqwrite:1048576:4` on the command line: what, bytes a request, requests at a time. Each runs
//! for `ms=1000` on the first `span=` bytes (all, unless given) of the first disk and prints one line:
//! `result randread bs 4096 depth 1 ios N nanos T iops I kib-per-second K kicks P`.
//!
//! Nothing here is shared with the tests but the ring: a request is three descriptors that are written once, and a
//! round trip is the available entry, the index, a look at the event index, perhaps the doorbell, and the used entry.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;

use rt::entropy::Random;
use rt::memory::pages;
use rt::ring::{Descriptor, Device, F_EVENT_IDX, NEXT, WRITE};
use rt::virtio::find;
use rt::{clock, cpu, println, pvh};
use virtio_drivers::transport::{DeviceType, Transport};

rt::guest_main!(run);

const IN: u32 = 0;
const OUT: u32 = 1;

/// What to do.
struct Job {
    name: &'static str,
    write: bool,
    random: bool,
    bytes: u64,
    depth: u16,
}

/// Where a request's header and status are; its data is elsewhere.
struct Slot {
    header: *mut u64,
    status: *mut u8,
}

struct Bench {
    device: Device,
    slots: Vec<Slot>,
    kicks: u64,
}

fn parse(text: &'static str) -> Option<Job> {
    let mut parts = text.split(':');
    let name = parts.next()?;
    let (random, write) = match name {
        "randread" => (true, false),
        "randwrite" => (true, true),
        "seqread" => (false, false),
        "seqwrite" => (false, true),
        _ => return None,
    };
    Some(Job { name, write, random, bytes: parts.next()?.parse().ok()?, depth: parts.next()?.parse().ok()? })
}

impl Bench {
    /// Start the device and write each slot's three descriptors: they never change during a job.
    fn start(found: &rt::virtio::Found, job: &Job) -> Option<Self> {
        let mut device = Device::start(found, F_EVENT_IDX, 256);
        let ring = &mut device.rings[0];
        if ring.size < 3 * job.depth || job.bytes == 0 {
            return None;
        }
        let area = pages(1 + u64::from(job.depth) * 64 / 4096);
        let mut slots = Vec::new();
        for slot in 0..job.depth {
            let header = area.wrapping_add(64 * usize::from(slot));
            let data = pages(job.bytes.div_ceil(4096)) as u64;
            let (first, at) = (3 * slot, header as u64);
            let way = if job.write { 0 } else { WRITE };
            ring.set(first, Descriptor { addr: at, len: 16, flags: NEXT, next: first + 1 });
            ring.set(
                first + 1,
                Descriptor { addr: data, len: job.bytes as u32, flags: NEXT | way, next: first + 2 },
            );
            ring.set(first + 2, Descriptor { addr: at + 16, len: 1, flags: WRITE, next: 0 });
            slots.push(Slot { header: header.cast(), status: header.wrapping_add(16) });
        }
        ring.no_interrupts();
        Some(Self { device, slots, kicks: 0 })
    }

    fn submit(&mut self, slot: u16, kind: u32, sector: u64) {
        let Slot { header, status } = self.slots[usize::from(slot)];
        // SAFETY: the slot's own memory, and its last request is over.
        unsafe {
            header.write_volatile(kind.into());
            header.add(1).write_volatile(sector);
            status.write_volatile(0xff);
        }
        self.device.rings[0].offer(3 * slot);
    }

    fn kick(&mut self) {
        if self.device.rings[0].publish(0) {
            self.kicks += 1;
            self.device.transport.notify(0);
        }
    }

    /// Requests one after the other until `end` (in ticks), then wait for the last. Returns how many there were, or the
    /// status of one that failed.
    fn work(&mut self, job: &Job, span: u64, end: u64) -> Result<u64, u8> {
        let places = span / job.bytes;
        let mut random = Random(cpu::ticks());
        let mut turn = 0;
        let mut next = || {
            turn += 1;
            let place = if job.random { random.next_u64() } else { turn - 1 } % places;
            place * (job.bytes / 512)
        };
        let kind = if job.write { OUT } else { IN };
        for slot in 0..job.depth {
            self.submit(slot, kind, next());
        }
        self.kick();
        let (mut done, mut under_way) = (0, job.depth);
        while under_way > 0 {
            let mut again = false;
            while let Some((head, _)) = self.device.rings[0].take() {
                let slot = head as u16 / 3;
                // SAFETY: the slot's own memory; the device has given it back.
                let status = unsafe { self.slots[usize::from(slot)].status.read_volatile() };
                if status != 0 {
                    return Err(status);
                }
                done += 1;
                if cpu::ticks() < end {
                    self.submit(slot, kind, next());
                    again = true;
                } else {
                    under_way -= 1;
                }
            }
            if again {
                self.device.rings[0].no_interrupts();
                self.kick();
            } else {
                core::hint::spin_loop();
            }
        }
        Ok(done)
    }
}

fn measure(found: &rt::virtio::Found, job: &Job, millis: u64) {
    let Some(mut bench) = Bench::start(found, job) else {
        println!("FAIL {}: the queue is too small", job.name);
        return;
    };
    let words = [0, 4].map(|offset| bench.device.transport.read_config_space::<u32>(offset).unwrap_or(0));
    let disk = 512 * (u64::from(words[1]) << 32 | u64::from(words[0]));
    let span = pvh::number("span").unwrap_or(disk).min(disk);
    if span < job.bytes {
        println!("FAIL {}: the disk is smaller than a request", job.name);
        return;
    }
    let start = clock::nanos();
    match bench.work(job, span, cpu::ticks() + millis * clock::khz()) {
        Ok(ios) => {
            let nanos = clock::nanos() - start;
            let rate = |what: u64| (u128::from(what) * 1_000_000_000 / u128::from(nanos)) as u64;
            let Job { name, bytes, depth, .. } = job;
            let (iops, kib) = (rate(ios), rate(ios * bytes / 1024));
            println!(
                "result {name} bs {bytes} depth {depth} ios {ios} nanos {nanos} iops {iops} \
                kib-per-second {kib} kicks {}",
                bench.kicks
            );
        }
        Err(status) => println!("FAIL {}: status {status}", job.name),
    }
}

fn run() {
    let Some(found) = find(DeviceType::Block).first().copied() else {
        println!("FAIL no disk");
        return;
    };
    let millis = pvh::number("ms").unwrap_or(1000);
    let jobs =
        pvh::arg("jobs").unwrap_or("randread:4096:1,randwrite:4096:1,randread:4096:32,randwrite:4096:32");
    println!("tsc-khz {}", clock::khz());
    for text in jobs.split(',') {
        let (before, _) = rt::memory::free();
        match parse(text) {
            Some(job) => measure(&found, &job, millis),
            None => println!("FAIL no such job: {text}"),
        }
        // SAFETY: nothing is kept from one job to the next, and no request is under way.
        unsafe { rt::memory::release(before) };
    }
    println!("done");
}
