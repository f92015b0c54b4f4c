//! The DSDT: the devices that a guest cannot find by itself, in AML (ACPI 6.5 §5.2.11.1, §19, §20).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Equal, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed,
    Method, Name, Notify, OpRegion, OpRegionSpace, Or, Package, Path, ResourceTemplate, Return, Scope, Store,
    Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::tables::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use super::{AcpiSpec, MmioDevice, PciHost};
use crate::layout::{self, Range, event, gsi, port, power};

/// The table for a `spec` that was checked.
pub fn dsdt(spec: &AcpiSpec) -> Vec<u8> {
    let mut devices = Vec::new();
    if spec.serial {
        serial(&mut devices);
    }
    rtc(&mut devices);
    power_button(&mut devices);
    generation_counter(&mut devices);
    event_device(&mut devices);
    if spec.pvpanic {
        pvpanic(&mut devices);
    }
    for (index, device) in spec.mmio.iter().enumerate() {
        virtio_mmio(&mut devices, index, device);
    }
    if let Some(pci) = &spec.pci {
        host_bridge(&mut devices, pci);
        motherboard(&mut devices);
    }
    let devices = Raw(devices);
    let mut body = Vec::new();
    Scope::new("_SB_".into(), vec![&devices]).to_aml_bytes(&mut body);
    let s5 = power::SLEEP_TYPE_S5;
    Name::new("_S5_".into(), &Package::new(vec![&s5, &s5, &ZERO, &ZERO])).to_aml_bytes(&mut body);

    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table.as_slice().to_vec()
}

/// AML that was made before.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// An edge-triggered, active-high line of the device's own.
fn line(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// A 16550: PNP0501.
fn serial(to: &mut Vec<u8>) {
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(port::SERIAL, port::SERIAL, 1, 8), &line(gsi::SERIAL)]),
            ),
        ],
    )
    .to_aml_bytes(to);
}

/// The CMOS clock: PNP0B00.
fn rtc(to: &mut Vec<u8>) {
    Device::new(
        "RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(port::RTC, port::RTC, 1, 2), &line(gsi::RTC)]),
            ),
        ],
    )
    .to_aml_bytes(to);
}

/// The power button: a device that [`event_device`] notifies.
fn power_button(to: &mut Vec<u8>) {
    Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
    )
    .to_aml_bytes(to);
}

/// The VM generation counter: where in memory the identifier of this life of the VM is, as Microsoft's "Virtual Machine Generation ID"
/// has it. Drivers look for the compatible ID (Linux 5.18 and later in upper case, as which it reads all IDs).
fn generation_counter(to: &mut Vec<u8>) {
    let (low, high) = (layout::GENERATION as u32, (layout::GENERATION >> 32) as u32);
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"SKIF0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(to);
}

/// The generic event device (§5.6.9): its interrupt's method reads which events are pending, and tells the
/// devices they are about.
fn event_device(to: &mut Vec<u8>) {
    const PRESSED: u8 = 0x80;
    const CHANGED: u8 = 0x80;
    let status = Field::new(
        "EVRG".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVST", 8)],
    );
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&line(gsi::EVENT)])),
            &OpRegion::new("EVRG".into(), OpRegionSpace::SystemIO, &port::EVENT_STATUS, &1u8),
            &status,
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    // One read: reading clears.
                    &Store::new(&Local(0), &Path::new("EVST")),
                    &If::new(
                        &And::new(&ZERO, &Local(0), &event::POWER_BUTTON),
                        vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &PRESSED)],
                    ),
                    &If::new(
                        &And::new(&ZERO, &Local(0), &event::GENERATION),
                        vec![&Notify::new(&Path::new("\\_SB_.VGEN"), &CHANGED)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(to);
}

/// pvpanic on its ISA port, as QEMU describes it and Linux's driver expects it.
fn pvpanic(to: &mut Vec<u8>) {
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &0xfu8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(port::PVPANIC, port::PVPANIC, 1, 1)]),
            ),
        ],
    )
    .to_aml_bytes(to);
}

/// A virtio device on the MMIO transport: LNRO0005. `device` is below 4 GiB and `index` below 4096.
fn virtio_mmio(to: &mut Vec<u8>, index: usize, device: &MmioDevice) {
    let registers = Memory32Fixed::new(true, device.range.start as u32, device.range.len as u32);
    Device::new(
        Path::new(&format!("V{index:03X}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            // Its DMA is coherent.
            &Name::new("_CCA".into(), &1u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &line(device.gsi)])),
        ],
    )
    .to_aml_bytes(to);
}

