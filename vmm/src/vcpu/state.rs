//! A vCPU's state, out of KVM and back into it.
//!
//! The order matters in both directions; each step that is where it is for a reason says so. [`save`] runs on the vCPU's own
//! thread while it is parked, [`restore`] on the `vmm` thread before there are threads.

use std::time::{SystemTime, UNIX_EPOCH};

use arch::state::{Msr, Raw, Tsc, VcpuState};
use kvm_bindings::{
    CpuId, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, Xsave, kvm_cpuid_entry2, kvm_device_attr,
    kvm_msr_entry, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

use crate::kvm::{Hypervisor, KvmError};

// kvm-ioctls has these for other architectures.
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, kvm_bindings::KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, kvm_bindings::KVMIO, 0xe2, kvm_device_attr);

/// The TSC as an MSR.
const MSR_TSC: u32 = 0x10;
/// The XSAVE area as KVM first had it, in bytes.
const XSAVE: usize = size_of::<kvm_xsave>();
/// How far two TSC frequencies may be apart to be the same, as KVM has it (`tsc_tolerance_ppm`).
const TOLERANCE_PPM: u64 = 250;

/// A vCPU's state cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// KVM refuses.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// An MSR that this KVM does not have, or does not take with this value.
    #[error(
        "this host's KVM does not take the snapshot's MSR {:#x} (it is {:#x}): restore it on a host like the one it \
         was taken on, or take it with --cpu-template", .0.index, .0.value
    )]
    Msr(Msr),
    /// The guest measured its clock on another processor.
    #[error(
        "the snapshot's processors count {saved} kHz and this host's {here} kHz, which it cannot change: restore it \
         on a host with the same"
    )]
    Frequency {
        /// The snapshot's.
        saved: u32,
        /// This host's.
        here: u32,
    },
    /// More state than this host's processors have.
    #[error(
        "the snapshot's processors have {saved} bytes of extended state and this host's {here}: restore it on a host \
         like the one it was taken on, or take it with --cpu-template"
    )]
    Xsave {
        /// The snapshot's.
        saved: usize,
        /// This host's.
        here: usize,
    },
}

/// What this host's KVM keeps of a vCPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    /// The MSRs that can be read.
    msrs: Vec<u32>,
    /// The XSAVE area, in bytes.
    xsave: usize,
}

impl Kept {
    /// Find it out, with the help of a new vCPU.
    ///
    /// # Errors
    /// If KVM refuses.
    pub(crate) fn of(hypervisor: &Hypervisor, vcpu: &VcpuFd) -> Result<Self, KvmError> {
        let mut left = arch::msr::kept(&hypervisor.msr_indexes()?);
        let mut msrs = Vec::with_capacity(left.len());
        // KVM stops at the first that it does not have.
        while !left.is_empty() {
            let mut entries = entries(left.iter().map(|&index| Msr { index, value: 0 }))?;
            let read =
                vcpu.get_msrs(&mut entries).map_err(KvmError::failed("read a vCPU's MSRs"))?.min(left.len());
            msrs.extend(left.drain(..read));
            left = left.split_off(1.min(left.len()));
        }
        Ok(Self { msrs, xsave: hypervisor.xsave_size() })
    }
}

fn entries(msrs: impl IntoIterator<Item = Msr>) -> Result<Msrs, KvmError> {
    let entry = |msr: Msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() };
    let entries: Vec<_> = msrs.into_iter().map(entry).collect();
    Msrs::from_entries(&entries).map_err(|_| KvmError::Lacks("room for the MSRs".into()))
}

/// The time, in nanoseconds since 1970.
pub(crate) fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// All of a vCPU that is parked.
///
/// # Errors
/// If KVM refuses.
pub(super) fn save(
    vcpu: &VcpuFd,
    cpuid: &[Raw<kvm_cpuid_entry2>],
    kept: &Kept,
) -> Result<VcpuState, KvmError> {
    let failed = KvmError::failed;
    // First: it lets KVM take INIT and SIPI that wait in the local APIC.
    let mp_state = vcpu.get_mp_state().map_err(failed("read a vCPU's run state"))?;
    let regs = vcpu.get_regs().map_err(failed("read a vCPU's registers"))?;
    let sregs = vcpu.get_sregs().map_err(failed("read a vCPU's special registers"))?;
    let xsave = read_xsave(vcpu, kept.xsave)?;
    // Hosts without XSAVE have none.
    let xcrs = vcpu.get_xcrs().ok().map(Raw);
    let debugregs = vcpu.get_debug_regs().map_err(failed("read a vCPU's debug registers"))?;
    let tsc = read_tsc(vcpu)?;
    // Before the local APIC: a timer that fires in between is in both, and comes twice rather than never.
    let msrs = read_msrs(vcpu, &kept.msrs)?;
    let lapic = vcpu.get_lapic().map_err(failed("read a local APIC"))?;
    // Last: what is read before may add to it.
    let events = vcpu.get_vcpu_events().map_err(failed("read a vCPU's events"))?;
    Ok(VcpuState {
        cpuid: cpuid.to_vec(),
        tsc_khz: vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0),
        tsc,
        mp_state: Raw(mp_state),
        regs: Raw(regs),
        sregs: Raw(sregs),
        xsave,
        xcrs,
        debugregs: Raw(debugregs),
        lapic: Raw(lapic),
        msrs,
        events: Raw(events),
    })
}

