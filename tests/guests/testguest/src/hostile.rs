//! A guest that breaks every rule of the virtqueue, on every queue of every device, over whichever transport there is.
//!
//! After each attack the device is asked whether it wants a reset (it must, within a second, where it can know), is
//! reset, and must then work.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use rt::entropy::Random;
use rt::memory::pages;
use rt::ring::{Buffer, Descriptor, Device, F_EVENT_IDX, F_INDIRECT, INDIRECT, NEXT, WRITE};
use rt::virtio::{Found, Place, devices};
use rt::{clock, println};
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

use crate::balloon::{self, is_balloon};
use crate::block::{Disk, IN, OUT, indirect};
use crate::{Outcome, check};

/// An address with nothing behind it: the hole below 4 GiB.
const HOLE: u64 = 0xd000_0000;

/// An attack on queue `queue` of a running device: makes its requests available.
struct Attack {
    name: &'static str,
    features: u64,
    run: fn(&mut Device, u16, u64),
}

const fn attack(name: &'static str, features: u64, run: fn(&mut Device, u16, u64)) -> Attack {
    Attack { name, features, run }
}

fn one(device: &mut Device, queue: u16, descriptor: Descriptor) {
    let ring = &mut device.rings[usize::from(queue)];
    ring.set(0, descriptor);
    ring.offer(0);
}

fn many(device: &mut Device, queue: u16, descriptors: &[(u64, u32, u16, u16)]) {
    let ring = &mut device.rings[usize::from(queue)];
    for (index, &(addr, len, flags, next)) in descriptors.iter().enumerate() {
        ring.set(index as u16, Descriptor { addr, len, flags, next });
    }
    ring.offer(0);
}

fn table(device: &mut Device, queue: u16, at: u64, len: u32, flags: u16) {
    one(device, queue, Descriptor { addr: at, len, flags: INDIRECT | flags, next: 1 });
}

/// Each gets a page of its own to name as a buffer.
const ATTACKS: &[Attack] = &[
    attack("address in a hole", 0, |d, q, _| many(d, q, &[(HOLE, 16, 0, 0)])),
    attack("writable address in a hole", 0, |d, q, _| many(d, q, &[(HOLE, 16, WRITE, 0)])),
    attack("address beyond all memory", 0, |d, q, _| many(d, q, &[(1 << 52, 16, 0, 0)])),
    attack("address that wraps", 0, |d, q, _| many(d, q, &[(u64::MAX - 7, 16, WRITE, 0)])),
    attack("range that leaves memory", 0, |d, q, _| {
        let end = rt::pvh::ram().iter().map(|&(_, end)| end).max().unwrap_or(0);
        many(d, q, &[(end - 8, 16, WRITE, 0)]);
    }),
    attack("the second address bad", 0, |d, q, at| many(d, q, &[(at, 16, NEXT, 1), (HOLE, 512, WRITE, 0)])),
    attack("chain on itself", 0, |d, q, at| many(d, q, &[(at, 16, NEXT, 0)])),
    attack("chain in a circle", 0, |d, q, at| many(d, q, &[(at, 16, NEXT, 1), (at, 16, NEXT, 0)])),
    attack("writable circle", 0, |d, q, at| {
        many(d, q, &[(at, 16, NEXT | WRITE, 1), (at, 16, NEXT | WRITE, 0)])
    }),
    attack("no length", 0, |d, q, at| many(d, q, &[(at, 0, 0, 0)])),
    attack("no writable length", 0, |d, q, at| many(d, q, &[(at, 16, NEXT, 1), (at, 0, WRITE, 0)])),
    attack("huge length", 0, |d, q, at| many(d, q, &[(at, u32::MAX, 0, 0)])),
    attack("huge writable length", 0, |d, q, at| many(d, q, &[(at, u32::MAX, WRITE, 0)])),
    attack("readable after writable", 0, |d, q, at| {
        many(d, q, &[(at, 16, NEXT, 1), (at, 512, NEXT | WRITE, 2), (at, 512, 0, 0)]);
    }),
    attack("head out of range", 0, |d, q, _| {
        let size = d.rings[usize::from(q)].size;
        d.rings[usize::from(q)].offer(size);
    }),
    attack("head far out of range", 0, |d, q, _| d.rings[usize::from(q)].offer(0xffff)),
    attack("next out of range", 0, |d, q, at| many(d, q, &[(at, 16, NEXT, 0x8000)])),
    attack("indirect though not agreed", 0, |d, q, at| table(d, q, at, 16, 0)),
    attack("indirect of no length", F_INDIRECT, |d, q, at| table(d, q, at, 0, 0)),
    attack("indirect of odd length", F_INDIRECT, |d, q, at| table(d, q, at, 17, 0)),
    attack("indirect in a hole", F_INDIRECT, |d, q, _| table(d, q, HOLE, 64, 0)),
    attack("indirect that wraps", F_INDIRECT, |d, q, _| table(d, q, u64::MAX - 15, 64, 0)),
    attack("indirect with more", F_INDIRECT, |d, q, at| table(d, q, indirect(&[(at, 16, false)]), 16, NEXT)),
    attack("indirect in indirect", F_INDIRECT, |d, q, at| {
        let inner = indirect(&[(at, 16, false)]);
        let outer = indirect(&[(inner, 16, false)]);
        // SAFETY: the first descriptor's flags, in a page of our own.
        unsafe { ((outer + 12) as *mut u16).write_volatile(INDIRECT) };
        table(d, q, outer, 16, 0);
    }),
    attack("indirect in a circle", F_INDIRECT, |d, q, at| {
        let inner = indirect(&[(at, 16, false), (at, 16, false)]);
        // SAFETY: the second descriptor's flags and next, in a page of our own.
        unsafe { ((inner + 28) as *mut u32).write_volatile(u32::from(NEXT)) };
        table(d, q, inner, 32, 0);
    }),
    attack("indirect of huge length", F_INDIRECT, |d, q, at| {
        table(d, q, indirect(&[(at, 16, false)]), 0xffff_fff0, 0);
    }),
];

