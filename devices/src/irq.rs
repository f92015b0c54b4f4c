//! How devices reach the interrupt controller and the doorbells, without knowing KVM.
//!
//! The vmm implements [`MsiController`] and [`Doorbells`] on irqfd and ioeventfd. Everything in here is called
//! from vCPU threads (register accesses) and device threads (raising), so implementors are `Sync`.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// An edge-triggered interrupt line. The eventfd is bound to a GSI by the vmm.
#[derive(Clone, Debug)]
pub struct IrqLine(Arc<EventFd>);

impl IrqLine {
    /// A line that raises through `event`.
    #[must_use]
    pub fn new(event: EventFd) -> Self {
        Self(Arc::new(event))
    }

    /// Raise the interrupt once.
    pub fn raise(&self) {
        // The only failure of a non-blocking eventfd write is a counter at its maximum: already raised.
        let _ = self.0.write(1);
    }

    /// The eventfd, for the vmm to bind to an interrupt controller.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.0
    }
}

/// Where an MSI goes: what a guest writes to an MSI-X table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// The 64-bit message address.
    pub address: u64,
    /// The message data.
    pub data: u32,
}

/// One MSI vector of the machine: raised through its line, once routed.
#[derive(Clone, Debug)]
pub struct MsiVector {
    /// The controller's number for it (KVM: the GSI).
    pub id: u32,
    /// Raises it.
    pub line: IrqLine,
}

/// Gives out MSI vectors and routes them.
pub trait MsiController: Send + Sync {
    /// A vector that is not routed anywhere yet. It is given back by [`MsiController::free`].
    ///
    /// # Errors
    /// If there are no more vectors or file descriptors.
    fn allocate(&self) -> io::Result<MsiVector>;

    /// Deliver `vector` as `message` from now on; `None` (masked) delivers it nowhere.
    ///
    /// # Errors
    /// If the interrupt controller refuses.
    fn route(&self, vector: &MsiVector, message: Option<MsiMessage>) -> io::Result<()>;

    /// Give a vector back.
    fn free(&self, vector: MsiVector);
}

/// Where a doorbell rings: a guest write that signals an eventfd without leaving the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// The guest-physical address of the register.
    pub address: u64,
    /// If given, only a 4-byte write of this value rings it; otherwise any write does.
    pub value: Option<u32>,
}

/// Registers doorbells (KVM: ioeventfd).
pub trait Doorbells: Send + Sync {
    /// Let guest writes to `bell` signal `event`.
    ///
    /// # Errors
    /// If the host has no room for another or the bell is taken.
    fn register(&self, bell: Doorbell, event: &EventFd) -> io::Result<()>;

    /// Undo [`Doorbells::register`].
    ///
    /// # Errors
    /// If there is no such bell.
    fn unregister(&self, bell: Doorbell, event: &EventFd) -> io::Result<()>;
}
