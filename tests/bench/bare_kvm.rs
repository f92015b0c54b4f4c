//! The least that a KVM program must do: boots a PVH guest with 128 MiB to its first byte on the serial port.
//!
//! `bare-kvm GUEST`. `cargo xtask bench startup` holds skiff against it. The machine has what any machine needs (memory, interrupt
//! controllers, timer, one processor with the host's CPUID) and nothing else: no devices, no tables, no threads. It
//! is measured, not used: what is wrong with a guest ends it with a panic.

use std::io::Write;
use std::ptr;

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

const MEMORY: usize = 128 << 20;
const SERIAL_PORT: u16 = 0x3f8;
/// `hvm_start_info` (Xen's public/arch-x86/hvm/start_info.h) with nothing in it but its magic number.
const START_INFO: usize = 0x6000;
const START_MAGIC: u32 = 0x336e_c578;
/// ELF program header types.
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: bare-kvm GUEST")?;
    let elf = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    // Memory first: once there are interrupt controllers, KVM waits for their readers before it takes a slot.
    let memory = map_memory()?;
    let slot = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: memory as u64,
        ..Default::default()
    };
    // SAFETY: the mapping is of that size and is never undone.
    unsafe { vm.set_user_memory_region(slot)? };
    vm.set_tss_address(0xfffb_d000)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config::default())?;
    let entry = load(&elf, memory)?;
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    enter_pvh(&vcpu, entry)?;
    run(vcpu)
}

fn map_memory() -> Result<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping where the kernel likes it touches none of ours.
    let at = unsafe { libc::mmap(ptr::null_mut(), MEMORY, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    ensure!(at != libc::MAP_FAILED, "no memory: {}", std::io::Error::last_os_error());
    Ok(at.cast())
}

/// Puts the guest and its start info into memory and returns its 32-bit entry.
fn load(elf: &[u8], memory: *mut u8) -> Result<u32> {
    let word = |at: usize| elf.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let long = |at: usize| Some(u64::from(word(at + 4)?) << 32 | u64::from(word(at)?)).map(|v| v as usize);
    let bad = "the guest is no ELF file";
    let (headers, count) = (long(32).context(bad)?, word(56).context(bad)? as usize & 0xffff);
    let mut entry = None;
    for at in (0..count).map(|index| headers + 56 * index) {
        let (offset, to, len) = (long(at + 8), long(at + 24), long(at + 32));
        let (offset, to, len) = (offset.context(bad)?, to.context(bad)?, len.context(bad)?);
        match word(at).context(bad)? {
            PT_LOAD => write(memory, to, elf.get(offset..offset + len).context(bad)?)?,
            // One note: three words, the name "Xen\0", the entry.
            PT_NOTE => entry = word(offset + 16),
            _ => {}
        }
    }
    write(memory, START_INFO, &START_MAGIC.to_le_bytes())?;
    entry.context("the guest has no PVH note")
}

fn write(memory: *mut u8, to: usize, bytes: &[u8]) -> Result<()> {
    ensure!(to.checked_add(bytes.len()).is_some_and(|end| end <= MEMORY), "the guest is too large");
    // SAFETY: it lies in the mapping, which nobody else uses yet.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), memory.add(to), bytes.len()) };
    Ok(())
}

/// Protected mode without paging, flat segments, the start info in `ebx`.
fn enter_pvh(vcpu: &VcpuFd, entry: u32) -> Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let flat = |type_, selector| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = flat(0xb, 8);
    let data = flat(3, 16);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..Default::default() };
    sregs.cr0 = 1;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: entry.into(), rbx: START_INFO as u64, rflags: 2, ..Default::default() })?;
    Ok(())
}

fn run(mut vcpu: VcpuFd) -> Result<()> {
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(SERIAL_PORT, data) => {
                std::io::stdout().write_all(data)?;
                return Ok(std::io::stdout().flush()?);
            }
            VcpuExit::IoOut(..) => {}
            exit => bail!("the guest ended with {exit:?} before it said anything"),
        }
    }
}