/// Does the device do what it is for?
fn works(found: &Found) -> Outcome {
    let page = pages(1) as u64;
    let (queue, buffers): (u16, Vec<Buffer>) = match found.kind {
        DeviceType::Block => {
            let status = Disk::start(found, 0).request(IN, 1, &[(page, 512, true)])?;
            check!(status == 0, "a read ends with {status}");
            return Ok(());
        }
        DeviceType::EntropySource => (0, [(page, 64, true)].into()),
        DeviceType::Console => (1, [(page, 1, false)].into()),
        _ if is_balloon(found) => return balloon::works(found),
        _ => return Ok(()),
    };
    // SAFETY: a page of our own: what the console is to print.
    unsafe { (page as *mut u8).write_volatile(b'.') };
    let done = Device::start(found, 0, 64).request(queue, &buffers);
    check!(done.is_some(), "no answer");
    Ok(())
}

/// Whether the device looks at what this queue offers at once: a console's input waits for the host to type, and a balloon's
/// queues from the third on are for features that these tests do not agree on.
fn is_served(found: &Found, queue: u16) -> bool {
    match found.kind {
        DeviceType::Console => queue % 2 == 1,
        _ if is_balloon(found) => queue < 2,
        _ => true,
    }
}

fn expect_reset(found: &Found, device: &Device, queue: u16) -> Outcome {
    let served = is_served(found, queue);
    let asks = clock::until(if served { clock::PATIENCE } else { 5 }, || device.needs_reset());
    check!(
        asks || !served,
        "the device does not ask for a reset: status {:?}",
        device.transport.get_status()
    );
    Ok(())
}

fn recovers(found: &Found) -> Outcome {
    let mut transport = found.transport();
    transport.set_status(DeviceStatus::empty());
    let reset = clock::until(clock::PATIENCE, || transport.get_status().is_empty());
    check!(reset, "the device does not reset: {:?}", transport.get_status());
    works(found)
}

