//! The registers the first vCPU starts with, and the tables in memory that they point to.
//!
//! Only the first vCPU gets these. The others stay as KVM creates them, waiting for INIT and SIPI.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, kvm_fpu, kvm_irqchip, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::boot::{Entry, Protocol};
use crate::layout;
use crate::memory::GuestRam;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of EFLAGS that is always one.
const EFLAGS_RESERVED: u64 = 1 << 1;

/// Selectors. 0x10 and 0x18 are the `__BOOT_CS` and `__BOOT_DS` that Linux's 64-bit protocol asks for.
const CODE_32: u16 = 0x08;
const CODE_64: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;
/// Null, 32-bit code, 64-bit code, data, then two words for the task.
const GDT_LEN: usize = 6;

const PTE_PRESENT_WRITABLE: u64 = 0b11;
const PTE_LARGE: u64 = 1 << 7;
/// Page directories, each of which maps 1 GiB: all of the first 4 GiB.
const PAGE_DIRECTORIES: u64 = 4;

/// Write the tables that the registers for `protocol` point to: the GDT and, for a 64-bit entry, page tables
/// that map the first 4 GiB to themselves.
///
/// # Errors
/// If guest memory cannot be written there.
pub fn write_tables(ram: &GuestRam, protocol: Protocol) -> Result<(), GuestMemoryError> {
    ram.write_slice(&words(gdt()), GuestAddress(layout::GDT))?;
    if protocol == Protocol::Linux64 {
        ram.write_slice(&words(page_tables()), GuestAddress(layout::PAGE_TABLES))?;
    }
    Ok(())
}

fn words(table: impl IntoIterator<Item = u64>) -> Vec<u8> {
    table.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn gdt() -> [u64; GDT_LEN] {
    let task = descriptor(&task_segment());
    [0, descriptor(&code_32()), descriptor(&code_64()), descriptor(&data()), task, 0]
}

/// PML4, PDPT and page directories of 2 MiB pages, which every x86-64 processor has.
fn page_tables() -> impl Iterator<Item = u64> {
    let table = |n: u64| (layout::PAGE_TABLES + n * 0x1000) | PTE_PRESENT_WRITABLE;
    let padded = |used: u64| std::iter::repeat_n(0, (512 - used) as usize);
    std::iter::once(table(1))
        .chain(padded(1))
        .chain((0..PAGE_DIRECTORIES).map(move |n| table(2 + n)))
        .chain(padded(PAGE_DIRECTORIES))
        .chain((0..PAGE_DIRECTORIES * 512).map(|n| (n << 21) | PTE_PRESENT_WRITABLE | PTE_LARGE))
}

/// The descriptor in memory for a segment as KVM states it; Intel SDM volume 3, §3.4.5.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let bit = |value: u8, at: u32| u64::from(value) << at;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | bit(segment.type_, 40)
        | bit(segment.s, 44)
        | bit(segment.dpl, 45)
        | bit(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
        | (segment.base >> 24 & 0xff) << 56
}

fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment { limit: u32::MAX, selector, type_, present: 1, s: 1, g: 1, ..Default::default() }
}

fn code_32() -> kvm_segment {
    kvm_segment { db: 1, ..flat(CODE_32, 0xb) }
}

fn code_64() -> kvm_segment {
    kvm_segment { l: 1, ..flat(CODE_64, 0xb) }
}

fn data() -> kvm_segment {
    kvm_segment { db: 1, ..flat(DATA, 0x3) }
}

/// A busy task state segment, which the processor demands; nothing uses it.
fn task_segment() -> kvm_segment {
    kvm_segment { limit: 0x67, selector: TASK, type_: 0xb, present: 1, ..Default::default() }
}

/// The special registers to enter a kernel with. `initial` is what KVM_GET_SREGS says of a new vCPU, whose
/// local APIC base is kept; for a reboot, keep that from when the vCPU was created.
#[must_use]
pub fn sregs(entry: &Entry, initial: &kvm_sregs) -> kvm_sregs {
    let mut sregs = *initial;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (GDT_LEN * 8 - 1) as u16;
    // Any exception before the kernel has its own table is fatal anyway.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data();
    }
    sregs.tr = task_segment();
    match entry.protocol {
        Protocol::Linux64 => {
            sregs.cs = code_64();
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Protocol::Pvh => {
            sregs.cs = code_32();
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr3 = 0;
            sregs.cr4 = 0;
            sregs.efer = 0;
        }
    }
    sregs
}

