//! The tables of fixed form: RSDP, XSDT, FADT, MADT and MCFG (ACPI 6.5 §5.2, PCI Firmware 3.3 §4.1.2).

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::layout::{self, gsi, port, power};

/// Who made the tables.
pub const OEM_ID: [u8; 6] = *b"SKIFF ";
/// Which tables they are.
pub const OEM_TABLE_ID: [u8; 8] = *b"SKIFF VM";
/// Of which revision.
pub const OEM_REVISION: u32 = 1;

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The root pointer (§5.2.5.3).
pub fn rsdp(xsdt: u64) -> Vec<u8> {
    bytes(&Rsdp::new(OEM_ID, xsdt))
}

/// The list of `tables` by their addresses (§5.2.8).
pub fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for &table in tables {
        xsdt.add_entry(table);
    }
    bytes(&xsdt)
}

/// The fixed hardware (§5.2.9): sleep and reset registers, and that there is no more than those.
///
/// No keyboard controller is claimed, though its reset works: a guest would spend time probing for keyboard and
/// mouse, and one that resets by it writes the port without asking.
pub fn fadt(dsdt: u64) -> Vec<u8> {
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    let io = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Power and sleep button are no fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = VGA_NOT_PRESENT.into();
    fadt.reset_reg = io(port::RESET);
    fadt.reset_value = power::RESET;
    fadt.sleep_control_reg = io(port::SLEEP_CONTROL);
    fadt.sleep_status_reg = io(port::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"SKIFF\0\0\0").into();
    bytes(&fadt.finalize())
}

/// The interrupt controllers (§5.2.12): a local APIC for each vCPU, all enabled, and one I/O APIC.
pub fn madt(cpus: u32) -> Vec<u8> {
    const REVISION: u8 = 6;
    const ENABLED: u32 = 1;
    const ACTIVE_HIGH_EDGE: u16 = 0b0101;
    const ALL_PROCESSORS: u8 = 0xff;
    let mut body = Vec::new();
    body.extend((layout::LOCAL_APIC as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes());
    for cpu in 0..cpus as u8 {
        body.extend([0, 8, cpu, cpu]);
        body.extend(ENABLED.to_le_bytes());
    }
    body.extend([1, 12, 0, 0]);
    body.extend((layout::IO_APIC as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // ISA lines are edge-triggered and active high anyway; guests take line 9 for a level-triggered SCI.
    body.extend([2, 10, 0, gsi::EVENT as u8]);
    body.extend(gsi::EVENT.to_le_bytes());
    body.extend(ACTIVE_HIGH_EDGE.to_le_bytes());
    // LINT1 of every local APIC is NMI.
    body.extend([4, 6, ALL_PROCESSORS, 0, 0, 1]);

    let mut madt = Sdt::new(*b"APIC", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&body);
    madt.as_slice().to_vec()
}

/// Where bus 0's configuration space is.
pub fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    bytes(&mcfg)
}
