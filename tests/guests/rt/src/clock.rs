//! Time by the time stamp counter.

use crate::{cpu, pvh};
use core::sync::atomic::{AtomicU64, Ordering};

static KHZ: AtomicU64 = AtomicU64::new(0);

/// The time stamp counter's frequency in kHz: `tsc_khz=` on the command line, or CPUID's, or KVM's clock's.
pub fn khz() -> u64 {
    match KHZ.load(Ordering::SeqCst) {
        0 => {
            let khz = find().unwrap_or(2_000_000);
            KHZ.store(khz, Ordering::SeqCst);
            khz
        }
        khz => khz,
    }
}

fn find() -> Option<u64> {
    pvh::number("tsc_khz").or_else(from_crystal).or_else(from_hypervisor).or_else(from_kvmclock)
}

fn from_crystal() -> Option<u64> {
    if cpu::cpuid(0, 0)[0] < 0x15 {
        return None;
    }
    let [bottom, top, hz, _] = cpu::cpuid(0x15, 0);
    let hz = u64::from(hz) * u64::from(top) / u64::from(bottom.max(1));
    (hz != 0).then_some(hz / 1000)
}

fn from_hypervisor() -> Option<u64> {
    let [last, b, c, d] = cpu::cpuid(0x4000_0000, 0);
    let is_kvm = [b, c, d] == [0x4b4d_564b, 0x564b_4d56, 0x4d];
    let khz = if is_kvm && last >= 0x4000_0010 { cpu::cpuid(0x4000_0010, 0)[0] } else { 0 };
    (khz != 0).then_some(khz.into())
}

/// KVM's clock tells by what the ticks are to be multiplied to make nanoseconds.
fn from_kvmclock() -> Option<u64> {
    const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
    if cpu::cpuid(0x4000_0000, 0)[1] != 0x4b4d_564b || cpu::cpuid(0x4000_0001, 0)[0] & 1 << 3 == 0 {
        return None;
    }
    let at = crate::memory::pages(1);
    cpu::write_msr(MSR_SYSTEM_TIME, at as u64 | 1);
    // SAFETY: a page of our own that the host has now filled in: the multiplier is at 24, the shift at 28.
    let (mul, shift) =
        unsafe { (at.add(24).cast::<u32>().read_volatile(), at.add(28).cast::<i8>().read_volatile()) };
    cpu::write_msr(MSR_SYSTEM_TIME, 0);
    let khz = (1_000_000_u128 << 32) / u128::from(mul.max(1));
    let khz = if shift < 0 { khz << -shift } else { khz >> shift };
    (mul != 0).then_some(khz as u64)
}

/// Nanoseconds since some time.
pub fn nanos() -> u64 {
    (u128::from(cpu::ticks()) * 1_000_000 / u128::from(khz())) as u64
}

/// How long what must come is waited for, in milliseconds: others may have the host's processors. What fails takes so long, and nothing else.
pub const PATIENCE: u64 = 20_000;

/// Wait until `done` says so. False if it did not within `millis`.
pub fn until(millis: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = nanos() + millis * 1_000_000;
    while !done() {
        if nanos() > end {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}
