//! Interrupts: the local APIC's timer, the serial port's and the devices' lines through the I/O APIC, MSI-X.

use alloc::string::String;

use rt::apic::{self, Local};
use rt::memory::pages;
use rt::pci::{MsiX, common_config};
use rt::ring::F_EVENT_IDX;
use rt::serial::PORT;
use rt::virtio::{Found, Place, find};
use rt::{clock, cpu, println};
use virtio_drivers::transport::{DeviceType, InterruptStatus, Transport};

use crate::block::{Disk, IN};
use crate::{Outcome, check};

const TIMER: u8 = 0x40;
const SERIAL: u8 = 0x41;
/// Of queue 0; on MMIO, of everything.
pub const QUEUE: u8 = 0x42;
/// Of a changed configuration, on PCI.
pub const CONFIG: u8 = 0x43;

const SERIAL_GSI: u32 = 4;

/// Switch the processor's interrupts over to its APIC.
pub fn prepare() {
    apic::mask_pic();
    apic::enable();
}

/// The timer fires while the processor runs, while it halts, and again and again.
pub fn timer() -> Outcome {
    prepare();
    apic::write(Local::TimerDivider, 0xb);
    apic::write(Local::Timer, TIMER.into());
    let before = cpu::interrupts(TIMER);
    cpu::enable_interrupts();
    apic::write(Local::TimerStart, 100_000);
    let came = clock::until(clock::PATIENCE, || cpu::interrupts(TIMER) == before + 1);
    cpu::disable_interrupts();
    check!(came, "no timer interrupt while running");

    apic::write(Local::TimerStart, 100_000);
    while cpu::interrupts(TIMER) == before + 1 {
        cpu::wait();
    }
    apic::write(Local::Timer, u32::from(TIMER) | 1 << 17);
    apic::write(Local::TimerStart, 100_000);
    while cpu::interrupts(TIMER) < before + 12 {
        cpu::wait();
    }
    apic::write(Local::Timer, 1 << 16);
    apic::write(Local::TimerStart, 0);
    deadline()
}

/// The timer by time stamp, where the processor has that.
fn deadline() -> Outcome {
    const MSR_TSC_DEADLINE: u32 = 0x6e0;
    let has = cpu::cpuid(1, 0)[2] & 1 << 24 != 0;
    println!("tsc-deadline {has}");
    if has {
        apic::write(Local::Timer, u32::from(TIMER) | 2 << 17);
        let before = cpu::interrupts(TIMER);
        cpu::write_msr(MSR_TSC_DEADLINE, cpu::ticks() + clock::khz());
        cpu::enable_interrupts();
        let came = clock::until(clock::PATIENCE, || cpu::interrupts(TIMER) != before);
        cpu::disable_interrupts();
        apic::write(Local::Timer, 1 << 16);
        check!(came, "no interrupt at the deadline");
    }
    Ok(())
}

/// The serial port interrupts when it can send, and when a byte has come.
pub fn serial() -> Outcome {
    prepare();
    apic::route(SERIAL_GSI, SERIAL);
    cpu::out8(PORT + 4, 0x0b);
    cpu::enable_interrupts();
    cpu::out8(PORT + 1, 2);
    let came = clock::until(clock::PATIENCE, || cpu::interrupts(SERIAL) != 0);
    let cause = cpu::in8(PORT + 2);
    check!(came, "no interrupt for an empty transmitter");
    check!(cause & 0x0f == 2, "the cause of the interrupt is {cause:#x}");
    cpu::out8(PORT + 1, 1);
    let before = cpu::interrupts(SERIAL);
    println!("say something");
    let came =
        clock::until(clock::PATIENCE, || cpu::interrupts(SERIAL) != before || cpu::in8(PORT + 5) & 1 != 0);
    check!(came, "nothing came in");
    let came = clock::until(clock::PATIENCE, || cpu::interrupts(SERIAL) != before);
    let line = crate::serial::read_line();
    cpu::out8(PORT + 1, 0);
    cpu::disable_interrupts();
    apic::mask(SERIAL_GSI);
    check!(came, "no interrupt for a byte that came");
    println!("echo {}", line.unwrap_or_default());
    Ok(())
}

/// A disk interrupts for a used buffer, by its line or by MSI-X, in both kinds of notification suppression.
pub fn virtio() -> Outcome {
    prepare();
    let disks = find(DeviceType::Block);
    check!(!disks.is_empty(), "no disk");
    for found in disks {
        for features in [0, F_EVENT_IDX] {
            let mut disk = Disk::prepare(&found, features);
            connect(&found, &mut disk)?;
            disk.go();
            for round in 0..3 {
                let before = cpu::interrupts(QUEUE);
                wanted(&mut disk, features);
                cpu::enable_interrupts();
                let status = disk.request(IN, 0, &[(pages(1) as u64, 512, true)])?;
                let came = clock::until(clock::PATIENCE, || cpu::interrupts(QUEUE) != before);
                cpu::disable_interrupts();
                let isr = disk.device.transport.ack_interrupt();
                check!(
                    status == 0 && came,
                    "no interrupt in round {round} (features {features:#x}, status {status})"
                );
                let by_line = matches!(found.place, Place::Mmio { .. });
                check!(
                    !by_line || isr.contains(InterruptStatus::QUEUE_INTERRUPT),
                    "interrupt status is {:#x}",
                    isr.bits()
                );
            }
            unwanted(&mut disk)?;
            disconnect(&found);
        }
    }
    Ok(())
}

