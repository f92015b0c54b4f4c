//! Where everything lies in the guest's physical address space, and on which ports and interrupt lines.
//!
//! ```text
//! 0x0000_0500  GDT                       0x0000_6000  PVH start info, module list, memory map
//! 0x0000_7000  zero page                 0x0000_9000  first page tables (6 pages)
//! 0x0002_0000  command line              0x000e_0000  ACPI tables
//! 0x000f_f000  VM generation ID          0x000f_fff0  reset vector
//! 0x0010_0000  kernel, initrd, RAM up to 3 GiB
//! 0xc000_0000  PCI memory, 32-bit        0xe000_0000  ECAM of bus 0 (room kept for 256 buses)
//! 0xf000_0000  virtio-mmio slots         0xfec0_0000  I/O APIC
//! 0xfee0_0000  local APIC                0xfffb_c000  pages that KVM wants on Intel
//! 0x1_0000_0000  the rest of RAM, then PCI memory, 64-bit
//! ```

/// Where RAM below 4 GiB ends at the latest; above it lies the hole for devices.
pub const LOW_RAM_LIMIT: u64 = 0xc000_0000;
/// Where RAM goes on above the hole.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// The least memory a VM can have, in bytes.
pub const MIN_MEMORY: u64 = 64 << 20;

/// The global descriptor table of the boot registers.
pub const GDT: u64 = 0x500;
/// The PVH start info, followed by its module list and memory map; one page.
pub const PVH_INFO: u64 = 0x6000;
/// Linux's boot parameters; one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// The page tables a 64-bit kernel is entered with: PML4, PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line, with its terminating zero.
pub const CMDLINE: u64 = 0x2_0000;
/// Linux's `COMMAND_LINE_SIZE`: the longest command line, its terminating zero included.
pub const CMDLINE_SIZE: usize = 2048;
/// The end of conventional memory: firmware would keep its extended data area above.
pub const EBDA: u64 = 0x9_fc00;
/// The RSDP, and the ACPI tables behind it. Linux also searches here when nobody tells it the address.
pub const ACPI: u64 = 0xe_0000;
/// The end of the room for ACPI tables.
pub const ACPI_END: u64 = 0xf_f000;
/// The VM generation ID, [`GENERATION_LEN`] bytes: another in each life of the VM. The rest of its page is not used by anything that
/// changes while the guest runs.
pub const GENERATION: u64 = 0xf_f000;
/// The length of the VM generation ID, in bytes.
pub const GENERATION_LEN: usize = 16;
/// Where a processor starts after a reset, f000:fff0 in real mode; 16 bytes.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// The lowest address a kernel may be loaded at.
pub const KERNEL_START: u64 = 0x10_0000;

/// The 32-bit window for PCI BARs.
pub const PCI_WINDOW_32: Range = Range { start: 0xc000_0000, len: 0x2000_0000 };
/// The PCI configuration space (ECAM) of bus 0, 4 KiB a function.
pub const ECAM: Range = Range { start: 0xe000_0000, len: 0x10_0000 };
/// The first virtio-mmio slot.
pub const MMIO_SLOTS: u64 = 0xf000_0000;
/// The length of a virtio-mmio slot.
pub const MMIO_SLOT_LEN: u64 = 0x1000;
/// The I/O APIC, and the id the MADT gives it.
pub const IO_APIC: u64 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// For KVM_SET_IDENTITY_MAP_ADDR.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// For KVM_SET_TSS_ADDR; three pages.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// The most vCPUs a VM can have; an APIC id is a vCPU's index.
pub const MAX_CPUS: u32 = 64;

