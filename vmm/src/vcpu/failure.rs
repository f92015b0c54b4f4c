//! Why a vCPU cannot go on, in words that a user can act on.

use std::fmt::Write as _;
use std::io;

use arch::memory::GuestRam;
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::has_hardware_virtualization;

/// The longest x86 instruction, in bytes.
const LONGEST: usize = 15;
const PAGE: u64 = 4096;

/// A guest that this host cannot run, or a host that fails.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM cannot emulate an instruction.
    #[error("this host's KVM cannot run the guest's instruction {instruction} at {rip:#x}: {advice}")]
    Instruction {
        /// Its bytes, and what they say.
        instruction: String,
        /// Where it is.
        rip: u64,
        /// What to do.
        advice: String,
    },
    /// KVM gave up for another reason.
    #[error("KVM gave up on the guest: {reason}, at {rip:#x}, instruction {instruction}: {advice}")]
    Internal {
        /// KVM's reason.
        reason: String,
        /// The bytes at `rip`, and what they say.
        instruction: String,
        /// Where the guest was.
        rip: u64,
        /// What to do.
        advice: String,
    },
    /// The processor refused to enter the guest.
    #[error(
        "the processor refused to enter the guest (hardware reason {reason:#x} on host CPU {cpu}): \
         the host's kernel log may say more (dmesg)"
    )]
    Entry {
        /// `hardware_entry_failure_reason`.
        reason: u64,
        /// The host's CPU.
        cpu: u32,
    },
    /// KVM_RUN failed.
    #[error("KVM_RUN failed")]
    Run(#[source] io::Error),
    /// An exit that nothing here asks for.
    #[error("KVM left the guest for a reason that skiff does not know: {0}")]
    Unexpected(String),
}

/// What was seen, before it is looked into.
pub(super) enum Cause {
    Internal,
    Entry { reason: u64, cpu: u32 },
    Run(io::Error),
    Unexpected(String),
}

/// Find out more about `cause` from the vCPU.
pub(super) fn explain(cause: Cause, vcpu: &mut VcpuFd, ram: &GuestRam) -> VcpuError {
    match cause {
        Cause::Internal => internal(vcpu, ram),
        Cause::Entry { reason, cpu } => VcpuError::Entry { reason, cpu },
        Cause::Run(error) => VcpuError::Run(error),
        Cause::Unexpected(exit) => VcpuError::Unexpected(exit),
    }
}

fn internal(vcpu: &mut VcpuFd, ram: &GuestRam) -> VcpuError {
    // SAFETY: after KVM_EXIT_INTERNAL_ERROR, this is the member of the union that KVM filled in.
    let suberror = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    let (bits, base) = code_segment(vcpu);
    let at = base.wrapping_add(rip);
    let bytes = reported_bytes(vcpu, suberror).unwrap_or_else(|| bytes_at(vcpu, ram, at));
    let instruction = describe(&bytes, rip, bits);
    let advice = advice(has_hardware_virtualization());
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => VcpuError::Instruction { instruction, rip, advice },
        other => VcpuError::Internal { reason: name(other), instruction, rip, advice },
    }
}

fn name(suberror: u32) -> String {
    match suberror {
        KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once".to_owned(),
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event was being delivered".to_owned(),
        other => format!("internal error {other}"),
    }
}

/// The instruction as KVM itself fetched it: newer hosts tell.
fn reported_bytes(vcpu: &mut VcpuFd, suberror: u32) -> Option<Vec<u8>> {
    if suberror != KVM_INTERNAL_ERROR_EMULATION {
        return None;
    }
    // SAFETY: after KVM_INTERNAL_ERROR_EMULATION, this is the member of the union that KVM filled in; the
    // number of valid words is checked before they are used.
    let failure = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.emulation_failure };
    if failure.ndata < 3
        || failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0
    {
        return None;
    }
    // SAFETY: the flag says that KVM filled these in.
    let (size, bytes) = unsafe {
        let told = failure.__bindgen_anon_1.__bindgen_anon_1;
        (told.insn_size, told.insn_bytes)
    };
    bytes.get(..usize::from(size)).filter(|bytes| !bytes.is_empty()).map(<[u8]>::to_vec)
}

/// The bytes at a virtual address, up to the end of its page.
fn bytes_at(vcpu: &VcpuFd, ram: &GuestRam, address: u64) -> Vec<u8> {
    let Ok(translated) = vcpu.translate_gva(address) else { return Vec::new() };
    if translated.valid == 0 {
        return Vec::new();
    }
    let in_page = (PAGE - address % PAGE) as usize;
    let mut bytes = vec![0; LONGEST.min(in_page)];
    match ram.read_slice(&mut bytes, GuestAddress(translated.physical_address)) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}

/// How many bits the code that runs has, and where its segment starts: a vCPU that has just been started is in
/// real mode, its segment anywhere below 1 MiB.
fn code_segment(vcpu: &VcpuFd) -> (u32, u64) {
    match vcpu.get_sregs() {
        Ok(sregs) if sregs.cs.l != 0 => (64, 0),
        Ok(sregs) if sregs.cs.db != 0 => (32, sregs.cs.base),
        Ok(sregs) => (16, sregs.cs.base),
        Err(_) => (64, 0),
    }
}

/// `0f ae 21 (xsave (%rcx))`: the bytes of the first instruction, and how an assembler writes it.
fn describe(bytes: &[u8], rip: u64, bits: u32) -> String {
    if bytes.is_empty() {
        return "(not readable)".to_owned();
    }
    let instruction = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE).decode();
    let known = !instruction.is_invalid();
    let shown = if known { bytes.get(..instruction.len()).unwrap_or(bytes) } else { bytes };
    let mut text = String::new();
    for byte in shown {
        let _ = write!(text, "{}{byte:02x}", if text.is_empty() { "" } else { " " });
    }
    if known {
        let mut name = String::new();
        GasFormatter::new().format(&instruction, &mut name);
        let _ = write!(text, " ({name})");
    }
    text
}

fn advice(hardware: bool) -> String {
    if hardware {
        "try a newer host kernel, or another guest kernel".to_owned()
    } else {
        "this host has neither VT-x nor AMD-V (no vmx or svm in /proc/cpuinfo), so its KVM is software-assisted and \
         runs few kernels; use a host with either, or a VM with nested virtualization"
            .to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_shown_as_bytes_and_in_words() {
        let bytes = [0x0f, 0xae, 0x21, 0x90, 0x90];
        assert_eq!(describe(&bytes, 0x1000, 64), "0f ae 21 (xsave (%rcx))");
        assert_eq!(describe(&[0xcc], 0, 32), "cc (int3)");
        assert_eq!(describe(&[], 0, 64), "(not readable)");
        assert_eq!(describe(&[0x0f, 0xff], 0, 64), "0f ff");
    }
}
