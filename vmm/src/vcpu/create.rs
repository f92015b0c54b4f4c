//! New vCPUs, with the state in which a guest is booted (CPUID, MSRs, local APIC; and on the first of them, the kernel's entry)
//! or with that of a snapshot.

use arch::boot::Entry;
use arch::cpuid::CpuidSpec;
use arch::features::{self, Lack};
use arch::state::{Raw, VcpuState};
use arch::template::CpuTemplate;
use arch::{cpuid, msr, regs};
use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::error::VmError;
use crate::host::Host;
use crate::kvm::KvmError;

use super::state::{self, Kept};

/// A CPU template that is not for this host.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It shows what the processor does not have.
    #[error("the CPU template needs {0}: take that out of it")]
    Processor(Lack),
    /// KVM does not have the MSR, or does not let it be so.
    #[error(
        "the CPU template changes the MSR {0:#x}, which this host's KVM does not let be changed so: take it out"
    )]
    Msr(u32),
}

/// What new vCPUs start with.
pub(crate) enum Start<'a> {
    /// The first at a kernel's entry; the others wait for its start-up interrupts, as KVM's local APIC has it.
    Boot(&'a Entry),
    /// All where they were.
    From(&'a [VcpuState]),
}

/// A vCPU without a thread.
pub(super) struct NewVcpu {
    pub(super) fd: VcpuFd,
    /// What CPUID was to tell it. KVM shows more of it at times: what the guest switched on, and under a software-assisted KVM
    /// what the host's processor says by itself.
    pub(super) cpuid: Vec<Raw<kvm_cpuid_entry2>>,
}

/// vCPUs without threads.
pub(crate) struct Created {
    pub(super) vcpus: Vec<NewVcpu>,
    /// What is to be saved of them.
    pub(super) kept: Kept,
    /// They have been in the guest.
    pub(super) ran: bool,
}

/// All vCPUs of the VM.
///
/// # Errors
/// If KVM refuses, or they cannot be what they were.
pub(crate) fn create(
    host: &Host,
    vm: &VmFd,
    supported: &CpuId,
    start: &Start<'_>,
) -> Result<Created, VmError> {
    let new = |index: u8| vm.create_vcpu(index.into()).map_err(KvmError::failed("create a vCPU"));
    let vcpus = (0..host.spec.cpus).map(new).collect::<Result<Vec<_>, _>>()?;
    let kept = match vcpus.first() {
        Some(first) => Kept::of(&host.hypervisor, first)?,
        None => Kept::default(),
    };
    let cpuids: Vec<Vec<_>> = match start {
        Start::Boot(entry) => boot(host, &vcpus, supported, entry)?,
        Start::From(saved) => {
            state::restore(&vcpus, saved, &kept).map_err(VmError::VcpuState)?;
            saved.iter().map(|vcpu| vcpu.cpuid.clone()).collect()
        }
    };
    let vcpus = vcpus.into_iter().zip(cpuids).map(|(fd, cpuid)| NewVcpu { fd, cpuid }).collect();
    Ok(Created { vcpus, kept, ran: matches!(start, Start::From(_)) })
}

/// The state that they have before the guest's first instruction. Returns what CPUID tells each.
fn boot(
    host: &Host,
    vcpus: &[VcpuFd],
    supported: &CpuId,
    entry: &Entry,
) -> Result<Vec<Vec<Raw<kvm_cpuid_entry2>>>, VmError> {
    let msrs = boot_msrs(host)?;
    let spec = CpuidSpec {
        cpus: host.spec.cpus.into(),
        // Not every host can tell; the guest then measures.
        tsc_khz: vcpus.first().and_then(|vcpu| vcpu.get_tsc_khz().ok()).filter(|khz| *khz != 0),
        tsc_deadline: host.hypervisor.has_tsc_deadline(),
    };
    let mut cpuids = Vec::new();
    for (index, vcpu) in (0..).zip(vcpus) {
        let mut leaves = cpuid::build(supported.as_slice(), &spec, index);
        if let Some(template) = &host.spec.cpu_template {
            template.apply(&mut leaves);
            if let Some(lack) = features::lacking(&leaves, supported.as_slice()) {
                return Err(TemplateError::Processor(lack).into());
            }
        }
        let leaves: Vec<_> = leaves.into_iter().map(Raw).collect();
        state::set_cpuid(vcpu, &leaves)?;
        cpuids.push(leaves);
        set_msrs(vcpu, &msrs)?;
        if let Some(template) = &host.spec.cpu_template {
            mask_msrs(vcpu, template)?;
        }
        vcpu.set_fpu(&regs::fpu()).map_err(KvmError::failed("set a vCPU's FPU"))?;
        let mut lapic = vcpu.get_lapic().map_err(KvmError::failed("read a local APIC"))?;
        regs::wire_lapic(&mut lapic);
        vcpu.set_lapic(&lapic).map_err(KvmError::failed("set a local APIC"))?;
    }
    let Some(first) = vcpus.first() else { return Ok(cpuids) };
    let sregs = first.get_sregs().map_err(KvmError::failed("read a vCPU's registers"))?;
    first.set_sregs(&regs::sregs(entry, &sregs)).map_err(KvmError::failed("set a vCPU's registers"))?;
    first.set_regs(&regs::regs(entry)).map_err(KvmError::failed("set a vCPU's registers"))?;
    Ok(cpuids)
}

/// Let MSRs be what the template says.
fn mask_msrs(vcpu: &VcpuFd, template: &CpuTemplate) -> Result<(), VmError> {
    for bits in &template.msrs {
        let refused = || TemplateError::Msr(bits.index);
        let now = state::read_msrs(vcpu, &[bits.index])?.first().copied().ok_or_else(refused)?;
        if state::write_msr(vcpu, template.msr(now))? == 0 {
            return Err(refused().into());
        }
    }
    Ok(())
}

fn boot_msrs(host: &Host) -> Result<Msrs, KvmError> {
    let entries = msr::boot(&host.hypervisor.msr_indexes()?);
    Msrs::from_entries(&entries).map_err(|_| KvmError::Lacks("room for the MSRs".into()))
}

/// KVM stops at the first MSR it does not take; that one is done without and the rest set all the same.
fn set_msrs(vcpu: &VcpuFd, msrs: &Msrs) -> Result<(), KvmError> {
    let mut left = msrs.as_slice();
    while !left.is_empty() {
        let entries = Msrs::from_entries(left).map_err(|_| KvmError::Lacks("room for the MSRs".into()))?;
        let set = vcpu.set_msrs(&entries).map_err(KvmError::failed("set a vCPU's MSRs"))?;
        if let Some(refused) = left.get(set) {
            log::debug!("KVM does not take MSR {:#x}", refused.index);
        }
        left = left.get(set + 1..).unwrap_or_default();
    }
    Ok(())
}