/// The general registers to enter a kernel with.
#[must_use]
pub fn regs(entry: &Entry) -> kvm_regs {
    let (rbx, rsi) = match entry.protocol {
        Protocol::Linux64 => (0, entry.info),
        Protocol::Pvh => (entry.info, 0),
    };
    kvm_regs { rip: entry.address, rbx, rsi, rflags: EFLAGS_RESERVED, ..Default::default() }
}

/// The floating-point state after FNINIT.
#[must_use]
pub fn fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// Wire a local APIC's LINT0 to the PIC (ExtINT) and LINT1 to NMI, as firmware does; Intel SDM volume 3, §11.5.1.
/// For every vCPU.
pub fn wire_lapic(lapic: &mut kvm_lapic_state) {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MODE_NMI: u8 = 4;
    const MODE_EXTINT: u8 = 7;
    for (at, mode) in [(LVT_LINT0, MODE_EXTINT), (LVT_LINT1, MODE_NMI)] {
        // The delivery mode is bits 8 to 10: the low bits of the second byte. Bit 16 masks.
        if let Some(byte) = lapic.regs.get_mut(at + 1) {
            *byte = (*byte & !7) | mode as std::ffi::c_char;
        }
        if let Some(byte) = lapic.regs.get_mut(at + 2) {
            *byte &= !1;
        }
    }
}

/// Mask every line of a PIC, as firmware leaves it; for the irqchips KVM_IRQCHIP_PIC_MASTER and `_SLAVE`.
///
/// KVM raises an interrupt line at the PIC and at the I/O APIC. A guest of hardware-reduced ACPI believes that
/// there is no PIC and so never masks it: without this, the serial port's first interrupt would come as vector 4.
/// A guest that does use the PIC unmasks it while it sets it up.
pub fn mask_pic(irqchip: &mut kvm_irqchip) {
    if irqchip.chip_id != KVM_IRQCHIP_IOAPIC {
        irqchip.chip.pic.imr = 0xff;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_ones() {
        assert_eq!(
            gdt(),
            [
                0,
                0x00cf_9b00_0000_ffff,
                0x00af_9b00_0000_ffff,
                0x00cf_9300_0000_ffff,
                0x0000_8b00_0000_0067,
                0
            ]
        );
    }

    #[test]
    fn page_tables_map_4_gib_to_themselves() {
        let tables: Vec<u64> = page_tables().collect();
        assert_eq!(tables.len() as u64, 512 * (2 + PAGE_DIRECTORIES));
        for addr in [0u64, 0x20_0000, 0x3fff_ffff, 0x4000_0000, 0xffff_ffff] {
            let next = |entry: u64| ((entry & !0xfff) - layout::PAGE_TABLES) as usize / 8;
            let directory = next(tables[0]) + (addr >> 30) as usize;
            let page = tables[next(tables[directory]) + (addr >> 21 & 511) as usize];
            assert_eq!(page & !0x1f_ffff, addr & !0x1f_ffff);
            assert_eq!(page & 0xff, 0x83);
        }
        let end = layout::PAGE_TABLES + tables.len() as u64 * 8;
        assert!(end <= layout::CMDLINE && layout::PAGE_TABLES >= layout::ZERO_PAGE + 0x1000);
    }

    #[test]
    fn each_protocol_is_entered_as_it_says() {
        let initial = kvm_sregs { apic_base: 0xfee0_0900, ..Default::default() };
        let linux = Entry { protocol: Protocol::Linux64, address: 0x100_0000, info: 0x7000 };
        let s = sregs(&linux, &initial);
        assert_eq!((s.cs.selector, s.cs.l, s.cs.db, s.efer), (0x10, 1, 0, 0x500));
        assert_eq!((s.ds.selector, s.ss.selector, s.cr3), (0x18, 0x18, 0x9000));
        assert_eq!(s.apic_base, 0xfee0_0900);
        assert_eq!((regs(&linux).rip, regs(&linux).rsi, regs(&linux).rflags), (0x100_0000, 0x7000, 2));

        let pvh = Entry { protocol: Protocol::Pvh, address: 0x10_0000, info: 0x6000 };
        let s = sregs(&pvh, &initial);
        assert_eq!((s.cs.l, s.cs.db, s.efer, s.cr0 & (CR0_PE | CR0_PG), s.cr4), (0, 1, 0, CR0_PE, 0));
        assert_eq!((regs(&pvh).rip, regs(&pvh).rbx), (0x10_0000, 0x6000));
    }

    #[test]
    fn lint_pins_are_unmasked() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[0x352] = 1;
        wire_lapic(&mut lapic);
        assert_eq!((lapic.regs[0x351], lapic.regs[0x352], lapic.regs[0x361]), (7, 0, 4));
    }
}