/// Those that can be read, up to the first that cannot.
pub(super) fn read_msrs(vcpu: &VcpuFd, indexes: &[u32]) -> Result<Vec<Msr>, KvmError> {
    let mut entries = entries(indexes.iter().map(|&index| Msr { index, value: 0 }))?;
    let read = vcpu.get_msrs(&mut entries).map_err(KvmError::failed("read a vCPU's MSRs"))?;
    let msr = |entry: &kvm_msr_entry| Msr { index: entry.index, value: entry.data };
    Ok(entries.as_slice().iter().take(read).map(msr).collect())
}

fn read_tsc(vcpu: &VcpuFd) -> Result<Tsc, KvmError> {
    let wall_ns = wall_ns();
    let value = read_msrs(vcpu, &[MSR_TSC])?.first().map_or(0, |msr| msr.value);
    Ok(Tsc { value, wall_ns, offset: tsc_offset(vcpu) })
}

/// All of the XSAVE area, which has `size` bytes on this host.
fn read_xsave(vcpu: &VcpuFd, size: usize) -> Result<Vec<u8>, KvmError> {
    let failed = KvmError::failed("read a vCPU's extended state");
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    if size <= XSAVE {
        return Ok(bytes(&vcpu.get_xsave().map_err(failed)?.region));
    }
    let mut area = xsave_area(size)?;
    // SAFETY: the area is as large as this host's KVM says that it writes, and skiff enables no dynamic feature (AMX) that
    // would make it larger.
    unsafe { vcpu.get_xsave2(&mut area) }.map_err(failed)?;
    let mut all = bytes(&area.as_fam_struct_ref().xsave.region);
    all.extend(bytes(area.as_slice()));
    Ok(all)
}

/// Room for an XSAVE area of `size` bytes, at least [`XSAVE`].
fn xsave_area(size: usize) -> Result<Xsave, KvmError> {
    Xsave::new(size.saturating_sub(XSAVE).div_ceil(4))
        .map_err(|_| KvmError::Lacks("room for the extended state".into()))
}

/// Give new vCPUs the state of those that were saved.
///
/// # Errors
/// If they cannot have it on this host.
pub(super) fn restore(vcpus: &[VcpuFd], saved: &[VcpuState], kept: &Kept) -> Result<(), StateError> {
    for (vcpu, state) in vcpus.iter().zip(saved) {
        set_cpuid(vcpu, &state.cpuid)?;
        set_frequency(vcpu, state)?;
    }
    // Before the deadline of any timer.
    restore_tsc(vcpus, saved)?;
    vcpus.iter().zip(saved).try_for_each(|(vcpu, state)| restore_one(vcpu, state, kept))
}

/// Let CPUID tell a vCPU this.
pub(super) fn set_cpuid(vcpu: &VcpuFd, leaves: &[Raw<kvm_cpuid_entry2>]) -> Result<(), KvmError> {
    let leaves: Vec<_> = leaves.iter().map(|leaf| leaf.0).collect();
    let leaves =
        CpuId::from_entries(&leaves).map_err(|_| KvmError::Lacks("room for the CPUID leaves".into()))?;
    vcpu.set_cpuid2(&leaves).map_err(KvmError::failed("set a vCPU's CPUID"))
}

fn set_frequency(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), StateError> {
    let here = vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0);
    let Some((saved, here)) = state.tsc_khz.zip(here) else { return Ok(()) };
    let apart = u64::from(saved.abs_diff(here)).saturating_mul(1_000_000);
    if apart > u64::from(here).saturating_mul(TOLERANCE_PPM) {
        vcpu.set_tsc_khz(saved).map_err(|_| StateError::Frequency { saved, here })?;
    }
    Ok(())
}

fn restore_one(vcpu: &VcpuFd, state: &VcpuState, kept: &Kept) -> Result<(), StateError> {
    let failed = KvmError::failed;
    vcpu.set_mp_state(state.mp_state.0).map_err(failed("set a vCPU's run state"))?;
    vcpu.set_regs(&state.regs.0).map_err(failed("set a vCPU's registers"))?;
    // Before the local APIC: they say in which mode it is.
    vcpu.set_sregs(&state.sregs.0).map_err(failed("set a vCPU's special registers"))?;
    write_xsave(vcpu, &state.xsave, kept.xsave)?;
    if let Some(xcrs) = &state.xcrs {
        vcpu.set_xcrs(&xcrs.0).map_err(failed("set a vCPU's extended control registers"))?;
    }
    vcpu.set_debug_regs(&state.debugregs.0).map_err(failed("set a vCPU's debug registers"))?;
    // Before the MSRs: a TSC deadline is only taken in the timer mode that it is for.
    vcpu.set_lapic(&state.lapic.0).map_err(failed("set a local APIC"))?;
    write_msrs(vcpu, &state.msrs, kept)?;
    // Last: what is set before may drop what is on its way.
    vcpu.set_vcpu_events(&state.events.0).map_err(failed("set a vCPU's events"))?;
    Ok(())
}

