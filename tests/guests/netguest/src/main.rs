//! Network throughput from ring 3, by polling.
//!
//! `jobs=tx:60,rx:60,txgso:65226,rxgso` on the command line: which way, and bytes a frame. `gso` frames are TCP segments for the
//! host to cut, or to hand over whole. Each job runs for `ms=1000` on the first network device and prints one line:
//! `result tx bytes-per-frame 60 frames N bytes B nanos T kicks K`.
//! A job that receives counts from its first frame on; it gives up if none comes.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;

use rt::memory::pages;
use rt::ring::{Descriptor, Device, F_EVENT_IDX, WRITE};
use rt::virtio::find;
use rt::{clock, cpu, println, pvh};
use virtio_drivers::transport::{DeviceType, Transport};

rt::guest_main!(run);

/// Features of virtio-net (virtio 1.2, 5.1.3).
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_HOST_TSO4: u64 = 1 << 11;
const F_MRG_RXBUF: u64 = 1 << 15;

const RX: usize = 0;
const TX: usize = 1;
/// The length of a frame's header (5.1.6).
const HEADER: u64 = 12;
/// Ethernet, IPv4 and TCP without options.
const HEADERS: u16 = 14 + 20 + 20;
/// What a segment carries after it was cut.
const SEGMENT: u16 = 1448;
/// A place for a received piece of a frame.
const ROOM: u64 = 4096;
/// How long a receiver waits for the first frame.
const PATIENCE_MS: u64 = 10_000;

/// What came of a job.
struct Count {
    frames: u64,
    bytes: u64,
    nanos: u64,
    kicks: u64,
}

/// Ethernet from one locally administered address to another that nobody has, and what looks like TCP over IPv4.
fn frame(at: *mut u8, len: u64, gso: bool) {
    let mut bytes: Vec<u8> = Vec::new();
    let header: [u8; HEADER as usize] = if gso {
        let [segment, start] = [SEGMENT, HEADERS].map(u16::to_le_bytes);
        // NEEDS_CSUM, TCPv4; the checksum of TCP starts at 34 and is 16 bytes in.
        [1, 1, start[0], start[1], segment[0], segment[1], 34, 0, 16, 0, 0, 0]
    } else {
        [0; HEADER as usize]
    };
    bytes.extend(header);
    bytes.extend([0x52, 0x54, 0, 0xee, 0xee, 0xee, 0x52, 0x54, 0, 0xee, 0xee, 0xef, 8, 0]);
    let total = ((len - 14) as u16).to_be_bytes();
    bytes.extend([0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 9]);
    bytes.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    for (index, byte) in bytes.iter().enumerate() {
        // SAFETY: the frame has at least its headers' length, in pages of its own.
        unsafe { at.wrapping_add(index).write_volatile(*byte) };
    }
}

fn kick(device: &mut Device, queue: usize, kicks: &mut u64) {
    if device.rings[queue].publish(0) {
        *kicks += 1;
        device.transport.notify(queue as u16);
    }
}

/// Send frames of `len` bytes, the ring always full.
fn send(device: &mut Device, len: u64, gso: bool, millis: u64) -> Count {
    let slots = if gso { 64 } else { 256 }.min(device.rings[TX].size);
    for slot in 0..slots {
        let at = pages((HEADER + len).div_ceil(4096));
        frame(at, len, gso);
        let descriptor = Descriptor { addr: at as u64, len: (HEADER + len) as u32, flags: 0, next: 0 };
        device.rings[TX].set(slot, descriptor);
        device.rings[TX].offer(slot);
    }
    let (mut frames, mut kicks) = (0, 0);
    let start = clock::nanos();
    let end = cpu::ticks() + millis * clock::khz();
    device.rings[TX].no_interrupts();
    kick(device, TX, &mut kicks);
    while cpu::ticks() < end {
        let mut again = false;
        while let Some((head, _)) = device.rings[TX].take() {
            frames += 1;
            device.rings[TX].offer(head as u16);
            again = true;
        }
        if again {
            device.rings[TX].no_interrupts();
            kick(device, TX, &mut kicks);
        } else {
            core::hint::spin_loop();
        }
    }
    Count { frames, bytes: frames * len, nanos: clock::nanos() - start, kicks }
}

/// Receive what comes.
fn receive(device: &mut Device, millis: u64) -> Count {
    let slots = 256.min(device.rings[RX].size);
    for slot in 0..slots {
        let addr = pages(ROOM / 4096) as u64;
        device.rings[RX].set(slot, Descriptor { addr, len: ROOM as u32, flags: WRITE, next: 0 });
        device.rings[RX].offer(slot);
    }
    let (mut frames, mut bytes, mut kicks, mut parts) = (0_u64, 0_u64, 0, 0_u16);
    device.rings[RX].no_interrupts();
    kick(device, RX, &mut kicks);
    println!("ready");
    let mut counting = false;
    let mut start = clock::nanos();
    let mut end = cpu::ticks() + PATIENCE_MS * clock::khz();
    while cpu::ticks() < end {
        let mut again = false;
        while let Some((head, len)) = device.rings[RX].take() {
            let slot = head as u16;
            if parts == 0 {
                let at = device.rings[RX].table() + 16 * u64::from(slot);
                // SAFETY: a descriptor of this ring, and the buffer that it names: a header begins there.
                let count = unsafe {
                    let room = (at as *const u64).read_volatile();
                    ((room + 10) as *const u16).read_volatile()
                };
                parts = count.max(1);
                bytes = bytes.wrapping_sub(HEADER);
                frames += 1;
            }
            parts -= 1;
            bytes = bytes.wrapping_add(u64::from(len));
            device.rings[RX].offer(slot);
            again = true;
        }
        if again {
            if !counting {
                counting = true;
                // The first have come: what is counted begins with the next.
                (start, frames, bytes) = (clock::nanos(), 0, 0);
                end = cpu::ticks() + millis * clock::khz();
            }
            device.rings[RX].no_interrupts();
            kick(device, RX, &mut kicks);
        } else {
            core::hint::spin_loop();
        }
    }
    Count { frames, bytes, nanos: clock::nanos() - start, kicks }
}

fn job(text: &'static str, millis: u64) -> Option<()> {
    let found = find(DeviceType::Network).first().copied()?;
    let (name, len) = text.split_once(':').unwrap_or((text, "60"));
    let len: u64 = len.parse().ok().filter(|len| (60..=65_550).contains(len))?;
    let wanted = F_EVENT_IDX | F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_HOST_TSO4 | F_MRG_RXBUF;
    let mut device = Device::start(&found, wanted, 256);
    let count = match name {
        "tx" => send(&mut device, len, false, millis),
        "txgso" => send(&mut device, len, true, millis),
        "rx" => receive(&mut device, millis),
        _ => return None,
    };
    let Count { frames, bytes, nanos, kicks } = count;
    println!("result {name} bytes-per-frame {len} frames {frames} bytes {bytes} nanos {nanos} kicks {kicks}");
    // The device lets go of the frames.
    let _ = Device::prepare(&found, 0, 256);
    Some(())
}

fn run() {
    let millis = pvh::number("ms").unwrap_or(1000);
    println!("tsc-khz {}", clock::khz());
    for text in pvh::arg("jobs").unwrap_or("tx:60").split(',') {
        let (before, _) = rt::memory::free();
        if job(text, millis).is_none() {
            println!("FAIL no network device, or no such job: {text}");
        }
        // SAFETY: nothing is kept from one job to the next, and the device was reset.
        unsafe { rt::memory::release(before) };
    }
    println!("done");
}
