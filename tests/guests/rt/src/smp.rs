//! Starting further processors by INIT and start-up interrupts (Intel SDM 3A, 9.4).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{apic, clock, cpu, memory};

/// Where they begin: a page below 1 MiB.
const TRAMPOLINE: u64 = 0x8000;

const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600 | (TRAMPOLINE >> 12) as u32;

/// What the processor that comes up finds: its task's selector, ring 0 stack, ring 3 stack, and `fn()`.
#[unsafe(no_mangle)]
static ap_mailbox: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// How many are up.
static UP: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static ap_code: u8;
    static ap_code_end: u8;
}

#[unsafe(no_mangle)]
extern "C" fn ap_start(work: extern "C" fn()) -> ! {
    apic::enable();
    UP.fetch_add(1, Ordering::SeqCst);
    work();
    loop {
        cpu::wait();
    }
}

/// Start the processor whose APIC number is `id`, as the `index`th (1 and up), and have it run `work` in ring 3.
/// False if it does not come up within a second.
pub fn start(index: u16, id: u8, work: extern "C" fn()) -> bool {
    let ring0 = memory::pages(1) as u64 + 4096;
    let ring3 = memory::pages(16) as u64 + 16 * 4096 - 8;
    let task = cpu::make_task(index, ring0);
    let code = &raw const ap_code;
    // SAFETY: the page is free RAM (the loader's data there was copied by `pvh::init`), the code is ours.
    unsafe {
        let len = (&raw const ap_code_end).offset_from_unsigned(code);
        memory::memcpy(TRAMPOLINE as *mut u8, code, len);
    }
    for (slot, value) in ap_mailbox.iter().zip([task.into(), ring0, ring3, work as usize as u64]) {
        slot.store(value, Ordering::SeqCst);
    }
    let before = UP.load(Ordering::SeqCst);
    apic::command(id, INIT);
    for _ in 0..2 {
        apic::command(id, STARTUP);
        if clock::until(clock::PATIENCE / 2, || UP.load(Ordering::SeqCst) != before) {
            return true;
        }
    }
    false
}
