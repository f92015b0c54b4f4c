//! The MMIO slots and the registers of the devices in them.

use rt::println;
use rt::virtio::{Place, devices, slots};

use crate::{Outcome, check};

fn read(at: u64) -> u32 {
    // SAFETY: a device's window; reading these registers has no side effects.
    unsafe { (at as *const u32).read_volatile() }
}

/// Every slot is a virtio 1 device or is not there at all; devices are also announced by ACPI.
pub fn probe() -> Outcome {
    let mut count = 0;
    for found in devices() {
        let Place::Mmio { at, gsi } = found.place else { continue };
        count += 1;
        println!("mmio {at:#x} gsi {gsi} {:?}", found.kind);
        check!(read(at + 4) == 2, "{at:#x} has version {}", read(at + 4));
        // Reserved registers read as 0, writing them does nothing.
        check!(read(at + 0x18) == 0, "a reserved register of {at:#x} reads {:#x}", read(at + 0x18));
        let (magic, status) = (read(at), read(at + 0x70));
        check!(status == 0, "the device at {at:#x} was never reset: status {status:#x}");
        // SAFETY: as above; the magic value is read-only.
        unsafe { (at as *mut u32).write_volatile(0) };
        check!(read(at) == magic, "the magic value of {at:#x} can be written");
    }
    let empty = slots().filter(|&(at, _)| read(at) != 0x7472_6976).count();
    println!("mmio-devices {count} empty {empty}");
    check!(count == 0 || rt::acpi::dsdt_has(b"LNRO0005"), "not announced by ACPI");
    Ok(())
}
