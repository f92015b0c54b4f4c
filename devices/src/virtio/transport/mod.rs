//! How a guest reaches a virtio device: `pci` or `mmio`.
//!
//! [`core`] holds everything that is common; [`mmio`] and [`pci`] map registers to it. A transport is one object
//! behind one lock, which vCPU threads and the vmm take. Device threads never take it: they interrupt
//! through [`super::device::Interrupt`], made of atomics and eventfds.
//!
//! Lock order: the transport, then what it calls (the device, MSI-X, doorbells).

mod bells;
pub(crate) mod core;
pub mod mmio;
pub mod pci;
mod registers;

use std::io;

pub use mmio::VirtioMmio;
pub use pci::VirtioPci;

use crate::pci::ConfigError;

/// What the vmm does with a transport, whichever it is.
pub trait Transport: Send {
    /// Stop the device, keeping its registers and the positions of its queues. Its threads are gone after
    /// this. Does nothing if it is not active.
    fn pause(&mut self);

    /// Let a paused device go on where it was.
    fn resume(&mut self);
}

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
    /// The device has a queue whose size is not a power of two up to 32768: a mistake of its author.
    #[error("{device} asks for a queue of {size}")]
    QueueSize {
        /// The device's name.
        device: String,
        /// What it asks for.
        size: u16,
    },
}
