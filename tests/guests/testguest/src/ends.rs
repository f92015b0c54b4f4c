//! The ways in which a machine ends.

use core::arch::global_asm;

use rt::power::{Reset, panicked, reset};
use rt::{apic, cpu, println, pvh};
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::DeviceType;

use crate::{Outcome, check};

/// Reset once: sector 0 of the first disk remembers. `how=acpi|keyboard|chipset|triple`.
pub fn reboot() -> Outcome {
    let Some(found) = rt::virtio::find(DeviceType::Block).first().copied() else {
        return Err("needs a disk".into());
    };
    let mut disk = VirtIOBlk::<rt::memory::Machine, _>::new(found.transport()).map_err(crate::block::text)?;
    let mut sector = [0; 512];
    disk.read_blocks(0, &mut sector).map_err(crate::block::text)?;
    if sector[0] == 1 {
        println!("second boot");
        sector[0] = 2;
        return disk.write_blocks(0, &sector).map_err(crate::block::text);
    }
    check!(sector[0] == 0, "sector 0 begins with {}", sector[0]);
    println!("first boot");
    sector[0] = 1;
    disk.write_blocks(0, &sector).map_err(crate::block::text)?;
    disk.flush().map_err(crate::block::text)?;
    // The device is active: the reset must take it back.
    match pvh::arg("how") {
        Some("keyboard") => reset(Reset::Keyboard),
        Some("chipset") => reset(Reset::Chipset),
        Some("triple") => {
            // A machine that shuts down as soon as it has started is taken for a broken kernel, not for a reset.
            rt::clock::until(1100, || false);
            cpu::shut_down()
        }
        _ => reset(Reset::Acpi),
    }
}

/// Reset `times=N` times, counted in sector 0 of the first disk, then stay.
pub fn reboots() -> Outcome {
    let times: u8 = pvh::arg("times").and_then(|times| times.parse().ok()).ok_or("times= is missing")?;
    let Some(found) = rt::virtio::find(DeviceType::Block).first().copied() else {
        return Err("needs a disk".into());
    };
    let mut disk = VirtIOBlk::<rt::memory::Machine, _>::new(found.transport()).map_err(crate::block::text)?;
    let mut sector = [0; 512];
    disk.read_blocks(0, &mut sector).map_err(crate::block::text)?;
    if sector[0] < times {
        sector[0] += 1;
        disk.write_blocks(0, &sector).map_err(crate::block::text)?;
        reset(Reset::Acpi)
    }
    println!("here to stay");
    cpu::hang()
}

/// Say so by pvpanic.
pub fn panic() -> Outcome {
    println!("Kernel panic - not syncing: as the test wants it");
    panicked()
}

/// Halt until the power button is pressed (ACPI's generic event device), as an idle system does.
pub fn idle() -> Outcome {
    const EVENT: u8 = 0x44;
    const EVENT_GSI: u32 = 9;
    const EVENTS: u16 = 0x603;
    apic::mask_pic();
    apic::enable();
    apic::route(EVENT_GSI, EVENT);
    println!("idling");
    while cpu::in8(EVENTS) & 1 == 0 {
        cpu::wait();
    }
    apic::mask(EVENT_GSI);
    println!("power button");
    Ok(())
}

/// A fault that cannot be delivered.
pub fn triple_fault() -> Outcome {
    println!("faulting");
    cpu::shut_down()
}

/// Never end.
pub fn hang() -> Outcome {
    println!("hanging");
    cpu::hang()
}

global_asm!(".globl sse_instruction", "sse_instruction: pxor xmm0, xmm0", "ret");

unsafe extern "C" {
    fn sse_instruction();
}

/// An instruction that a software-assisted KVM cannot run in ring 0; elsewhere it does no harm.
pub fn sse_in_ring0() -> Outcome {
    // SAFETY: it clears a register that holds nothing.
    unsafe { cpu::in_ring0(sse_instruction) };
    println!("survived");
    Ok(())
}