/// With event_idx, an interrupt comes only where it is asked for.
fn wanted(disk: &mut Disk, features: u64) {
    if features & F_EVENT_IDX != 0 {
        let next = disk.device.rings[0].next_used();
        disk.device.rings[0].set_used_event(next);
    }
}

/// And none where it is not.
fn unwanted(disk: &mut Disk) -> Outcome {
    disk.device.rings[0].no_interrupts();
    let before = cpu::interrupts(QUEUE);
    cpu::enable_interrupts();
    let status = disk.request(IN, 0, &[(pages(1) as u64, 512, true)])?;
    clock::until(5, || false);
    cpu::disable_interrupts();
    check!(status == 0, "the disk no longer works");
    check!(cpu::interrupts(QUEUE) == before, "an interrupt although none was wanted");
    Ok(())
}

/// Have a disk that is not started yet interrupt.
pub fn connect(found: &Found, disk: &mut Disk) -> Outcome {
    match found.place {
        Place::Mmio { gsi, .. } => apic::route(gsi, QUEUE),
        Place::Pci(function) => {
            let Some(msix) = MsiX::find(function) else { return Err("no MSI-X".into()) };
            check!(msix.vectors >= 2, "{} vectors", msix.vectors);
            msix.set(0, CONFIG, false);
            msix.set(1, QUEUE, false);
            msix.control(true, false);
            set_vectors(function, disk)?;
        }
    }
    Ok(())
}

/// Not any more.
pub fn disconnect(found: &Found) {
    match found.place {
        Place::Mmio { gsi, .. } => apic::mask(gsi),
        Place::Pci(function) => {
            if let Some(msix) = MsiX::find(function) {
                msix.control(false, false);
            }
        }
    }
}

/// Vector 0 for changes of configuration, 1 for queue 0 (virtio 1.2, 4.1.4.3).
fn set_vectors(
    function: virtio_drivers::transport::pci::bus::DeviceFunction,
    disk: &mut Disk,
) -> Result<(), String> {
    let Some(common) = common_config(function) else { return Err("no common configuration".into()) };
    // Selects the queue.
    disk.device.transport.max_queue_size(0);
    // SAFETY: config_msix_vector and queue_msix_vector of the common configuration.
    let seen = unsafe {
        let (config, queue) = ((common + 16) as *mut u16, (common + 26) as *mut u16);
        config.write_volatile(0);
        queue.write_volatile(1);
        (config.read_volatile(), queue.read_volatile())
    };
    check!(seen == (0, 1), "the vectors are {seen:x?}");
    // SAFETY: as above: a vector that is not there cannot be chosen.
    let refused = unsafe {
        let config = (common + 16) as *mut u16;
        config.write_volatile(2000);
        let refused = config.read_volatile();
        config.write_volatile(0);
        refused
    };
    check!(refused == 0xffff, "vector 2000 was accepted: {refused:#x}");
    Ok(())
}

/// A masked vector is held back and kept pending, then delivered.
pub fn msix_mask() -> Outcome {
    prepare();
    for found in find(DeviceType::Block) {
        let Place::Pci(function) = found.place else { continue };
        let mut disk = Disk::prepare(&found, 0);
        connect(&found, &mut disk)?;
        disk.go();
        let Some(msix) = MsiX::find(function) else { return Err("no MSI-X".into()) };
        for all in [false, true] {
            let before = cpu::interrupts(QUEUE);
            if all {
                msix.control(true, true);
            } else {
                msix.set(1, QUEUE, true);
            }
            cpu::enable_interrupts();
            check!(disk.request(IN, 0, &[(pages(1) as u64, 512, true)])? == 0, "the disk does not work");
            let pending = clock::until(clock::PATIENCE, || msix.is_pending(1));
            let held = cpu::interrupts(QUEUE) == before;
            msix.control(true, false);
            msix.set(1, QUEUE, false);
            let came = clock::until(clock::PATIENCE, || cpu::interrupts(QUEUE) != before);
            cpu::disable_interrupts();
            check!(held, "a masked interrupt came (all masked: {all})");
            check!(pending, "a masked interrupt is not pending (all masked: {all})");
            check!(came, "no interrupt after unmasking (all masked: {all})");
        }
        disconnect(&found);
        return Ok(());
    }
    Err("needs a disk on PCI".into())
}
