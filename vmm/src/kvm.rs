//! The host's KVM: opened, and probed for what a VM needs, so that a missing piece is named before anything is built.

use std::fmt::Write as _;
use std::io;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VmFd};

/// The device that KVM is reached through.
pub const DEVICE: &str = "/dev/kvm";

const CREATE_VM: &str = "create a VM";

/// Why this host cannot run a VM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no such device.
    #[error(
        "there is no {DEVICE}: enable VT-x or AMD-V in the firmware and load KVM (modprobe kvm_intel or kvm_amd); \
         in a VM or container, it must be passed in"
    )]
    Missing(#[source] io::Error),
    /// It may not be opened.
    #[error("no permission to open {DEVICE}: join its group (sudo usermod -aG kvm $USER, then log in again)")]
    Permission(#[source] io::Error),
    /// It cannot be opened for another reason.
    #[error("cannot open {DEVICE}")]
    Open(#[source] io::Error),
    /// KVM's API is not the stable one.
    #[error("{DEVICE} speaks API version {0}, not {KVM_API_VERSION}: this kernel is not supported")]
    Version(i32),
    /// Capabilities are missing.
    #[error("this host's KVM lacks {0}: a Linux kernel of 4.12 or newer on x86-64 has all of it")]
    Lacks(String),
    /// More vCPUs than KVM can do.
    #[error("{asked} vCPUs are more than this host's KVM can do: ask for --cpus {most} at most")]
    TooManyCpus {
        /// What was asked for.
        asked: u8,
        /// What can be had.
        most: usize,
    },
    /// Another hypervisor has the processor.
    #[error(
        "cannot {what}: another hypervisor, such as VirtualBox or VMware, uses the processor's virtualization: \
         end its VMs or unload its kernel module"
    )]
    Busy {
        /// What was tried.
        what: &'static str,
    },
    /// This process, or the host, has too many files open.
    #[error("cannot {what}: too many files are open; raise the limit (ulimit -n), or ask for fewer --cpus")]
    Files {
        /// What was tried.
        what: &'static str,
    },
    /// An operation failed.
    #[error("cannot {what}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// KVM's reason.
        #[source]
        source: io::Error,
    },
}

impl KvmError {
    /// For `map_err`: `what` could not be done.
    pub(crate) fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| match error.errno() {
            libc::EMFILE | libc::ENFILE => Self::Files { what },
            // Only the first VM of a host switches virtualization on.
            libc::EBUSY if what == CREATE_VM => Self::Busy { what },
            _ => Self::Failed { what, source: error.into() },
        }
    }
}

/// What every VM needs, by the name that KVM's documentation uses.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// This host's KVM.
pub struct Hypervisor {
    kvm: Kvm,
}

impl Hypervisor {
    /// Open [`DEVICE`] and check what it can do.
    ///
    /// # Errors
    /// If it is not there, may not be opened or lacks something.
    pub fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(|error| {
            let error = io::Error::from(error);
            match error.kind() {
                io::ErrorKind::NotFound => KvmError::Missing(error),
                io::ErrorKind::PermissionDenied => KvmError::Permission(error),
                _ => KvmError::Open(error),
            }
        })?;
        let version = kvm.get_api_version();
        if u32::try_from(version) != Ok(KVM_API_VERSION) {
            return Err(KvmError::Version(version));
        }
        let mut missing = String::new();
        for (cap, name) in NEEDED {
            if !kvm.check_extension(cap) {
                let _ = write!(missing, "{}{name}", if missing.is_empty() { "" } else { ", " });
            }
        }
        // Doorbells of any width are what KVM can answer fastest; kvm-ioctls has no name for it.
        if kvm.check_extension_raw(u64::from(KVM_CAP_IOEVENTFD_ANY_LENGTH)) <= 0 {
            let _ =
                write!(missing, "{}KVM_CAP_IOEVENTFD_ANY_LENGTH", if missing.is_empty() { "" } else { ", " });
        }
        if missing.is_empty() { Ok(Self { kvm }) } else { Err(KvmError::Lacks(missing)) }
    }

    /// Refuse more vCPUs than KVM can do.
    ///
    /// # Errors
    /// If `cpus` is too many.
    pub fn check_cpus(&self, cpus: u8) -> Result<(), KvmError> {
        let most = self.max_cpus();
        if usize::from(cpus) > most {
            return Err(KvmError::TooManyCpus { asked: cpus, most });
        }
        Ok(())
    }

    /// The most vCPUs that one VM can have.
    #[must_use]
    pub fn max_cpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// A VM with nothing in it.
    ///
    /// # Errors
    /// If the host is out of something.
    pub fn create_vm(&self) -> Result<VmFd, KvmError> {
        loop {
            match self.kvm.create_vm() {
                Ok(vm) => return Ok(vm),
                // Starting the VM's kernel threads can be interrupted by any signal.
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(KvmError::failed(CREATE_VM)(error)),
            }
        }
    }

    /// What this host can show a guest by CPUID.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::failed("read the supported CPUID"))
    }

    /// The MSRs that this host's KVM keeps for a guest.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn msr_indexes(&self) -> Result<Vec<u32>, KvmError> {
        let list = self.kvm.get_msr_index_list().map_err(KvmError::failed("list the MSRs"))?;
        Ok(list.as_slice().to_vec())
    }

    /// How large a vCPU's XSAVE area is (KVM_CAP_XSAVE2), in bytes; 0 where KVM has but the oldest size.
    #[must_use]
    pub fn xsave_size(&self) -> usize {
        usize::try_from(self.kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0)
    }

    /// Whether the local APIC's timer has a TSC-deadline mode.
    #[must_use]
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

/// What a processor has for VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtualization {
    /// Intel's, the flag `vmx`.
    VtX,
    /// AMD's, the flag `svm`.
    AmdV,
}

impl Virtualization {
    /// The processor's, from the text of `/proc/cpuinfo`. Where it has none and KVM is there all the same, KVM is
    /// software-assisted, and most kernels do not run on it.
    #[must_use]
    pub fn of(cpuinfo: &str) -> Option<Self> {
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
        flags.split_whitespace().find_map(|flag| match flag {
            "vmx" => Some(Self::VtX),
            "svm" => Some(Self::AmdV),
            _ => None,
        })
    }
}

/// Whether this processor has VT-x or AMD-V, as far as it says.
#[must_use]
pub fn has_hardware_virtualization() -> bool {
    let Ok(info) = std::fs::read_to_string("/proc/cpuinfo") else { return true };
    Virtualization::of(&info).is_some() || !info.lines().any(|line| line.starts_with("flags"))
}
