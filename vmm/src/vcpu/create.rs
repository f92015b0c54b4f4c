//! vCPUs with their first state: CPUID, MSRs, local APIC; and on the first of them, the kernel's entry.

use arch::boot::Entry;
use arch::cpuid::CpuidSpec;
use arch::{cpuid, msr, regs};
use kvm_bindings::{CpuId, Msrs};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::error::VmError;
use crate::host::Host;
use crate::kvm::KvmError;

/// All vCPUs of the VM. The first starts at `entry`, the others wait for its start-up interrupts, as KVM's
/// local APIC has it.
///
/// # Errors
/// If KVM refuses.
pub(crate) fn create(
    host: &Host,
    vm: &VmFd,
    supported: &CpuId,
    entry: &Entry,
) -> Result<Vec<VcpuFd>, VmError> {
    let msrs = boot_msrs(host)?;
    let mut spec = CpuidSpec {
        cpus: host.spec.cpus.into(),
        tsc_khz: None,
        tsc_deadline: host.hypervisor.has_tsc_deadline(),
    };
    let mut vcpus = Vec::new();
    for index in 0..u32::from(host.spec.cpus) {
        let vcpu = vm.create_vcpu(index.into()).map_err(KvmError::failed("create a vCPU"))?;
        if index == 0 {
            // Not every host can tell; the guest then measures.
            spec.tsc_khz = vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0);
        }
        let leaves = cpuid::build(supported.as_slice(), &spec, index);
        let leaves =
            CpuId::from_entries(&leaves).map_err(|_| KvmError::Lacks("room for the CPUID leaves".into()))?;
        vcpu.set_cpuid2(&leaves).map_err(KvmError::failed("set a vCPU's CPUID"))?;
        set_msrs(&vcpu, &msrs)?;
        vcpu.set_fpu(&regs::fpu()).map_err(KvmError::failed("set a vCPU's FPU"))?;
        let mut lapic = vcpu.get_lapic().map_err(KvmError::failed("read a local APIC"))?;
        regs::wire_lapic(&mut lapic);
        vcpu.set_lapic(&lapic).map_err(KvmError::failed("set a local APIC"))?;
        if index == 0 {
            let sregs = vcpu.get_sregs().map_err(KvmError::failed("read a vCPU's registers"))?;
            vcpu.set_sregs(&regs::sregs(entry, &sregs))
                .map_err(KvmError::failed("set a vCPU's registers"))?;
            vcpu.set_regs(&regs::regs(entry)).map_err(KvmError::failed("set a vCPU's registers"))?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
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