/// I/O ports.
pub mod port {
    /// 16550 UART, 8 ports.
    pub const SERIAL: u16 = 0x3f8;
    /// Data port of the keyboard controller.
    pub const I8042_DATA: u16 = 0x60;
    /// Command port of the keyboard controller: 0xfe resets.
    pub const I8042_COMMAND: u16 = 0x64;
    /// CMOS RTC, index and data: 2 ports.
    pub const RTC: u16 = 0x70;
    /// PCI configuration mechanism 1, 8 ports.
    pub const PCI_CONFIG: u16 = 0xcf8;
    /// pvpanic, 1 port.
    pub const PVPANIC: u16 = 0x505;
    /// ACPI 6.5 §4.8.3.7, sleep control register: SLP_EN (bit 5) with [`super::power::SLEEP_TYPE_S5`] as SLP_TYP (bits 2
    /// to 4) switches off.
    pub const SLEEP_CONTROL: u16 = 0x600;
    /// ACPI 6.5 §4.8.3.7, sleep status register.
    pub const SLEEP_STATUS: u16 = 0x601;
    /// ACPI 6.5 §4.8.3.6, reset register: [`super::power::RESET`] written here resets.
    pub const RESET: u16 = 0x602;
    /// What the generic event device's interrupt was for: bits of [`super::event`], cleared by reading.
    pub const EVENT_STATUS: u16 = 0x603;
}

/// Values of the power registers.
pub mod power {
    /// The SLP_TYP that the `\_S5` object names.
    pub const SLEEP_TYPE_S5: u8 = 5;
    /// What a guest writes to [`super::port::RESET`] to reset.
    pub const RESET: u8 = 1;
}

/// Bits of [`port::EVENT_STATUS`].
pub mod event {
    /// The power button was pressed.
    pub const POWER_BUTTON: u8 = 1 << 0;
    /// The VM generation ID is another than before.
    pub const GENERATION: u8 = 1 << 1;
}

/// Interrupt lines. All are edge-triggered and active high.
pub mod gsi {
    /// The serial port.
    pub const SERIAL: u32 = 4;
    /// The CMOS RTC.
    pub const RTC: u32 = 8;
    /// The generic event device: power button, VM generation ID.
    pub const EVENT: u32 = 9;
    /// One for each virtio-mmio device.
    pub const MMIO: [u32; 17] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
    /// Pins of the I/O APIC. MSI routes use numbers from here on.
    pub const IO_APIC_PINS: u32 = 24;
}

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Range {
    /// The first address behind the range.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// Whether the two ranges share an address.
    #[must_use]
    pub const fn overlaps(&self, other: &Range) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// Where `memory` bytes of RAM go: one range, or two around the hole below 4 GiB.
#[must_use]
pub fn ram_regions(memory: u64) -> Vec<(u64, u64)> {
    let low = memory.min(LOW_RAM_LIMIT);
    let mut regions = vec![(0, low)];
    if memory > low {
        regions.push((HIGH_RAM_START, memory - low));
    }
    regions
}

/// The end of the RAM below 4 GiB, of `memory` bytes.
#[must_use]
pub fn low_ram_end(memory: u64) -> u64 {
    memory.min(LOW_RAM_LIMIT)
}

/// The virtio-mmio slot `index`: its range and interrupt line. `None` past the last.
#[must_use]
pub fn mmio_slot(index: usize) -> Option<(Range, u32)> {
    let gsi = *gsi::MMIO.get(index)?;
    Some((Range { start: MMIO_SLOTS + index as u64 * MMIO_SLOT_LEN, len: MMIO_SLOT_LEN }, gsi))
}

/// The 64-bit window for PCI BARs: behind the RAM, 1 GiB aligned, at most 64 GiB, within the processor's
/// `phys_bits` of address. `None` if that leaves less than 1 GiB.
#[must_use]
pub fn pci_window_64(memory: u64, phys_bits: u8) -> Option<Range> {
    const ALIGN: u64 = 1 << 30;
    let ram_end = ram_regions(memory).last().map_or(0, |&(start, len)| start.saturating_add(len));
    let start = ram_end.max(HIGH_RAM_START).checked_next_multiple_of(ALIGN)?;
    let limit = 1u64 << phys_bits.min(52);
    let len = limit.checked_sub(start)?.min(64 << 30);
    (len >= ALIGN).then_some(Range { start, len })
}

/// What an entry of the memory map describes. The values are those of e820 and of PVH's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM for the guest's use.
    Ram = 1,
    /// In use by the machine.
    Reserved = 2,
}

