//! How a guest reaches a virtio device: `pci` or `mmio`.
//!
//! [`core`] holds everything that is common; [`mmio`] and [`pci`] map registers to it. A transport is one object
//! behind one lock, which vCPU threads and the vmm take. Device threads never take it: they interrupt
//! through [`super::device::Interrupt`], made of atomics and eventfds.
//!
//! A transport is made as at power-on or from a [`TransportState`]. Then it is as that says, and paused: `resume` is what activates
//! its device, as after any pause.
//!
//! Lock order: the transport, then what it calls (the device, MSI-X, doorbells).

mod bells;
pub(crate) mod core;
pub mod mmio;
pub mod pci;
mod registers;
mod state;

use std::io;

pub use mmio::VirtioMmio;
pub use pci::VirtioPci;
pub use state::{BusState, PciState, QueueState, TransportState};

use crate::pci::ConfigError;
use crate::state::RestoreError;

/// What the vmm does with a transport, whichever it is.
pub trait Transport: Send {
    /// Stop the device, keeping its registers and the positions of its queues. Its threads are gone after
    /// this. Does nothing if it is not active.
    fn pause(&mut self);

    /// Let a paused device go on where it was. After a restore that is the first time that it interrupts: again, for what may have
    /// been lost on the way.
    fn resume(&mut self);

    /// All that the guest can see of it. The device is not active: it never was, or it is paused.
    ///
    /// # Errors
    /// If it is active.
    fn save(&self) -> Result<TransportState, StillActive>;
}

/// A device is active: what it was saved as would be over the moment it is written.
#[derive(Debug, thiserror::Error)]
#[error("{0} runs: pause it first")]
pub struct StillActive(pub String);

/// A transport could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A doorbell's eventfd could not be made.
    #[error("cannot make the doorbells of {device}")]
    Events {
        /// The device's name.
        device: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// More queues than doorbells and vectors: a mistake of its author.
    #[error("{device} has {count} queues, which is too many")]
    Queues {
        /// The device's name.
        device: String,
        /// How many it has.
        count: usize,
    },
    /// The PCI function cannot be laid out: a mistake of the transport.
    #[error("the PCI configuration space cannot be laid out")]
    Config(#[from] ConfigError),
    /// It cannot be put where its saved state says.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The device has a queue whose size is not a power of two up to 32768: a mistake of its author.
    #[error("{device} asks for a queue of {size}")]
    QueueSize {
        /// The device's name.
        device: String,
        /// What it asks for.
        size: u16,
    },
}