fn each_queue(attack: impl Fn(&Found, u16) -> Result<(), String>) -> Outcome {
    let mut count = 0;
    for found in devices() {
        works(&found).map_err(|why| format!("{:?} before any attack: {why}", found.kind))?;
        let queues = Device::prepare(&found, 0, 64).rings.len() as u16;
        for queue in 0..queues {
            attack(&found, queue).map_err(|why| format!("{:?} queue {queue}: {why}", found.kind))?;
            count += 1;
        }
    }
    println!("queues-attacked {count}");
    check!(count != 0, "no devices");
    Ok(())
}

/// Run `attack` with memory that is given back.
fn alone(attack: impl FnOnce() -> Outcome) -> Outcome {
    let (before, _) = rt::memory::free();
    let outcome = attack();
    if outcome.is_ok() {
        // SAFETY: nothing but the outcome, which holds no memory, comes out; devices were reset.
        unsafe { rt::memory::release(before) };
    }
    outcome
}

/// Malformed chains.
pub fn queues() -> Outcome {
    each_queue(|found, queue| {
        for attack in ATTACKS {
            let run = || {
                let mut device = Device::start(found, attack.features, 64);
                (attack.run)(&mut device, queue, pages(1) as u64);
                device.rings[usize::from(queue)].publish(0);
                device.transport.notify(queue);
                expect_reset(found, &device, queue)?;
                recovers(found)
            };
            alone(run).map_err(|why| format!("{}: {why}", attack.name))?;
        }
        Ok(())
    })
}

/// Rings that are not in memory, indexes that run ahead.
pub fn rings() -> Outcome {
    each_queue(|found, queue| {
        for part in 0..6 {
            let bad = if part < 3 { HOLE } else { u64::MAX - 4095 };
            alone(|| misplaced(found, queue, part % 3, bad))
                .map_err(|why| format!("ring part {part}: {why}"))?;
        }
        for ahead in [64, 65, 0x7fff, 0xfffe] {
            alone(|| run_ahead(found, queue, ahead)).map_err(|why| format!("index {ahead} ahead: {why}"))?;
        }
        Ok(())
    })
}

/// A queue one of whose parts (table, available ring, used ring) is at `bad`.
fn misplaced(found: &Found, queue: u16, part: usize, bad: u64) -> Outcome {
    let mut device = Device::prepare(found, F_EVENT_IDX, 64);
    for index in (0..device.rings.len() as u16).filter(|&index| index != queue) {
        device.set_queue(index);
    }
    let ring = &device.rings[usize::from(queue)];
    let mut at = [ring.table(), ring.driver(), ring.device()];
    at[part] = bad;
    device.transport.queue_set(queue, ring.size.into(), at[0], at[1], at[2]);
    device.go();
    let page = pages(1) as u64;
    many(&mut device, queue, &[(page, 16, NEXT, 1), (page, 512, WRITE, 0)]);
    device.rings[usize::from(queue)].publish(0);
    device.transport.notify(queue);
    // A device may also have refused the queue, and then it never looks.
    clock::until(10, || device.needs_reset());
    recovers(found)
}

/// An available index that is `ahead` of what there is.
fn run_ahead(found: &Found, queue: u16, ahead: u16) -> Outcome {
    let mut device = Device::start(found, 0, 64);
    let page = pages(1) as u64;
    many(&mut device, queue, &[(page, 16, 0, 0)]);
    device.rings[usize::from(queue)].publish(ahead);
    device.transport.notify(queue);
    expect_reset(found, &device, queue)?;
    recovers(found)
}

/// Good requests, and a reset while they are under way.
pub fn reset_in_flight() -> Outcome {
    each_queue(|found, queue| {
        let mut random = Random(u64::from(queue));
        for _ in 0..30 {
            alone(|| interrupted(found, queue, random.next_u64() % 2000))?;
        }
        recovers(found)
    })
}

