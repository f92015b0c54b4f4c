//! Describes the machine to the guest: ACPI tables, written to the firmware's area below 1 MiB.
//!
//! The machine is *hardware-reduced* (ACPI 6.5 §4.1): no PM timer, no SCI, no SMI. What is left are sleep and
//! reset registers, and a generic event device for the power button and the VM generation counter. A guest has less to probe, and boots sooner.

mod dsdt;
mod tables;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{self, Range};
use crate::memory::GuestRam;

/// What the tables depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiSpec {
    /// How many vCPUs there are, from 1 to [`layout::MAX_CPUS`].
    pub cpus: u32,
    /// The virtio-mmio devices.
    pub mmio: Vec<MmioDevice>,
    /// The PCI host bridge, if there is one.
    pub pci: Option<PciHost>,
    /// Whether there is a serial port.
    pub serial: bool,
    /// Whether there is a pvpanic device.
    pub pvpanic: bool,
}

/// A virtio device on the MMIO transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Its registers; below 4 GiB.
    pub range: Range,
    /// Its interrupt line.
    pub gsi: u32,
}

/// The PCI host bridge. Its 32-bit window and its ECAM are fixed by [`layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciHost {
    /// The window above 4 GiB, from [`layout::pci_window_64`].
    pub window_64: Option<Range>,
}

