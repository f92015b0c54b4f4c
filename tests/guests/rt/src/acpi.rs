//! Reading the ACPI tables (ACPI 6.5, 5.2), as far as a guest without an AML interpreter needs them.

use alloc::vec::Vec;
use core::ptr::read_unaligned;

/// A table in memory.
#[derive(Clone, Copy)]
pub struct Table {
    /// Its guest-physical address.
    pub at: u64,
    /// Its length in bytes, header and all.
    pub len: u32,
    /// Its signature.
    pub signature: [u8; 4],
}

impl Table {
    fn new(at: u64) -> Self {
        Self { at, len: read(at + 4), signature: read(at) }
    }

    /// The byte sum, which must be 0.
    pub fn checksum(&self) -> u8 {
        sum(self.at, self.len.into())
    }

    /// A field at `offset`.
    pub fn field<T: Copy>(&self, offset: u64) -> T {
        read(self.at + offset)
    }
}

/// The fixed description table's fields that matter on hardware-reduced machines.
pub struct Fadt {
    /// The feature flags.
    pub flags: u32,
    /// The sleep control register's port.
    pub sleep_control: u64,
    /// The sleep status register's port.
    pub sleep_status: u64,
    /// The reset register's port.
    pub reset: u64,
    /// What to write there.
    pub reset_value: u8,
    /// The DSDT's address.
    pub dsdt: u64,
}

fn read<T: Copy>(at: u64) -> T {
    // SAFETY: tables lie in memory below 4 GiB, all of which is mapped.
    unsafe { read_unaligned(at as *const T) }
}

fn sum(at: u64, len: u64) -> u8 {
    (at..at + len).fold(0, |sum: u8, at| sum.wrapping_add(read(at)))
}

/// The tables that the root table lists; none if there is no root pointer, or a wrong one. Needs no heap: the way to
/// switch off goes through here.
pub fn tables() -> impl Iterator<Item = Table> {
    let rsdp = crate::pvh::rsdp();
    let is_there = rsdp != 0 && read::<[u8; 8]>(rsdp) == *b"RSD PTR ";
    // QEMU's machines for bare kernels may have the old kind, with 32-bit addresses.
    let is_wide = is_there && read::<u8>(rsdp + 15) >= 2;
    let (at, width) = match (is_there, is_wide) {
        (false, _) => (0, 8),
        (true, true) => (read::<u64>(rsdp + 24), 8),
        (true, false) => (read::<u32>(rsdp + 16).into(), 4),
    };
    let count = if at == 0 { 0 } else { (u64::from(Table::new(at).len) - 36) / width };
    (0..count).map(move |index| {
        let entry = at + 36 + width * index;
        Table::new(if is_wide { read(entry) } else { read::<u32>(entry).into() })
    })
}

/// Whether the root pointer and the root table add up.
pub fn root_is_sound() -> bool {
    let rsdp = crate::pvh::rsdp();
    rsdp != 0 && sum(rsdp, 20) == 0 && sum(rsdp, 36) == 0 && Table::new(read(rsdp + 24)).checksum() == 0
}

/// The table with this signature.
pub fn table(signature: &[u8; 4]) -> Option<Table> {
    tables().find(|table| table.signature == *signature)
}

/// The fixed description table.
pub fn fadt() -> Option<Fadt> {
    let table = table(b"FACP")?;
    let wide: u64 = if table.len >= 148 { table.field(140) } else { 0 };
    let register = |offset: u64| if table.len >= 268 { table.field(offset + 4) } else { 0 };
    Some(Fadt {
        flags: table.field(112),
        sleep_control: register(244),
        sleep_status: register(256),
        reset: table.field(116 + 4),
        reset_value: table.field(128),
        dsdt: if wide != 0 { wide } else { table.field::<u32>(40).into() },
    })
}

/// The DSDT.
pub fn dsdt() -> Option<Table> {
    fadt().map(|fadt| Table::new(fadt.dsdt))
}

/// The local APIC numbers of the processors in the MADT that are enabled.
pub fn processors() -> Vec<u32> {
    let Some(madt) = table(b"APIC") else { return Vec::new() };
    let mut found = Vec::new();
    let mut at = 44;
    while at + 2 <= madt.len.into() {
        match madt.field::<u8>(at) {
            0 if madt.field::<u32>(at + 4) & 1 != 0 => found.push(madt.field::<u8>(at + 3).into()),
            9 if madt.field::<u32>(at + 8) & 1 != 0 => found.push(madt.field(at + 4)),
            _ => {}
        }
        at += u64::from(madt.field::<u8>(at + 1)).max(2);
    }
    found
}

/// The address of the PCI configuration space in memory, for bus 0.
pub fn ecam() -> Option<u64> {
    let mcfg = table(b"MCFG")?;
    (mcfg.len >= 60).then(|| mcfg.field(44))
}

/// Whether `bytes` occur in the DSDT.
pub fn dsdt_has(bytes: &[u8]) -> bool {
    let Some(dsdt) = dsdt() else { return false };
    let len = u64::from(dsdt.len);
    let matches =
        |from: u64| bytes.iter().enumerate().all(|(i, &byte)| dsdt.field::<u8>(from + i as u64) == byte);
    (36..len.saturating_sub(bytes.len() as u64 - 1)).any(matches)
}
