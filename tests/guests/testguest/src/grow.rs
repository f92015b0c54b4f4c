//! A disk that the host makes larger while it is used.

use rt::entropy::Random;
use rt::memory::pages;
use rt::virtio::{Place, find};
use rt::{clock, cpu, println};
use virtio_drivers::transport::{DeviceType, InterruptStatus, Transport};

use crate::block::{Disk, IN, OUT};
use crate::interrupts::{self, CONFIG, QUEUE};
use crate::{Outcome, check};

/// The host is asked to make the first disk larger, and the guest is told by an interrupt. What was beyond the end can then be
/// written: its first new sector is, with the pattern of the tests of disks.
pub fn disk() -> Outcome {
    interrupts::prepare();
    let found = find(DeviceType::Block).into_iter().next().ok_or("no disk")?;
    let mut disk = Disk::prepare(&found, 0);
    interrupts::connect(&found, &mut disk)?;
    disk.go();
    // Of requests: only the change is to be heard.
    disk.device.rings[0].no_interrupts();
    let before = disk.sectors()?;
    let data = pages(1);
    // SAFETY: a page of our own; the device is idle.
    Random(0x1000 + before).fill(unsafe { core::slice::from_raw_parts_mut(data, 512) });
    check!(
        disk.request(OUT, before, &[(data as u64, 512, false)])? == 1,
        "a sector beyond the end was written"
    );
    disk.device.transport.ack_interrupt();

    let by_line = matches!(found.place, Place::Mmio { .. });
    let vector = if by_line { QUEUE } else { CONFIG };
    let interrupted = cpu::interrupts(vector);
    let generation = disk.device.transport.read_config_generation();
    println!("larger-than {before}");
    cpu::enable_interrupts();
    let came = clock::until(clock::PATIENCE, || cpu::interrupts(vector) != interrupted);
    cpu::disable_interrupts();
    check!(came, "no interrupt");
    let cause = disk.device.transport.ack_interrupt();
    check!(
        !by_line || cause.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT),
        "the interrupt status is {:#x}",
        cause.bits()
    );
    check!(disk.device.transport.read_config_generation() != generation, "the generation is the same");

    let now = disk.sectors()?;
    println!("sectors {now}");
    check!(now > before, "{now} sectors, {before} before");
    check!(disk.request(OUT, before, &[(data as u64, 512, false)])? == 0, "a new sector cannot be written");
    check!(disk.request(IN, now - 1, &[(data as u64, 512, true)])? == 0, "the last sector cannot be read");
    check!(disk.request(IN, now, &[(data as u64, 512, true)])? == 1, "a sector beyond the new end was read");
    interrupts::disconnect(&found);
    Ok(())
}