/// The tables could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// More vCPUs than the tables have room for, or none.
    #[error("{0} vCPUs; a VM has from 1 to {max}", max = layout::MAX_CPUS)]
    Cpus(u32),
    /// More MMIO devices than interrupt lines.
    #[error("{0} virtio-mmio devices; there are interrupt lines for {max}", max = layout::gsi::MMIO.len())]
    TooManyDevices(usize),
    /// An MMIO device's range or the 64-bit window is empty, wraps or is out of reach.
    #[error("a device's range {start:#x}+{len:#x} cannot be described")]
    BadRange {
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The tables do not fit below 1 MiB.
    #[error("the ACPI tables take {0} bytes; there is room for {max}", max = layout::ACPI_END - layout::ACPI)]
    TooLong(u64),
    /// Guest memory could not be written.
    #[error("cannot write the ACPI tables to guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// Make the tables for `spec` and write them at [`layout::ACPI`], where the boot protocols say the RSDP is.
///
/// # Errors
/// If `spec` cannot be described or `ram` does not reach there.
pub fn write(spec: &AcpiSpec, ram: &GuestRam) -> Result<(), AcpiError> {
    Ok(ram.write_slice(&build(spec)?, GuestAddress(layout::ACPI))?)
}

/// The tables for `spec` as they lie in memory from [`layout::ACPI`] on, the RSDP first.
///
/// # Errors
/// If `spec` cannot be described.
pub fn build(spec: &AcpiSpec) -> Result<Vec<u8>, AcpiError> {
    check(spec)?;
    let mut area = Area::default();
    // The RSDP's place is first, its content last: it names the XSDT's address.
    area.push(&tables::rsdp(0));
    let dsdt = area.push(&dsdt::dsdt(spec));
    let mut listed = vec![area.push(&tables::fadt(dsdt)), area.push(&tables::madt(spec.cpus))];
    if spec.pci.is_some() {
        listed.push(area.push(&tables::mcfg()));
    }
    let xsdt = area.push(&tables::xsdt(&listed));
    area.bytes.splice(..tables::rsdp(xsdt).len(), tables::rsdp(xsdt));
    let len = area.bytes.len() as u64;
    if len > layout::ACPI_END - layout::ACPI {
        return Err(AcpiError::TooLong(len));
    }
    Ok(area.bytes)
}

fn check(spec: &AcpiSpec) -> Result<(), AcpiError> {
    if !(1..=layout::MAX_CPUS).contains(&spec.cpus) {
        return Err(AcpiError::Cpus(spec.cpus));
    }
    if spec.mmio.len() > layout::gsi::MMIO.len() {
        return Err(AcpiError::TooManyDevices(spec.mmio.len()));
    }
    let window_64 = spec.pci.and_then(|pci| pci.window_64);
    let mmio = spec.mmio.iter().map(|device| (device.range, 1 << 32));
    for (Range { start, len }, limit) in mmio.chain(window_64.map(|range| (range, 1 << 52))) {
        if len == 0 || start.checked_add(len).is_none_or(|end| end > limit) {
            return Err(AcpiError::BadRange { start, len });
        }
    }
    Ok(())
}

/// The tables one behind the other.
#[derive(Default)]
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Append a table at the next multiple of 16, and return its address.
    fn push(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let addr = layout::ACPI + self.bytes.len() as u64;
        self.bytes.extend(table);
        addr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn spec(cpus: u32) -> AcpiSpec {
        let mmio = (0..layout::gsi::MMIO.len())
            .map(|i| layout::mmio_slot(i).map(|(range, gsi)| MmioDevice { range, gsi }).unwrap())
            .collect();
        let window_64 = layout::pci_window_64(1 << 30, 40);
        AcpiSpec { cpus, mmio, pci: Some(PciHost { window_64 }), serial: true, pvpanic: true }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
    }

    fn address(bytes: &[u8], at: usize) -> usize {
        (u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) - layout::ACPI) as usize
    }

    fn table(area: &[u8], at: usize) -> &[u8] {
        let table = &area[at..][..word(area, at + 4) as usize];
        assert_eq!(sum(table), 0, "checksum of {:?}", &table[..4]);
        table
    }

    /// Follow the RSDP to every table, as a guest does.
    fn walk(area: &[u8]) -> Vec<&[u8]> {
        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!((sum(&area[..20]), sum(&area[..36]), area[15]), (0, 0, 2));
        let xsdt = table(area, address(area, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let mut found: Vec<&[u8]> =
            (36..xsdt.len()).step_by(8).map(|at| table(area, address(xsdt, at))).collect();
        let fadt = found.iter().find(|t| t.starts_with(b"FACP")).unwrap();
        found.push(table(area, address(fadt, 140)));
        found
    }

    fn find<'a>(tables: &[&'a [u8]], signature: &[u8; 4]) -> &'a [u8] {
        tables.iter().find(|t| t.starts_with(signature)).unwrap()
    }

    #[test]
    fn every_table_is_reached_and_its_checksum_is_right() {
        for cpus in [1, 2, 64] {
            let area = build(&spec(cpus)).unwrap();
            let tables = walk(&area);
            let names: Vec<_> = tables.iter().map(|t| &t[..4]).collect();
            assert_eq!(names, [b"FACP", b"APIC", b"MCFG", b"DSDT"]);
            let madt = find(&tables, b"APIC");
            assert_eq!(word(madt, 36), layout::LOCAL_APIC);
            let (mut at, mut apics) = (44, Vec::new());
            while at < madt.len() {
                if madt[at] == 0 {
                    assert_eq!(word(madt, at + 4), 1, "enabled");
                    apics.push(madt[at + 3]);
                }
                at += usize::from(madt[at + 1]);
            }
            assert_eq!(at, madt.len());
            assert_eq!(apics, (0..cpus as u8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_fadt_names_sleep_and_reset_registers_and_is_hardware_reduced() {
        let area = build(&spec(1)).unwrap();
        let fadt = find(&walk(&area), b"FACP").to_vec();
        assert_eq!(fadt.len(), 276);
        assert_eq!(word(&fadt, 112) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        let register = |at: usize| (fadt[at], u64::from_le_bytes(fadt[at + 4..at + 12].try_into().unwrap()));
        assert_eq!((register(116), fadt[128]), ((1, layout::port::RESET.into()), layout::power::RESET));
        assert_eq!(register(244), (1, layout::port::SLEEP_CONTROL.into()));
        assert_eq!(register(256), (1, layout::port::SLEEP_STATUS.into()));
    }

    #[test]
    fn the_mcfg_names_bus_0_only_and_goes_with_the_host_bridge() {
        let area = build(&spec(1)).unwrap();
        let mcfg = find(&walk(&area), b"MCFG").to_vec();
        assert_eq!(word(&mcfg, 44), layout::ECAM.start);
        assert_eq!((mcfg.len(), mcfg[54], mcfg[55]), (60, 0, 0));
        let area = build(&AcpiSpec { pci: None, ..spec(1) }).unwrap();
        assert!(!walk(&area).iter().any(|t| t.starts_with(b"MCFG")));
    }

    #[test]
    fn what_cannot_be_described_is_refused() {
        assert!(matches!(build(&spec(0)), Err(AcpiError::Cpus(0))));
        assert!(matches!(build(&spec(65)), Err(AcpiError::Cpus(65))));
        let mut many = spec(1);
        many.mmio.push(many.mmio[0]);
        assert!(matches!(build(&many), Err(AcpiError::TooManyDevices(18))));
        for range in [Range { start: 0, len: 0 }, Range { start: 0xffff_f000, len: 0x1001 }] {
            let mmio = vec![MmioDevice { range, gsi: 5 }];
            assert!(matches!(build(&AcpiSpec { mmio, ..spec(1) }), Err(AcpiError::BadRange { .. })));
            let pci = Some(PciHost { window_64: Some(Range { start: u64::MAX, ..range }) });
            assert!(matches!(build(&AcpiSpec { pci, ..spec(1) }), Err(AcpiError::BadRange { .. })));
        }
    }

    #[test]
    fn the_tables_lie_where_the_memory_map_reserves_room() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        write(&spec(64), &ram).unwrap();
        let mut signature = [0; 8];
        ram.read_slice(&mut signature, GuestAddress(layout::ACPI)).unwrap();
        assert_eq!(&signature, b"RSD PTR ");
    }
}
