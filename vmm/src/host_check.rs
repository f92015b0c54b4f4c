//! What this host has of what VMs need, for whoever explains the host to its user. Nothing here is kept or changed.

use std::io;

use crate::kvm::Hypervisor;

pub use crate::kvm::{DEVICE as KVM_DEVICE, KvmError, Virtualization};

/// KVM, as a VM would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmFacts {
    /// The most vCPUs that one VM can have.
    pub max_cpus: usize,
}

/// Open KVM, see that it has all that a VM needs, and make a VM with nothing in it.
///
/// # Errors
/// Why no VM can run.
pub fn kvm() -> Result<KvmFacts, KvmError> {
    let hypervisor = Hypervisor::open()?;
    hypervisor.create_vm()?;
    Ok(KvmFacts { max_cpus: hypervisor.max_cpus() })
}

/// Whether the host lets this process use io_uring.
///
/// # Errors
/// The host's reason if it does not.
pub fn io_uring() -> io::Result<()> {
    devices::disk::engine::probe_uring()
}