/// The memory map a guest with `memory` bytes of RAM is told, in rising order without overlaps.
#[must_use]
pub fn memory_map(memory: u64) -> Vec<(Range, MemoryKind)> {
    let between = |start: u64, end: u64| Range { start, len: end.saturating_sub(start) };
    let mut map = vec![
        (between(0, EBDA), MemoryKind::Ram),
        (between(EBDA, 0xa_0000), MemoryKind::Reserved),
        (between(ACPI, KERNEL_START), MemoryKind::Reserved),
        (between(KERNEL_START, low_ram_end(memory)), MemoryKind::Ram),
        // Linux believes the MCFG table only when the memory map or a motherboard resource agrees.
        (ECAM, MemoryKind::Reserved),
        (between(KVM_IDENTITY_MAP, KVM_TSS + 0x3000), MemoryKind::Reserved),
    ];
    if memory > LOW_RAM_LIMIT {
        map.push((Range { start: HIGH_RAM_START, len: memory - LOW_RAM_LIMIT }, MemoryKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_leaves_the_hole_below_4_gib_free() {
        assert_eq!(ram_regions(64 * MIB), [(0, 64 * MIB)]);
        assert_eq!(ram_regions(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ram_regions(4 * GIB), [(0, 3 * GIB), (4 * GIB, GIB)]);
        assert_eq!(ram_regions(8 * GIB), [(0, 3 * GIB), (4 * GIB, 5 * GIB)]);
    }

    #[test]
    fn the_memory_map_is_sorted_and_its_ram_is_the_vms_memory_less_the_firmware_hole() {
        let hole = KERNEL_START - EBDA;
        for memory in [64 * MIB, 3 * GIB, 3 * GIB + MIB, 4 * GIB, 8 * GIB] {
            let map = memory_map(memory);
            for pair in map.windows(2) {
                assert!(pair[0].0.end() <= pair[1].0.start, "{pair:?}");
            }
            let ram: u64 = map.iter().filter(|e| e.1 == MemoryKind::Ram).map(|e| e.0.len).sum();
            assert_eq!(ram, memory - hole, "{memory}");
            let has_high = map.iter().any(|e| e.0.start == HIGH_RAM_START);
            assert_eq!(has_high, memory > 3 * GIB);
        }
    }

    #[test]
    fn the_64_bit_window_lies_behind_the_ram_and_within_the_processors_reach() {
        assert_eq!(pci_window_64(64 * MIB, 40), Some(Range { start: 4 * GIB, len: 64 * GIB }));
        assert_eq!(pci_window_64(8 * GIB + 1, 40), Some(Range { start: 10 * GIB, len: 64 * GIB }));
        assert_eq!(pci_window_64(8 * GIB, 36), Some(Range { start: 9 * GIB, len: 55 * GIB }));
        assert_eq!(pci_window_64(63 * GIB, 36), None);
        assert_eq!(pci_window_64(80 * GIB, 36), None);
        assert_eq!(pci_window_64(u64::MAX, 48), None);
    }

    #[test]
    fn windows_and_slots_do_not_overlap() {
        let (last, _) = mmio_slot(gsi::MMIO.len() - 1).unwrap();
        assert_eq!(mmio_slot(gsi::MMIO.len()), None);
        let slots = Range { start: MMIO_SLOTS, len: last.end() - MMIO_SLOTS };
        let apics = Range { start: IO_APIC, len: LOCAL_APIC + 0x1000 - IO_APIC };
        let ranges = [PCI_WINDOW_32, Range { start: ECAM.start, len: 256 << 20 }, slots, apics];
        for (i, a) in ranges.iter().enumerate() {
            assert!(ranges[i + 1..].iter().all(|b| !a.overlaps(b)), "{a:?}");
        }
    }
}
