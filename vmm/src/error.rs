//! Why a VM could not start or go on.

use std::io;

use devices::bus::BusError;
use devices::disk::DiskError;
use devices::pci::PciError;
use devices::virtio::block::SerialError;
use devices::virtio::transport::TransportError;
use devices::virtio::vsock::VsockError;

use crate::board::BoardError;
use crate::console::StreamError;
use crate::host::HostError;
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::net::NetError;
use crate::spec::SpecError;
use crate::vcpu::{self, VcpuError};

/// Why a VM could not start or go on. Each message names the thing and the fix.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// This host cannot run VMs, or KVM refuses something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A file cannot be used.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The spec itself is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A disk's serial number is wrong.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The vsock's socket cannot be had.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A network cannot be used.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A console stream cannot be used.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The guest's memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel is none.
    #[error("cannot boot {path}")]
    Kernel {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        #[source]
        source: arch::boot::KernelError,
    },
    /// The kernel cannot be loaded.
    #[error("cannot load {path}")]
    Load {
        /// As it was given.
        path: String,
        /// What is wrong.
        #[source]
        source: arch::boot::LoadError,
    },
    /// The ACPI tables cannot be made.
    #[error("cannot make the ACPI tables")]
    Acpi(#[source] arch::acpi::AcpiError),
    /// A vCPU cannot go on.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A snapshot's vCPU cannot be had here.
    #[error(transparent)]
    VcpuState(vcpu::StateError),
    /// Devices do not fit on a bus: a defect of skiff, or too many devices.
    #[error("cannot place a device")]
    Bus(#[from] BusError),
    /// Too many PCI devices.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// More virtio-mmio devices than there are interrupts.
    #[error(
        "too many devices for the mmio transport, which has {0} places: use --transport pci, or fewer disks"
    )]
    TooManyDevices(usize),
    /// A saved machine cannot be made again.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// A virtio device cannot be made.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The host is out of threads, file descriptors or the like.
    #[error("cannot {what}: the host is out of threads or file descriptors (see ulimit -u, ulimit -n)")]
    Resources {
        /// What was tried.
        what: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The guest crashed before it ran for any time.
    #[error(
        "the guest's processor shut down (a triple fault) at once: the kernel is damaged, or not for this machine"
    )]
    TripleFault,
    /// The `vmm` thread is gone without a word: a defect of skiff.
    #[error("the VM's control thread ended unexpectedly; this is a defect of skiff, please report it")]
    Vanished,
}

impl VmError {
    /// For `map_err`: the host is out of something needed to do `what`.
    pub(crate) fn resources(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Resources { what, source }
    }
}
