//! virtio-blk: by the `virtio-drivers` crate where it can do it, else by hand. Each test does all its disks, in the
//! order in which they are found; the host makes the contents and checks what is left.
//!
//! The pattern of a sector is `Random(seed + sector)`: the host wrote it with seed 0, the guest writes with 0x1000.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Display;

use rt::entropy::Random;
use rt::memory::{Machine, pages};
use rt::ring::{Buffer, Device, F_EVENT_IDX, F_INDIRECT};
use rt::virtio::{Found, find};
use rt::{clock, cpu, println, pvh};
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::{DeviceType, SomeTransport, Transport};

use crate::{Outcome, check};

/// Sectors that the host filled.
const GIVEN: usize = 64;
/// Where the guest writes.
const WRITTEN: usize = 64;
/// What it discards.
pub const DISCARDED: u64 = 128;
/// What it zeroes.
pub const ZEROED: u64 = 192;

/// Request types (virtio 1.2, 5.2.6).
pub const IN: u32 = 0;
/// Write.
pub const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Features (5.2.3).
pub const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// An error as a test's reason.
pub fn text(error: impl Display) -> String {
    alloc::format!("{error}")
}

fn disks() -> Result<Vec<Found>, String> {
    let disks = find(DeviceType::Block);
    check!(!disks.is_empty(), "no disk");
    Ok(disks)
}

fn driver(found: &Found) -> Result<VirtIOBlk<Machine, SomeTransport<'static>>, String> {
    VirtIOBlk::new(found.transport()).map_err(text)
}

fn fill(seed: u64, first: usize, bytes: &mut [u8]) {
    for (index, sector) in bytes.chunks_mut(512).enumerate() {
        Random(seed + (first + index) as u64).fill(sector);
    }
}

/// The host's sectors are there; what is written can be read, alone and several at a time, and is flushed.
pub fn contents() -> Outcome {
    for found in disks()? {
        let mut disk = driver(&found)?;
        println!("disk {:?} sectors {}", found.place, disk.capacity());
        let mut id = [0; 20];
        let len = disk.device_id(&mut id).map_err(text)?;
        println!("serial {}", core::str::from_utf8(&id[..len]).unwrap_or("?"));

        let mut want = vec![0; 512 * GIVEN];
        fill(0, 0, &mut want);
        let mut seen = vec![0; want.len()];
        disk.read_blocks(0, &mut seen).map_err(text)?;
        check!(seen == want, "the first sectors are not the host's");
        let mut sector = [0; 512];
        disk.read_blocks(5, &mut sector).map_err(text)?;
        check!(sector == want[5 * 512..6 * 512], "sector 5 is not the host's");

        fill(0x1000, WRITTEN, &mut want);
        for index in 0..GIVEN / 2 {
            disk.write_blocks(WRITTEN + index, &want[index * 512..(index + 1) * 512]).map_err(text)?;
        }
        disk.write_blocks(WRITTEN + GIVEN / 2, &want[GIVEN / 2 * 512..]).map_err(text)?;
        disk.flush().map_err(text)?;
        disk.read_blocks(WRITTEN, &mut seen).map_err(text)?;
        check!(seen == want, "what was written is not what is read");
        let end = disk.capacity() as usize;
        check!(disk.read_blocks(end, &mut sector).is_err(), "a sector beyond the end can be read");
    }
    Ok(())
}

/// One megabyte in one request, many segments, and through an indirect table.
pub fn large() -> Outcome {
    const LEN: usize = 1 << 20;
    for found in disks()? {
        for features in [0, F_INDIRECT, F_INDIRECT | F_EVENT_IDX] {
            let mut disk = Disk::start(&found, features | F_SEG_MAX | F_BLK_SIZE);
            let data = pages(LEN as u64 / 4096);
            // SAFETY: pages of our own; the device is idle.
            let bytes = unsafe { core::slice::from_raw_parts_mut(data, LEN) };
            fill(0x1000 + features, 1024, bytes);
            let want = bytes.to_vec();
            let pieces: Vec<Buffer> =
                (0..32).map(|piece| (data as u64 + piece * 32768, 32768, false)).collect();
            check!(disk.request(OUT, 1024, &pieces)? == 0, "the large write failed");
            bytes.fill(0);
            let pieces: Vec<Buffer> = pieces.into_iter().map(|(at, len, _)| (at, len, true)).collect();
            check!(disk.request(IN, 1024, &pieces)? == 0, "the large read failed");
            // SAFETY: as above; the device wrote it behind the compiler's back.
            let seen = unsafe { core::slice::from_raw_parts(core::hint::black_box(data), LEN) };
            check!(seen == want, "the large read is not what was written (features {features:#x})");
        }
    }
    Ok(())
}

