//! Every processor of the MADT starts, in its own ring 3, and knows its number.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rt::{acpi, apic, clock, cpu, println, pvh, smp};

use crate::{Outcome, check};

/// How many have said what they are.
static REPORTED: AtomicU32 = AtomicU32::new(0);
/// The last one's APIC number in the low half, CPUID's idea of it in the high half.
static WHO: AtomicU64 = AtomicU64::new(0);

/// The APIC number by CPUID: leaf 0xb if there is one, else leaf 1. Nothing to compare with where the host's own processor answers (`cpuid=host`).
fn number() -> u32 {
    if pvh::arg("cpuid") == Some("host") {
        return apic::id().into();
    }
    if cpu::cpuid(0, 0)[0] >= 0xb && cpu::cpuid(0xb, 0)[1] != 0 {
        cpu::cpuid(0xb, 0)[3]
    } else {
        cpu::cpuid(1, 0)[1] >> 24
    }
}

extern "C" fn report() {
    WHO.store(u64::from(number()) << 32 | u64::from(apic::id()), Ordering::SeqCst);
    REPORTED.fetch_add(1, Ordering::SeqCst);
}

/// Start all, one after the other.
pub fn start() -> Outcome {
    apic::enable();
    let own = u32::from(apic::id());
    check!(number() == own, "this processor is {own} to its APIC and {} to CPUID", number());
    let others = acpi::processors().into_iter().filter(|&id| id != own);
    let mut up = 1;
    for id in others {
        check!(smp::start(up as u16, id as u8, report), "processor {id} does not start");
        let reported = clock::until(clock::PATIENCE, || REPORTED.load(Ordering::SeqCst) == up);
        check!(reported, "processor {id} started but says nothing");
        let who = WHO.load(Ordering::SeqCst);
        check!(who == u64::from(id) << 32 | u64::from(id), "processor {id} says it is {who:#x}");
        up += 1;
    }
    let [_, threads, _, _] = cpu::cpuid(1, 0);
    println!(
        "processors-up {up} logical {} per-core {} per-package {}",
        threads >> 16 & 0xff,
        cpu::cpuid(0xb, 0)[1] & 0xffff,
        cpu::cpuid(0xb, 1)[1] & 0xffff
    );
    Ok(())
}
