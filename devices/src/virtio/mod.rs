//! virtio 1.2 devices and the transports that carry them.
//!
//! A device ([`device::VirtioDevice`]) knows its configuration space and what to do with its queues. Everything
//! that is common (status, features, queue registers, interrupts) belongs to the transport.

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod chain;
pub mod console;
pub mod device;
pub mod events;
pub mod fs;
pub mod net;
pub mod queue;
pub mod rng;
mod spin;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vsock;
