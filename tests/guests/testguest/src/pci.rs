//! The PCI bus: both ways into configuration space agree, BARs have sizes and can be moved.

use alloc::vec::Vec;

use rt::pci::{Ports, function, memory, root, set_bar};
use rt::println;
use rt::virtio::{Place, find};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Command, ConfigurationAccess, DeviceFunction, PciRoot};

use crate::block::{Disk, IN};
use crate::{Outcome, check};

/// 256 bytes of every function of bus 0, through the ports and through memory.
pub fn scan() -> Outcome {
    let (ports, memory) = (Ports, memory());
    let mut count = 0;
    for device in 0..32 {
        let at = function(device, 0);
        let id = ports.read_word(at, 0);
        check!(id == memory.read_word(at, 0), "{at}: the two ways see different devices");
        if id == u32::MAX {
            continue;
        }
        count += 1;
        for offset in (0..=252).step_by(4) {
            let (one, other) = (ports.read_word(at, offset), memory.read_word(at, offset));
            check!(one == other, "{at} offset {offset:#x}: {one:#x} by port, {other:#x} in memory");
        }
        println!("pci {at} {:04x}:{:04x} class {:06x}", id & 0xffff, id >> 16, memory.read_word(at, 8) >> 8);
    }
    println!("pci-devices {count}");
    check!(memory.read_word(function(0, 0), 8) >> 16 == 0x0600, "0:0 is not a host bridge");
    narrow(function(0, 0))
}

/// Bytes and words of configuration space are the parts of its double words.
fn narrow(at: DeviceFunction) -> Outcome {
    let word = memory().read_word(at, 0);
    let base = rt::pci::ecam();
    // SAFETY: the host bridge's configuration space; its ID is read-only.
    let (half, byte) =
        unsafe { (((base + 2) as *const u16).read_volatile(), ((base + 1) as *const u8).read_volatile()) };
    check!(
        u32::from(half) == word >> 16 && u32::from(byte) == word >> 8 & 0xff,
        "narrow reads of {at} are wrong"
    );
    Ports.read_word(at, 0);
    let (half, byte) = (rt::cpu::in16(0xcfe), rt::cpu::in8(0xcfd));
    check!(
        u32::from(half) == word >> 16 && u32::from(byte) == word >> 8 & 0xff,
        "narrow port reads of {at} are wrong"
    );
    Ok(())
}

fn functions() -> Vec<DeviceFunction> {
    root().enumerate_bus(0).map(|(function, _)| function).collect()
}

/// Every BAR has a size that is a power of two and an address that is a multiple of it, and none overlap.
pub fn bars() -> Outcome {
    rt::pci::assign();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for at in functions() {
        for (index, bar) in root().bars(at).map_err(crate::block::text)?.into_iter().enumerate() {
            let Some((address, size)) = bar.and_then(|bar| bar.memory_address_size()) else { continue };
            println!("bar {at} {index} {address:#x} {size:#x}");
            check!(
                size.is_power_of_two() && address != 0 && address % size == 0,
                "{at} BAR {index} is unsound"
            );
            let overlaps = ranges.iter().any(|&(from, to)| address < to && from < address + size);
            check!(!overlaps, "{at} BAR {index} overlaps another");
            ranges.push((address, address + size));
        }
    }
    Ok(())
}

/// Move the disk's BAR: the device answers at the new place alone, doorbell and all; without decoding nowhere.
pub fn move_bar() -> Outcome {
    let disks = find(DeviceType::Block);
    let Some((found, Place::Pci(at))) = disks.first().map(|found| (found, found.place)) else {
        return Err("needs a disk on PCI".into());
    };
    let mut root = root();
    let all = root.bars(at).map_err(crate::block::text)?;
    let is_memory =
        |index: &usize| all[*index].as_ref().is_some_and(|bar| bar.memory_address_size().is_some());
    for index in (0..6).filter(is_memory) {
        let Some((old, size)) = all[index].as_ref().and_then(|bar| bar.memory_address_size()) else {
            continue;
        };
        for new in [0xd800_0000_u64.next_multiple_of(size), old] {
            let before = Disk::start(found, 0).request(IN, 0, &[(rt::memory::pages(1) as u64, 512, true)])?;
            check!(before == 0, "the disk does not work before the move");
            place(&mut root, at, index, new);
            let here =
                root.bar_info(at, index as u8).ok().flatten().and_then(|bar| bar.memory_address_size());
            check!(here == Some((new, size)), "BAR {index} is at {here:x?} and not at {new:#x}");
            let status = Disk::start(found, 0).request(IN, 0, &[(rt::memory::pages(1) as u64, 512, true)])?;
            check!(status == 0, "the disk does not work at {new:#x}");
            let left = if new == old { 0xd800_0000_u64.next_multiple_of(size) } else { old };
            check!(read(left) == u32::MAX, "something still answers at {left:#x}: {:#x}", read(left));
        }
        root.set_command(at, Command::empty());
        let quiet = read(old);
        root.set_command(at, Command::MEMORY_SPACE | Command::BUS_MASTER);
        check!(quiet == u32::MAX, "BAR {index} answers although it must not decode: {quiet:#x}");
    }
    Ok(())
}

fn read(at: u64) -> u32 {
    // SAFETY: an address in the PCI window; the first register of a BAR has no side effects.
    unsafe { (at as *const u32).read_volatile() }
}

fn place<C: ConfigurationAccess>(root: &mut PciRoot<C>, at: DeviceFunction, index: usize, to: u64) {
    let bar = root.bar_info(at, index as u8).ok().flatten();
    // As Linux does: not while it decodes.
    root.set_command(at, Command::empty());
    set_bar(root, at, index as u8, &bar, to);
    root.set_command(at, Command::MEMORY_SPACE | Command::BUS_MASTER);
}
