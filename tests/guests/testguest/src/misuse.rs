//! A guest that misuses the board: BARs on top of other things, MSI-X messages to nowhere, ports in odd widths.
//! Whatever that does to the guest, the host stays alive, and the devices work once things are put right.

use alloc::format;

use rt::entropy::Random;
use rt::memory::pages;
use rt::pci::{MsiX, Ports, function, memory, root, set_bar};
use rt::serial::PORT;
use rt::virtio::{Place, find};
use rt::{cpu, println};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction};

use crate::block::{Disk, IN};
use crate::{Outcome, check};

/// Where a BAR has no business: RAM, the ROM's place, configuration space, the interrupt controllers, the MMIO
/// slots, both ends of the address space, beyond what the processor can address.
const WRONG: [u64; 10] = [
    0,
    0x10_0000,
    0x200_0000,
    0xe000_0000,
    0xf000_0000,
    0xfec0_0000,
    0xfee0_0000,
    0xffff_f000,
    1 << 52,
    0xffff_ffff_ffff_f000,
];

fn pci_disk() -> Result<(rt::virtio::Found, DeviceFunction), alloc::string::String> {
    match find(DeviceType::Block).first() {
        Some(found @ &rt::virtio::Found { place: Place::Pci(at), .. }) => Ok((*found, at)),
        _ => Err("needs a disk on PCI".into()),
    }
}

fn reads(found: &rt::virtio::Found) -> Outcome {
    let status = Disk::start(found, 0).request(IN, 1, &[(pages(1) as u64, 512, true)])?;
    check!(status == 0, "a read ends with {status}");
    Ok(())
}

/// BARs in wrong places, with the disk running and decoding on.
pub fn bars() -> Outcome {
    let (found, at) = pci_disk()?;
    let mut root = root();
    let bars = root.bars(at).map_err(crate::block::text)?;
    for (index, bar) in bars.into_iter().enumerate() {
        let Some((old, _)) = bar.as_ref().and_then(|bar| bar.memory_address_size()) else { continue };
        for wrong in WRONG {
            let running = Disk::start(&found, 0);
            set_bar(&mut root, at, index as u8, &bar, wrong);
            root.set_command(at, Command::empty());
            root.set_command(at, Command::MEMORY_SPACE | Command::BUS_MASTER);
            set_bar(&mut root, at, index as u8, &bar, old);
            drop(running);
            reads(&found).map_err(|why| format!("after BAR {index} was at {wrong:#x}: {why}"))?;
        }
    }
    Ok(())
}

/// Random values all over a function's configuration space, then all put back.
pub fn configuration() -> Outcome {
    let (found, at) = pci_disk()?;
    let mut random = Random(2);
    for target in [at, function(0, 0), function(31, 7)] {
        let mut access = memory();
        let before: alloc::vec::Vec<u32> = (0..64).map(|word| access.read_word(target, word * 4)).collect();
        for _ in 0..300 {
            let value = random.next_u64();
            access.write_word(target, (value >> 32) as u8 & 0xfc, value as u32);
        }
        for _ in 0..100 {
            let value = random.next_u64();
            Ports.write_word(target, (value >> 32) as u8 & 0xfc, value as u32);
        }
        // The command register last.
        for word in (2..64).chain([1]) {
            access.write_word(target, word * 4, before[usize::from(word)]);
        }
    }
    // SAFETY: configuration space of functions that are not there, up to the end of the bus.
    unsafe {
        let end = (rt::pci::ecam() + 0xf_fff8) as *mut u64;
        end.write_volatile(u64::MAX);
        end.read_volatile();
    }
    reads(&found)
}

/// MSI-X messages that no local APIC takes, while requests end.
pub fn messages() -> Outcome {
    let (found, at) = pci_disk()?;
    let Some(msix) = MsiX::find(at) else { return Err("no MSI-X".into()) };
    let mut random = Random(3);
    msix.control(true, false);
    for round in 0..100 {
        for vector in 0..msix.vectors {
            let address = match round % 4 {
                0 => random.next_u64(),
                1 => 0xfee0_0000 | random.next_u64() & 0xf_fffc,
                2 => random.next_u64() & 0xffff_fffc,
                _ => 0,
            };
            // Fixed delivery of a vector that this guest counts, should it arrive: an NMI or INIT would be its own end.
            msix.set_raw(vector, address & !0b1000_0000_0000 & !3, 0x20 + (random.next_u64() % 0xc0) as u32);
        }
        reads(&found).map_err(|why| format!("round {round}: {why}"))?;
    }
    msix.control(false, false);
    Ok(())
}

/// Every port that is a device's, in every width, but those whose purpose is to end the machine.
pub fn ports() -> Outcome {
    let mut random = Random(4);
    for _ in 0..2000 {
        let value = random.next_u64();
        let places =
            [0x60, 0x61, 0x70, 0x71, 0x80, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fe, 0x3ff, 0x604, 0xcf8, 0xcfb];
        let port = match value >> 40 & 3 {
            0 => 0x1000 + (value >> 20) as u16 % 0xe000,
            _ => places[(value >> 20) as usize % places.len()],
        };
        match value >> 48 & 7 {
            0 => cpu::out8(port, value as u8),
            1 => cpu::out16(port & !1, value as u16 & 0xff),
            2 => cpu::out32(port & !3 | 0x1000, value as u32),
            3 => drop(cpu::in16(port)),
            4 => drop(cpu::in32(port)),
            _ => drop(cpu::in8(port)),
        }
    }
    // As it was: eight bits, no interrupts, FIFOs empty and on.
    cpu::out8(PORT + 3, 3);
    cpu::out8(PORT + 1, 0);
    cpu::out8(PORT + 2, 7);
    cpu::out8(PORT + 4, 0x0b);
    println!("still here");
    Ok(())
}