/// The PCI Express host bridge and its windows. There is no `_PRT`: the devices have MSI-X only.
fn host_bridge(to: &mut Vec<u8>, pci: &PciHost) {
    let bus = AddressSpace::new_bus_number(0u16, 0);
    let config = IO::new(port::PCI_CONFIG, port::PCI_CONFIG, 1, 8);
    let low = layout::PCI_WINDOW_32;
    let uncached = AddressSpaceCacheable::NotCacheable;
    let low = AddressSpace::new_memory(uncached, true, low.start as u32, (low.end() - 1) as u32, None);
    let high = pci.window_64.map(|Range { start, len }| {
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, start, start + (len - 1), None)
    });
    let mut resources: Vec<&dyn Aml> = vec![&bus, &config, &low];
    resources.extend(high.iter().map(|window| window as &dyn Aml));

    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            &osc(),
        ],
    )
    .to_aml_bytes(to);
}

/// How the guest asks the host bridge for control of PCI Express features (PCI Firmware 3.3 §4.5): it gets all
/// that it asks for.
fn osc() -> Raw {
    const UNRECOGNISED_UUID: u8 = 1 << 2;
    let control = Path::new("CDW1");
    let mut method = Vec::new();
    Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &CreateDWordField::new(&control, &Arg(3), &ZERO),
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new("33DB4D5B-1FF7-401C-9657-7441C03DD766")),
                vec![&Return::new(&Arg(3))],
            ),
            &Or::new(&control, &control, &UNRECOGNISED_UUID),
            &Return::new(&Arg(3)),
        ],
    )
    .to_aml_bytes(&mut method);
    Raw(method)
}

/// Reserves the ECAM, without which Linux does not use it: PNP0C02.
fn motherboard(to: &mut Vec<u8>) {
    let ecam = Memory32Fixed::new(true, layout::ECAM.start as u32, layout::ECAM.len as u32);
    Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(to);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Vec<u8> {
        dsdt(&AcpiSpec { cpus: 1, mmio: Vec::new(), pci: None, serial: false, pvpanic: false })
    }

    fn has(table: &[u8], aml: &[u8]) -> bool {
        table.windows(aml.len()).any(|bytes| bytes == aml)
    }

    /// What is looked up by name and type (§20.2): a `Name` of a package of two integers, and compatible IDs that are strings.
    #[test]
    fn the_generation_counter_says_where_the_identifier_is() {
        let table = table();
        let address = (layout::GENERATION as u32).to_le_bytes();
        // NameOp, PackageOp, its length, two elements: a DWord and Zero.
        let addr = [b"\x08ADDR\x12\x08\x02\x0c".as_slice(), &address, b"\x00"].concat();
        assert!(has(&table, &addr), "{table:x?}");
        assert!(has(&table, b"\x08_HID\x0dSKIF0001\0"));
        assert!(has(&table, b"\x08_CID\x0dVM_Gen_Counter\0"));
        assert!(has(&table, b"\x08_DDN\x0dVM_Gen_Counter\0"));
        assert_eq!(layout::GENERATION % 8, 0, "as Microsoft's document wants it");
        assert_eq!(layout::GENERATION % 4096, 0);
        const { assert!(layout::GENERATION + layout::GENERATION_LEN as u64 <= layout::RESET_VECTOR) };
        const { assert!(layout::ACPI_END <= layout::GENERATION) };
    }

    #[test]
    fn each_event_notifies_the_device_that_it_is_about() {
        let table = table();
        // AndOp of Local0 and the event, to nowhere, and NotifyOp with 0x80, in the same If.
        for (bit, path) in [(event::POWER_BUTTON, b"PWRB"), (event::GENERATION, b"VGEN")] {
            let bit: &[u8] = if bit == 1 { &[1] } else { &[0x0a, bit] };
            let test = [b"\x7b\x60".as_slice(), bit, b"\x00"].concat();
            let notify = [b"\x86\\\x2e_SB_".as_slice(), path, b"\x0a\x80"].concat();
            assert!(has(&table, &[test, notify].concat()), "{table:x?}");
        }
    }
}