/// Discard, and write zeroes.
pub fn discard() -> Outcome {
    for found in disks()? {
        let mut disk = Disk::start(&found, F_DISCARD | F_WRITE_ZEROES | F_FLUSH);
        let features = disk.device.features;
        println!("discard {} write-zeroes {}", features & F_DISCARD != 0, features & F_WRITE_ZEROES != 0);
        for (kind, first) in [(DISCARD, DISCARDED), (WRITE_ZEROES, ZEROED)] {
            let range = pages(1);
            // SAFETY: a page of our own: sector, how many, flags.
            unsafe {
                range.cast::<u64>().write_volatile(first);
                range.add(8).cast::<u32>().write_volatile(32);
                range.add(12).cast::<u32>().write_volatile(0);
            }
            let status = disk.request(kind, 0, &[(range as u64, 16, false)])?;
            check!(status == 0, "request {kind} ended with status {status}");
        }
        check!(disk.request(FLUSH, 0, &[])? == 0, "the flush failed");
        let data = pages(4);
        check!(disk.request(IN, ZEROED, &[(data as u64, 16384, true)])? == 0, "the read failed");
        // SAFETY: pages of our own; the device is idle.
        let seen = unsafe { core::slice::from_raw_parts(core::hint::black_box(data), 16384) };
        check!(seen.iter().all(|&byte| byte == 0), "zeroes were written, something else is read");
    }
    Ok(())
}

/// A read-only disk says so and refuses to be written.
pub fn readonly() -> Outcome {
    for found in disks()? {
        let mut disk = Disk::start(&found, F_RO);
        check!(disk.device.features & F_RO != 0, "the disk does not say that it is read-only");
        let data = pages(1) as u64;
        check!(disk.request(IN, 0, &[(data, 512, true)])? == 0, "it cannot be read");
        let status = disk.request(OUT, 0, &[(data, 512, false)])?;
        check!(status == 1, "a write ended with status {status}");
    }
    Ok(())
}

/// Every queue works, and as many as the configuration space says are there.
pub fn queues() -> Outcome {
    for found in disks()? {
        let mut disk = Disk::start(&found, F_MQ | F_EVENT_IDX);
        let count = disk.device.rings.len() as u16;
        let said: u16 = disk.device.transport.read_config_space(34).map_err(text)?;
        println!("queues {count}");
        check!(
            disk.device.features & F_MQ == 0 || said == count,
            "{said} queues are said to be there, {count} are"
        );
        let data = pages(1) as u64;
        for queue in (0..count).chain(0..count) {
            disk.queue = queue;
            check!(disk.request(IN, 1, &[(data, 512, true)])? == 0, "queue {queue} cannot read");
        }
    }
    Ok(())
}

/// Requests that cannot be done end with an error status and leave the disk working.
pub fn errors() -> Outcome {
    for found in disks()? {
        let mut disk = Disk::start(&found, 0);
        let data = pages(2) as u64;
        let sectors = disk.sectors()?;
        for (kind, sector, len, write, want) in [
            (IN, sectors, 512, true, 1),
            (IN, sectors - 1, 1024, true, 1),
            (IN, u64::MAX, 512, true, 1),
            (IN, u64::MAX / 512, 512, true, 1),
            (OUT, sectors, 512, false, 1),
            (OUT, sectors - 1, 1024, false, 1),
            (77, 0, 512, true, 2),
        ] {
            let status = disk.request(kind, sector, &[(data, len, write)])?;
            check!(status == want, "request {kind} of {len} at {sector:#x} ended with status {status}");
            check!(disk.request(IN, 0, &[(data, 512, true)])? == 0, "the disk no longer works");
        }
    }
    Ok(())
}

/// A host that has no room for what lies behind `full=` says so for each write there, and everything else goes on.
pub fn full() -> Outcome {
    let full = pvh::number("full").ok_or("needs full=SECTOR on the command line")?;
    for found in disks()? {
        let mut disk = Disk::start(&found, F_FLUSH);
        let data = pages(1) as u64;
        for round in 0..100 {
            for (kind, sector, want) in
                [(OUT, full, 1), (OUT, full - 1, 0), (IN, full, 0), (OUT, disk.sectors()? - 1, 1)]
            {
                let status = disk.request(kind, sector, &[(data, 512, kind == IN)])?;
                check!(
                    status == want,
                    "in round {round}, request {kind} at {sector} ended with status {status}"
                );
            }
        }
        check!(disk.request(FLUSH, 0, &[])? == 0, "the flush failed");
    }
    Ok(())
}

