//! What every virtio device is to its transport.
//!
//! ```text
//!            DRIVER_OK: activate(Activation)
//!   inactive ───────────────────────────────► active (queues owned by the device's workers)
//!       ▲                                        │
//!       └──────────── stop() -> Vec<Queue> ◄─────┘   reset, pause, snapshot, unplug
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use arch::memory::SharedRam;

use super::queue::Queue;
use super::state::DeviceState;
use crate::ratelog;
use crate::state::RestoreError;

/// The device's type: its virtio device ID (virtio 1.2, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceKind {
    /// virtio-net.
    Net = 1,
    /// virtio-blk.
    Block = 2,
    /// virtio-console.
    Console = 3,
    /// virtio-rng.
    Rng = 4,
    /// virtio-balloon.
    Balloon = 5,
    /// virtio-vsock.
    Vsock = 19,
    /// virtio-fs.
    Fs = 26,
}

/// The vendor that transports name: "skif", little-endian.
pub(super) const VENDOR: u32 = u32::from_le_bytes(*b"skif");

/// The features of every device that works through [`Queue`].
pub const RING_FEATURES: u64 = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// `DEVICE_NEEDS_RESET` of the status register (virtio 1.2, 2.1).
pub const STATUS_NEEDS_RESET: u8 = 64;

/// How a transport delivers a device's interrupts. Called from device threads.
pub trait Signal: Send + Sync {
    /// A used buffer notification for queue `index`.
    fn queue(&self, index: u16);
    /// A configuration change notification.
    fn config(&self);
}

/// A device's way to its guest: interrupts, and the cry for a reset. Cheap to clone, one per worker.
#[derive(Clone)]
pub struct Interrupt {
    signal: Arc<dyn Signal>,
    status: Arc<AtomicU8>,
}

impl Interrupt {
    /// Made by a transport around its status register and its way to interrupt.
    #[must_use]
    pub fn new(signal: Arc<dyn Signal>, status: Arc<AtomicU8>) -> Self {
        Self { signal, status }
    }

    /// Tell the guest that queue `index` has used buffers.
    pub fn used(&self, index: u16) {
        self.signal.queue(index);
    }

    /// Tell the guest that the configuration space changed.
    pub fn config_changed(&self) {
        self.signal.config();
    }

    /// The guest broke the rules (2.1.2): mark the device so, once. Whoever calls this leaves the device's
    /// queues alone from here on.
    pub fn needs_reset(&self, device: &str, reason: &dyn fmt::Display) {
        if self.status.fetch_or(STATUS_NEEDS_RESET, Ordering::SeqCst) & STATUS_NEEDS_RESET == 0 {
            ratelog::warn(format_args!("{device} needs a reset: {reason}"));
            self.signal.config();
        }
    }
}

/// What a device is given when its driver says `DRIVER_OK`.
pub struct Activation {
    /// Guest memory.
    pub ram: SharedRam,
    /// The queues that the driver enabled, in order of their index; some may be missing.
    pub queues: Vec<Queue>,
    /// The way to the guest.
    pub interrupt: Interrupt,
    /// The features that both sides agreed on.
    pub features: u64,
}

/// A device could not start its work.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A thread could not be started.
    #[error("cannot start the thread {name}")]
    Thread {
        /// The thread's name.
        name: String,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
    /// An eventfd, epoll or ring could not be made.
    #[error("cannot set up the device's events")]
    Events(#[source] std::io::Error),
    /// The driver enabled too few queues.
    #[error("queue {0} is missing")]
    MissingQueue(u16),
}

/// Read a configuration space that is `space`: beyond its end, zeroes.
pub(super) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut bytes = space.iter().skip(start);
    data.fill_with(|| bytes.next().copied().unwrap_or(0));
}

/// Take queue `index` out of those that the driver enabled.
pub(super) fn take_queue(queues: &mut Vec<Queue>, index: u16) -> Result<Queue, ActivateError> {
    let at =
        queues.iter().position(|queue| queue.index == index).ok_or(ActivateError::MissingQueue(index))?;
    Ok(queues.swap_remove(at))
}

/// A virtio device. Called by its transport, under the transport's lock, on a vCPU thread or the vmm's.
pub trait VirtioDevice: Send {
    /// Its type.
    fn kind(&self) -> DeviceKind;

    /// A short name for threads and logs, such as `disk0`.
    fn id(&self) -> &str;

    /// The device-specific features that it offers, and the ring features it can do ([`RING_FEATURES`]). The transport adds
    /// `VIRTIO_F_VERSION_1` and what belongs to itself.
    fn features(&self) -> u64;

    /// The largest size of each of its queues: powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Read its configuration space. Beyond the end, zeroes.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Write its configuration space. Fields that are read-only stay as they are.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Start to serve the queues. Returns at once; workers do the rest.
    ///
    /// # Errors
    /// If the host is out of something. The device is then inactive, its queues gone.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Finish or give up what is in flight, end the workers, and hand back the queues as they stand.
    /// An inactive device returns none.
    fn stop(&mut self) -> Vec<Queue>;

    /// The machine is no more, and nobody wants the queues: end the workers. A device whose work the host may hold up for ever does not wait
    /// that long.
    fn end(&mut self) {
        drop(self.stop());
    }

    /// The driver resets the device (virtio 1.2, 2.4), which is inactive by now: forget what belongs to that driver and
    /// outlived [`VirtioDevice::stop`], such as connections.
    fn reset(&mut self) {}

    /// What the guest can see of it and the transport does not know. It is inactive.
    fn save(&self) -> DeviceState;

    /// Become what `state` says, before any activation. Nothing in it is to be trusted.
    ///
    /// # Errors
    /// If the device cannot be that; it is then not to be used.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}
