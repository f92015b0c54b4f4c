//! The local APIC and the I/O APIC, in memory.

use crate::cpu;

const LOCAL: u64 = 0xfee0_0000;
const IO: u64 = 0xfec0_0000;

/// The vector for interrupts that are nobody's.
const SPURIOUS: u8 = 0xff;

/// Local APIC registers (Intel SDM 3A, 11.4.1).
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Local {
    /// The number.
    Id = 0x20,
    /// The version.
    Version = 0x30,
    /// Spurious vector and enable.
    Spurious = 0xf0,
    /// Interrupt command, low half.
    CommandLow = 0x300,
    /// Interrupt command, high half.
    CommandHigh = 0x310,
    /// The timer's entry of the local vector table.
    Timer = 0x320,
    /// The timer's start value.
    TimerStart = 0x380,
    /// The timer's present value.
    TimerNow = 0x390,
    /// The timer's divider.
    TimerDivider = 0x3e0,
}

/// Read a register of this processor's APIC.
pub fn read(register: Local) -> u32 {
    // SAFETY: the APIC's page, mapped; reading has no side effects that matter here.
    unsafe { ((LOCAL + register as u64) as *const u32).read_volatile() }
}

/// Write a register of this processor's APIC.
pub fn write(register: Local, value: u32) {
    // SAFETY: the APIC's page, mapped.
    unsafe { ((LOCAL + register as u64) as *mut u32).write_volatile(value) }
}

/// This processor's number.
pub fn id() -> u8 {
    (read(Local::Id) >> 24) as u8
}

/// Switch this processor's APIC on.
pub fn enable() {
    write(Local::Spurious, 0x100 | u32::from(SPURIOUS));
}

/// Send an interrupt command to the processor `to`, and wait until it is under way.
pub fn command(to: u8, low: u32) {
    write(Local::CommandHigh, u32::from(to) << 24);
    write(Local::CommandLow, low);
    while read(Local::CommandLow) & 1 << 12 != 0 {}
}

fn io(register: u32) -> *mut u32 {
    // SAFETY: the I/O APIC's select and window registers, mapped.
    unsafe { (IO as *mut u32).write_volatile(register) };
    (IO + 0x10) as *mut u32
}

/// How many inputs the I/O APIC has.
pub fn inputs() -> u32 {
    // SAFETY: its version register.
    unsafe { (io(1).read_volatile() >> 16 & 0xff) + 1 }
}

/// Send input `gsi` to this processor as `vector`, on its rising edge.
pub fn route(gsi: u32, vector: u8) {
    let entry = 0x10 + 2 * gsi;
    // SAFETY: the entry's two registers.
    unsafe {
        io(entry + 1).write_volatile(u32::from(id()) << 24);
        io(entry).write_volatile(vector.into());
    }
}

/// Mask input `gsi`.
pub fn mask(gsi: u32) {
    // SAFETY: the entry's register.
    unsafe { io(0x10 + 2 * gsi).write_volatile(1 << 16) };
}

/// Silence the two old interrupt controllers.
pub fn mask_pic() {
    cpu::out8(0x21, 0xff);
    cpu::out8(0xa1, 0xff);
}
