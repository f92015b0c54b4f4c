//! virtio-balloon, by a driver of our own: the crate has none.

use rt::memory::pages;
use rt::println;
use rt::ring::Device;
use rt::virtio::{Found, devices};
use virtio_drivers::transport::{DeviceType, Transport};

use crate::{Outcome, check};

/// `VIRTIO_BALLOON_F_STATS_VQ` and `VIRTIO_BALLOON_F_PAGE_REPORTING`.
const STATS: u64 = 1 << 1;
const REPORTING: u64 = 1 << 5;
/// The queues, in the order of what was agreed on.
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const TOLD: u16 = 2;
const REPORT: u16 = 3;

/// The crate has two names for it.
pub fn is_balloon(found: &Found) -> bool {
    matches!(found.kind, DeviceType::MemoryBalloon | DeviceType::MemoryBallooning)
}

/// Pages of sevens.
fn filled(count: u64) -> u64 {
    let at = pages(count) as u64;
    // SAFETY: pages of our own.
    unsafe { core::ptr::write_bytes(at as *mut u8, 7, count as usize * 4096) };
    at
}

/// How many of `count` pages are as they were; those that are not must be all zero.
fn kept(at: u64, count: u64) -> Result<u64, alloc::string::String> {
    let mut kept = 0;
    for word in (at..at + count * 4096).step_by(8) {
        // SAFETY: pages of our own.
        match unsafe { (word as *const u64).read_volatile() } {
            0 => {}
            0x0707_0707_0707_0707 => kept += 1,
            other => return Err(alloc::format!("{word:#x} holds {other:#x}")),
        }
    }
    check!(kept % 512 == 0, "parts of pages are gone: {kept} words are left");
    Ok(kept / 512)
}

/// A list of page numbers: `count` from `at` on, every `step`th, the last first.
fn list(at: u64, count: u64, step: u64) -> (u64, u32, bool) {
    let list = pages(1) as u64;
    for index in 0..count {
        let number = (at / 4096 + (count - 1 - index) * step) as u32;
        // SAFETY: a page of our own, of which `count` words are used: at most 1024.
        unsafe { ((list + 4 * index) as *mut u32).write_volatile(number) };
    }
    (list, 4 * count as u32, false)
}

/// A page that is inflated is empty afterwards.
pub fn works(found: &Found) -> Outcome {
    let at = filled(1);
    let done = Device::start(found, 0, 64).request(INFLATE, &[list(at, 1, 1)]);
    check!(done == Some(0), "an inflated page comes back with {done:?}");
    check!(kept(at, 1)? == 0, "an inflated page is as it was");
    Ok(())
}

/// Pages go by list and by buffer, and statistics stay with the device.
pub fn pages_go() -> Outcome {
    let Some(found) = devices().into_iter().find(is_balloon) else { return Err("no balloon".into()) };
    let mut device = Device::start(&found, STATS | REPORTING, 64);
    let agreed = device.features & (STATS | REPORTING);
    check!(agreed == STATS | REPORTING, "features {:#x}", device.features);
    let at = filled(64);
    check!(device.request(INFLATE, &[list(at, 32, 2)]) == Some(0), "inflate");
    check!(kept(at, 64)? == 32, "{} pages of 64 are left", kept(at, 64)?);
    check!(device.request(DEFLATE, &[list(at, 32, 2)]) == Some(0), "deflate");
    let at = filled(64);
    let report = [(at, 8 * 4096, true), (at + 32 * 4096, 16 * 4096, true)];
    check!(device.request(REPORT, &report) == Some(0), "reporting");
    check!(kept(at, 64)? == 40, "{} pages of 64 are left", kept(at, 64)?);
    let told = pages(1) as u64;
    let ring = &mut device.rings[usize::from(TOLD)];
    let head = ring.chain(&[(told, 20, false)]);
    ring.offer(head);
    if ring.publish(0) {
        device.transport.notify(TOLD);
    }
    check!(device.used(TOLD, 20).is_none(), "the statistics come back though nobody asks");
    let target: u32 = device.transport.read_config_space(0).map_err(crate::block::text)?;
    check!(target == 0, "the target is {target}");
    check!(!device.needs_reset(), "the device wants a reset");
    println!("balloon gave 56");
    Ok(())
}
