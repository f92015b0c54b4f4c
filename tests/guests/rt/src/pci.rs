//! PCI: both ways into configuration space, addresses for BARs, MSI-X.

use alloc::vec::Vec;

use virtio_drivers::transport::pci::bus::{
    BarInfo, Cam, Command, ConfigurationAccess, DeviceFunction, MmioCam, PciRoot,
};

use crate::cpu;

/// Where BARs that have no address yet are put.
const WINDOW: core::ops::Range<u64> = 0xc000_0000..0xe000_0000;

const ECAM: u64 = 0xe000_0000;

/// Configuration space through the ports 0xcf8 and 0xcfc.
pub struct Ports;

impl ConfigurationAccess for Ports {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        cpu::out32(0xcf8, address(function, offset));
        cpu::in32(0xcfc)
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
        cpu::out32(0xcf8, address(function, offset));
        cpu::out32(0xcfc, data);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

fn address(function: DeviceFunction, offset: u8) -> u32 {
    let at = [offset & 0xfc, function.device << 3 | function.function, function.bus, 0x80];
    u32::from_le_bytes(at)
}

/// The address of configuration space in memory.
pub fn ecam() -> u64 {
    crate::acpi::ecam().unwrap_or(ECAM)
}

/// Bus 0, through memory.
pub fn root() -> PciRoot<MmioCam<'static>> {
    PciRoot::new(memory())
}

/// Configuration space through memory.
pub fn memory() -> MmioCam<'static> {
    // SAFETY: the window that the MCFG names; only bus 0 of it is ever touched.
    unsafe { MmioCam::new(ecam() as *mut u8, Cam::Ecam) }
}

/// A function's place.
pub fn function(device: u8, function: u8) -> DeviceFunction {
    DeviceFunction { bus: 0, device, function }
}

/// Give each memory BAR of bus 0 that has no address one, and switch decoding and bus mastering on.
pub fn assign() {
    let mut root = root();
    let functions: Vec<_> = root.enumerate_bus(0).map(|(function, _)| function).collect();
    let mut next = WINDOW.start;
    for &function in &functions {
        for bar in root.bars(function).into_iter().flatten().flatten() {
            if let Some((at, size)) = bar.memory_address_size()
                && WINDOW.contains(&at)
            {
                next = next.max(at + size);
            }
        }
    }
    for function in functions {
        for (index, bar) in root.bars(function).unwrap_or_default().into_iter().enumerate() {
            if let Some(BarInfo::Memory { address: 0, size, .. }) = &bar {
                next = next.next_multiple_of((*size).max(4096));
                set_bar(&mut root, function, index as u8, &bar, next);
                next += size;
            }
        }
        root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER | Command::INTERRUPT_DISABLE);
    }
}

/// Write the address of BAR `index`.
pub fn set_bar<C: ConfigurationAccess>(
    root: &mut PciRoot<C>,
    function: DeviceFunction,
    index: u8,
    bar: &Option<BarInfo>,
    at: u64,
) {
    if bar.as_ref().is_some_and(BarInfo::takes_two_entries) {
        root.set_bar_64(function, index, at);
    } else {
        root.set_bar_32(function, index, at as u32);
    }
}

/// The address of a memory BAR, mapped.
fn base<C: ConfigurationAccess>(root: &mut PciRoot<C>, function: DeviceFunction, bar: u8) -> Option<u64> {
    let (base, _) = root.bar_info(function, bar).ok()??.memory_address_size()?;
    crate::memory::map(base);
    Some(base)
}

/// The address of the virtio common configuration structure (virtio 1.2, 4.1.4.3) of a function.
pub fn common_config(function: DeviceFunction) -> Option<u64> {
    virtio_config(function, 1).map(|(at, _)| at)
}

/// The address of a virtio structure of a function, by its type (virtio 1.2, 4.1.4): 1 is the common configuration, 2 the notifications, 4 the
/// device's own. And the word behind its capability, which for notifications is their multiplier.
pub fn virtio_config(function: DeviceFunction, kind: u16) -> Option<(u64, u32)> {
    const VENDOR: u8 = 0x09;
    let mut root = root();
    let is_wanted = |private: u16| private >> 8 == kind;
    let capability =
        root.capabilities(function).find(|cap| cap.id == VENDOR && is_wanted(cap.private_header))?;
    let bar = memory().read_word(function, capability.offset + 4) as u8;
    let offset = memory().read_word(function, capability.offset + 8);
    let behind = memory().read_word(function, capability.offset + 16);
    Some((base(&mut root, function, bar)? + u64::from(offset), behind))
}

/// The MSI-X capability of a function: its place in configuration space and its table.
pub struct MsiX {
    function: DeviceFunction,
    offset: u8,
    table: u64,
    /// How many vectors it has.
    pub vectors: u16,
}

impl MsiX {
    /// Find it.
    pub fn find(function: DeviceFunction) -> Option<Self> {
        const ID: u8 = 0x11;
        let mut root = root();
        let capability = root.capabilities(function).find(|capability| capability.id == ID)?;
        let word = memory().read_word(function, capability.offset + 4);
        let table = base(&mut root, function, (word & 7) as u8)? + u64::from(word & !7);
        Some(Self {
            function,
            offset: capability.offset,
            table,
            vectors: (capability.private_header & 0x7ff) + 1,
        })
    }

    /// Enable or disable it, with all vectors masked or not.
    pub fn control(&self, enable: bool, mask_all: bool) {
        let mut access = memory();
        let word = access.read_word(self.function, self.offset) & 0x3fff_ffff;
        let bits = u32::from(enable) << 31 | u32::from(mask_all) << 30;
        access.write_word(self.function, self.offset, word | bits);
    }

    /// Have entry `index` raise `vector` on this processor.
    pub fn set(&self, index: u16, vector: u8, masked: bool) {
        let to = 0xfee0_0000 | u64::from(crate::apic::id()) << 12;
        self.write(index, to, vector.into(), masked);
    }

    /// Have entry `index` write `data` to `address`, unmasked.
    pub fn set_raw(&self, index: u16, address: u64, data: u32) {
        self.write(index, address, data, false);
    }

    fn write(&self, index: u16, address: u64, data: u32, masked: bool) {
        let entry = (self.table + 16 * u64::from(index)) as *mut u32;
        // SAFETY: an entry of the table, in the device's BAR.
        unsafe {
            entry.write_volatile(address as u32);
            entry.add(1).write_volatile((address >> 32) as u32);
            entry.add(2).write_volatile(data);
            entry.add(3).write_volatile(masked.into());
        }
    }

    /// Whether entry `index` is pending.
    pub fn is_pending(&self, index: u16) -> bool {
        let mut root = root();
        let word = memory().read_word(self.function, self.offset + 8);
        let Some(base) = base(&mut root, self.function, (word & 7) as u8) else { return false };
        let at = base + u64::from(word & !7) + 8 * u64::from(index / 64);
        // SAFETY: the pending bits, in the device's BAR.
        let bits = unsafe { (at as *const u64).read_volatile() };
        bits >> (index % 64) & 1 != 0
    }
}