/// Sixteen requests, and `patience` rounds later a reset.
fn interrupted(found: &Found, queue: u16, patience: u64) -> Outcome {
    let mut device = Device::start(found, F_EVENT_IDX, 64);
    let data = pages(32) as u64;
    for slot in 0..16 {
        let buffers = request(found, queue, data, slot);
        let ring = &mut device.rings[usize::from(queue)];
        let head = ring.chain(&buffers);
        ring.offer(head);
        if slot % 5 == 0 {
            ring.publish(0);
            device.transport.notify(queue);
        }
    }
    device.rings[usize::from(queue)].publish(0);
    device.transport.notify(queue);
    for _ in 0..patience {
        core::hint::spin_loop();
    }
    device.transport.set_status(DeviceStatus::empty());
    let reset = clock::until(clock::PATIENCE, || device.transport.get_status().is_empty());
    check!(reset, "the device does not reset: {:?}", device.transport.get_status());
    Ok(())
}

/// A well-formed request for slot `slot`.
fn request(found: &Found, queue: u16, data: u64, slot: u64) -> Vec<Buffer> {
    let page = data + 4096 * (slot + 1);
    match found.kind {
        DeviceType::Block => {
            let header = data + 64 * slot;
            let kind = if slot.is_multiple_of(3) { OUT } else { IN };
            // SAFETY: the first page is ours; sector 512 and up belong to nobody.
            unsafe {
                (header as *mut u64).write_volatile(kind.into());
                ((header + 8) as *mut u64).write_volatile(512 + slot);
            }
            [(header, 16, false), (page, 512, kind == IN), (header + 16, 1, true)].into()
        }
        DeviceType::Console if queue % 2 == 1 => [(page, 1, false)].into(),
        _ => [(page, 64, true)].into(),
    }
}

/// Registers: status in the wrong order, features that were not offered, queues that are not there, odd widths.
pub fn registers() -> Outcome {
    for found in devices() {
        let mut device = Device::prepare(&found, 0, 64);
        let count = device.rings.len() as u16;
        device.transport.write_driver_features(u64::MAX);
        let wanted = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        device.transport.set_status(DeviceStatus::empty());
        device.transport.set_status(wanted);
        device.transport.write_driver_features(u64::MAX);
        device.transport.set_status(wanted | DeviceStatus::FEATURES_OK);
        let status = device.transport.get_status();
        check!(!status.contains(DeviceStatus::FEATURES_OK), "{:?} agrees to every feature", found.kind);

        let mut device = Device::prepare(&found, 0, 64);
        device.go();
        for queue in [count, 0x7fff, 0xffff] {
            device.transport.queue_set(queue, 64, 0, 0, 0);
            if matches!(found.place, Place::Mmio { .. }) || queue == count {
                device.transport.max_queue_size(queue);
            }
        }
        for size in [0, 3, 0x8000, 0xffff] {
            let mut device = Device::prepare(&found, 0, 64);
            let ring = &device.rings[0];
            let at = (ring.table(), ring.driver(), ring.device());
            device.transport.queue_set(0, size, at.0, at.1, at.2);
            device.go();
            device.transport.notify(0);
        }
        scribble(&found);
        recovers(&found).map_err(|why| format!("{:?}: {why}", found.kind))?;
    }
    Ok(())
}

/// Write all over the device's registers, in every width, then reset it.
fn scribble(found: &Found) {
    let (base, len) = match found.place {
        Place::Mmio { at, .. } => (at, 0x200),
        Place::Pci(function) => (rt::pci::common_config(function).unwrap_or(0), 0x40),
    };
    let mut random = Random(1);
    for _ in 0..300 {
        let at = base + random.next_u64() % (len - 8);
        let value = random.next_u64();
        // SAFETY: registers of a device that is reset afterwards. Interrupts are off and no queue is in use: what
        // the device may take for one is whatever the value says, which is the point of a hostile guest; the host
        // must keep it inside this guest's memory, and this guest uses little of it.
        unsafe {
            match random.next_u64() % 4 {
                0 => (at as *mut u8).write_volatile(value as u8),
                1 => ((at & !1) as *mut u16).write_volatile(value as u16),
                2 => ((at & !3) as *mut u32).write_volatile(value as u32),
                _ => drop(((at & !7) as *const u64).read_volatile()),
            };
        }
    }
}
