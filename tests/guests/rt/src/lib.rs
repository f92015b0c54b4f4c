//! The machine under a bare-metal guest.
//!
//! A guest defines `main` with [`guest_main!`] and finds itself in ring 3 of the first processor with all memory
//! below 4 GiB identity-mapped, a heap, and a serial port to print on. Everything here is the guest's own view of
//! the machine, written from the specifications and not from the host's sources, so that it can disagree.

#![no_std]

extern crate alloc;

pub mod acpi;
pub mod apic;
mod boot;
pub mod clock;
pub mod cpu;
pub mod entropy;
pub mod memory;
pub mod pci;
pub mod power;
pub mod pvh;
pub mod raw;
pub mod ring;
pub mod serial;
pub mod smp;
pub mod virtio;

use core::panic::PanicInfo;

unsafe extern "Rust" {
    /// What the guest does; made by [`guest_main!`].
    fn guest_main();
}

unsafe extern "C" {
    static mut bss_start: u8;
    static mut bss_end: u8;
}

/// Name the function that is the guest: `fn()`. When it returns, the machine is switched off.
#[macro_export]
macro_rules! guest_main {
    ($main:path) => {
        #[unsafe(no_mangle)]
        fn guest_main() {
            $main()
        }
    };
}

/// Where ring 3 begins, on the first processor. `info`: the address of the loader's `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn start(info: u64) -> ! {
    // SAFETY: the linker's symbols bound memory that nothing has used yet. A machine that was reset in place comes
    // here with the last run's values in it.
    unsafe {
        let from = &raw mut bss_start;
        let len = (&raw mut bss_end).offset_from_unsigned(from);
        core::ptr::write_bytes(from, 0, len);
    }
    cpu::init();
    pvh::init(info);
    memory::init();
    // SAFETY: defined by `guest_main!` with this signature.
    unsafe { guest_main() };
    power::off()
}

/// A fault in ring 3: what ring 0's handler returns to.
#[unsafe(no_mangle)]
extern "C" fn fault_in_ring3(vector: u64, code: u64, at: u64, address: u64) -> ! {
    println!("FAIL fault: vector {vector} error {code:#x} at {at:#x}, cr2 {address:#x}");
    power::off()
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    println!("FAIL panic: {info}");
    power::off()
}
