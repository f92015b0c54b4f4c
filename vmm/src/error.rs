//! Why a VM could not start or go on.

use std::io;

use devices::bus::BusError;
use devices::disk::DiskError;
use devices::pci::PciError;
use devices::virtio::block::SerialError;
use devices::virtio::transport::{StillActive, TransportError};
use devices::virtio::vsock::VsockError;

use crate::board::BoardError;
use crate::console::StreamError;
use crate::home::HomeError;
use crate::host::HostError;
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::net::NetError;
use crate::snapshot::envelope::EnvelopeError;
use crate::snapshot::memory::MemoryFileError;
use crate::snapshot::record::RecordError;
use crate::snapshot::state::StateMismatch;
use crate::snapshot::store::StoreError;
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
    /// The vsock's socket is to be in a directory that the VM does not have.
    #[error("the vsock needs a path: this VM has no directory of its own")]
    NoPlace,
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
    /// The CPU template is not for this host.
    #[error(transparent)]
    Template(#[from] vcpu::TemplateError),
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
    /// There is no place for snapshots.
    #[error("this VM keeps no snapshots: start it with --name or -d")]
    NoHome,
    /// Where the VM's layers and snapshots are kept cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A disk that cannot be frozen.
    #[error("{0} is written in place, and so has no past: start the VM with layers=on for it")]
    InPlace(String),
    /// There can be one of a kind.
    #[error(
        "the VM has a snapshot called {0} already: choose another name, or remove that one with skiff snapshot rm"
    )]
    SnapshotName(String),
    /// The VM has been given other devices since.
    #[error("at the snapshot {0} the VM had other devices, processors or memory: clone the snapshot instead")]
    OtherMachine(String),
    /// The spec cannot be a text: a path in it is none.
    #[error("the VM's spec cannot be kept with a snapshot: {0}")]
    SpecText(String),
    /// One at a time.
    #[error("a snapshot of this VM is being taken: wait until it is there")]
    Saving,
    /// What a snapshot holds cannot be used.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// A snapshot's memory cannot be saved or used.
    #[error(transparent)]
    SavedMemory(#[from] MemoryFileError),
    /// A snapshot does not fit.
    #[error(transparent)]
    Mismatch(#[from] StateMismatch),
    /// The machine does not stand still.
    #[error(transparent)]
    Still(#[from] StillError),
    /// The `vmm` thread is gone without a word: a defect of skiff.
    #[error("the VM's control thread ended unexpectedly; this is a defect of skiff, please report it")]
    Vanished,
}

/// Why a machine cannot be saved at this moment.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StillError(Still);

#[derive(Debug, thiserror::Error)]
enum Still {
    #[error(transparent)]
    Stuck(vcpu::Stuck),
    #[error(transparent)]
    Vcpus(vcpu::SaveError),
    #[error(transparent)]
    Devices(StillActive),
}

impl From<vcpu::Stuck> for VmError {
    fn from(error: vcpu::Stuck) -> Self {
        Self::Still(StillError(Still::Stuck(error)))
    }
}

impl From<vcpu::SaveError> for VmError {
    fn from(error: vcpu::SaveError) -> Self {
        Self::Still(StillError(Still::Vcpus(error)))
    }
}

impl From<StillActive> for VmError {
    fn from(error: StillActive) -> Self {
        Self::Still(StillError(Still::Devices(error)))
    }
}

impl From<StoreError> for VmError {
    fn from(error: StoreError) -> Self {
        Self::Home(error.into())
    }
}

impl From<RecordError> for VmError {
    fn from(error: RecordError) -> Self {
        Self::Home(error.into())
    }
}

impl VmError {
    /// For `map_err`: the host is out of something needed to do `what`.
    pub(crate) fn resources(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Resources { what, source }
    }
}