fn write_xsave(vcpu: &VcpuFd, saved: &[u8], size: usize) -> Result<(), StateError> {
    let size = size.max(XSAVE);
    let tail = saved.get(size..).unwrap_or_default();
    if tail.iter().any(|byte| *byte != 0) {
        return Err(StateError::Xsave { saved: saved.len(), here: size });
    }
    let mut area = xsave_area(size)?;
    let words = |bytes: &[u8], to: &mut [u32]| {
        for (word, bytes) in to.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    };
    let mut legacy = kvm_xsave::default();
    words(saved, &mut legacy.region);
    words(saved.get(XSAVE..).unwrap_or_default(), area.as_mut_slice());
    // SAFETY: the length of the part behind it is not touched.
    unsafe { area.as_mut_fam_struct() }.xsave.region = legacy.region;
    // SAFETY: the area is as large as this host's KVM says that it reads.
    unsafe { vcpu.set_xsave2(&area) }.map_err(KvmError::failed("set a vCPU's extended state"))?;
    Ok(())
}

/// Set those that are not right already: a host that lacks one does not matter if it has nothing to say.
fn write_msrs(vcpu: &VcpuFd, saved: &[Msr], kept: &Kept) -> Result<(), StateError> {
    let now = read_msrs(vcpu, &kept.msrs)?;
    let differs = |msr: &&Msr| match now.iter().find(|now| now.index == msr.index) {
        Some(now) => now.value != msr.value,
        None => msr.value != 0,
    };
    let left: Vec<Msr> = saved.iter().filter(differs).copied().collect();
    if left.is_empty() {
        return Ok(());
    }
    let set =
        vcpu.set_msrs(&entries(left.iter().copied())?).map_err(KvmError::failed("set a vCPU's MSRs"))?;
    left.get(set).map_or(Ok(()), |refused| Err(StateError::Msr(*refused)))
}

/// The guest's time went on. All vCPUs keep the distance that they had from each other.
fn restore_tsc(vcpus: &[VcpuFd], saved: &[VcpuState]) -> Result<(), KvmError> {
    let (Some(first), Some(state)) = (vcpus.first(), saved.first()) else { return Ok(()) };
    let khz = state.tsc_khz.or_else(|| first.get_tsc_khz().ok()).unwrap_or(0);
    let now = read_tsc(first)?;
    let value = state.tsc.at(now.wall_ns, khz);
    let Some(offset) = now.offset else {
        // KVM takes writes of nearly the same for an attempt to synchronise them, and does that.
        return vcpus.iter().try_for_each(|vcpu| write_tsc(vcpu, value));
    };
    let offset = offset.wrapping_add(value.wrapping_sub(now.value));
    for (vcpu, other) in vcpus.iter().zip(saved) {
        let apart = other.tsc.offset.zip(state.tsc.offset).map_or(0, |(its, first)| its.wrapping_sub(first));
        set_tsc_offset(vcpu, offset.wrapping_add(apart))?;
    }
    Ok(())
}

/// Set one. Returns how many KVM took.
pub(super) fn write_msr(vcpu: &VcpuFd, msr: Msr) -> Result<usize, KvmError> {
    vcpu.set_msrs(&entries([msr])?).map_err(KvmError::failed("set a vCPU's MSR"))
}

fn write_tsc(vcpu: &VcpuFd, value: u64) -> Result<(), KvmError> {
    match write_msr(vcpu, Msr { index: MSR_TSC, value })? {
        1.. => Ok(()),
        0 => Err(KvmError::Lacks("the TSC as an MSR".into())),
    }
}

/// What is added to the host's TSC; `None` where KVM does not tell (before Linux 5.16).
fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0_u64;
    let attr = tsc_attr(&raw mut offset);
    // SAFETY: KVM writes eight bytes to the address, which is that of `offset`.
    (unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attr) } == 0).then_some(offset)
}

fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), KvmError> {
    let attr = tsc_attr(&raw mut offset);
    // SAFETY: KVM reads eight bytes from the address, which is that of `offset`.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attr) } {
        0 => Ok(()),
        _ => Err(KvmError::failed("set a vCPU's TSC")(errno::Error::last())),
    }
}

fn tsc_attr(offset: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: offset as u64,
        flags: 0,
    }
}