/// Twelve reads, of which the host lets ten go at once: the time they took is said. Then a reset while another waits.
pub fn throttled() -> Outcome {
    for found in disks()? {
        let mut disk = Disk::start(&found, 0);
        let data = pages(1) as u64;
        let start = cpu::ticks();
        for request in 0..12 {
            check!(disk.request(IN, 0, &[(data, 512, true)])? == 0, "read {request} failed");
        }
        println!("took-ms {}", (cpu::ticks() - start) / clock::khz());
        let header = disk.header as u64;
        let ring = &mut disk.device.rings[0];
        let head = ring.chain(&[(header, 16, false), (data, 512, true), (header + 16, 1, true)]);
        ring.offer(head);
        ring.publish(0);
        disk.device.transport.notify(0);
        let mut disk = Disk::start(&found, 0);
        check!(disk.request(IN, 0, &[(data, 512, true)])? == 0, "the disk no longer works");
    }
    Ok(())
}

/// A disk driven by hand, one request at a time.
pub struct Disk {
    /// The device.
    pub device: Device,
    /// Which queue requests go to.
    pub queue: u16,
    header: *mut u8,
}

impl Disk {
    /// Start it with those of `features` that it offers.
    pub fn start(found: &Found, features: u64) -> Self {
        let mut disk = Self::prepare(found, features);
        disk.go();
        disk
    }

    /// As far as before the queues are set up.
    pub fn prepare(found: &Found, features: u64) -> Self {
        Self { device: Device::prepare(found, features, 256), queue: 0, header: pages(1) }
    }

    /// Set the queues up and start the device.
    pub fn go(&mut self) {
        for index in 0..self.device.rings.len() as u16 {
            self.device.set_queue(index);
        }
        self.device.go();
    }

    /// How large it says it is.
    pub fn sectors(&self) -> Result<u64, String> {
        let low: u32 = self.device.transport.read_config_space(0).map_err(text)?;
        let high: u32 = self.device.transport.read_config_space(4).map_err(text)?;
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// Header, `data`, status: as one chain, or one indirect table where that was agreed on. Returns the status.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> Result<u8, String> {
        let at = self.header as u64;
        // SAFETY: a page of our own that the device only looks at during a request.
        unsafe {
            self.header.cast::<u32>().write_volatile(kind);
            self.header.add(4).cast::<u32>().write_volatile(0);
            self.header.add(8).cast::<u64>().write_volatile(sector);
            self.header.add(16).write_volatile(0xff);
        }
        let mut buffers = vec![(at, 16, false)];
        buffers.extend_from_slice(data);
        buffers.push((at + 16, 1, true));
        let done = if self.device.features & F_INDIRECT != 0 {
            let table = indirect(&buffers);
            self.indirect_request(table, buffers.len())
        } else {
            self.device.request(self.queue, &buffers)
        };
        check!(done.is_some(), "no answer to request {kind} at sector {sector:#x}");
        // SAFETY: as above.
        Ok(unsafe { self.header.add(16).read_volatile() })
    }

    fn indirect_request(&mut self, table: u64, count: usize) -> Option<u32> {
        let ring = &mut self.device.rings[usize::from(self.queue)];
        let head = ring.chain(&[(table, 0, false)]);
        let len = 16 * count as u32;
        ring.set(head, rt::ring::Descriptor { addr: table, len, flags: rt::ring::INDIRECT, next: 0 });
        ring.offer(head);
        if ring.publish(0) {
            self.device.transport.notify(self.queue);
        }
        self.device.used(self.queue, clock::PATIENCE)
    }
}

/// An indirect table of these buffers. Its address.
pub fn indirect(buffers: &[Buffer]) -> u64 {
    use rt::ring::{Descriptor, NEXT, WRITE};
    let table = pages(1).cast::<Descriptor>();
    for (index, &(addr, len, write)) in buffers.iter().enumerate() {
        let next = if index + 1 < buffers.len() { NEXT } else { 0 };
        let flags = next | if write { WRITE } else { 0 };
        // SAFETY: a page of our own, and at most 256 buffers are ever given.
        unsafe { table.add(index).write_volatile(Descriptor { addr, len, flags, next: index as u16 + 1 }) };
    }
    table as u64
}
