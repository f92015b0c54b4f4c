//! A split virtqueue as a device holds it while it is active.
//!
//! The ring itself is virtio-queue's; this adds the checks that tell a broken guest from an empty ring,
//! and the doorbell. A queue is moved into a device by `activate` and out of it by `stop`, positions and all.

use std::sync::atomic::Ordering;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use arch::memory::GuestRam;

use super::chain::{Chain, ChainError};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (virtio 1.2, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// The guest broke a rule of the ring: the device needs a reset (virtio 1.2, 2.1.2).
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The ring, or a part of it, is not in guest RAM.
    #[error("a ring is outside guest memory")]
    Ring(#[source] virtio_queue::Error),
    /// The available index ran further ahead than the ring is long.
    #[error("the available index is {ahead} ahead in a ring of {size}")]
    AvailIndex {
        /// How far it is ahead of what was consumed.
        ahead: u16,
        /// The ring's size.
        size: u16,
    },
    /// A descriptor chain is malformed.
    #[error("a descriptor chain is malformed")]
    Chain(#[source] ChainError),
}

/// One virtqueue of an active device.
#[derive(Debug)]
pub struct Queue {
    /// Which queue of the device it is.
    pub index: u16,
    /// Size, addresses and positions.
    pub ring: virtio_queue::Queue,
    /// Readable when the guest has rung the doorbell.
    pub kick: EventFd,
    /// Whether `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

impl Queue {
    /// The next request, or `None` when the guest has made no more available.
    ///
    /// # Errors
    /// If the guest broke a rule; the queue is then not to be used until it is reset.
    pub fn pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, QueueError> {
        let size = self.ring.size();
        let next = self.ring.next_avail();
        let avail = self.ring.avail_idx(ram, Ordering::Acquire).map_err(QueueError::Ring)?.0;
        let ahead = avail.wrapping_sub(next);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > size || size == 0 {
            return Err(QueueError::AvailIndex { ahead, size });
        }
        let slot = self.ring.avail_ring().checked_add(4 + 2 * u64::from(next % size));
        let slot = slot.ok_or(QueueError::Ring(virtio_queue::Error::AddressOverflow))?;
        let head: u16 = ram
            .read_obj(GuestAddress(slot))
            .map_err(|error| QueueError::Ring(virtio_queue::Error::GuestMemory(error)))?;
        let table = GuestAddress(self.ring.desc_table());
        let chain =
            Chain::parse(ram, table, size, u16::from_le(head), self.indirect).map_err(QueueError::Chain)?;
        self.ring.set_next_avail(next.wrapping_add(1));
        Ok(Some(chain))
    }

    /// Put the request popped last back: the next [`Queue::pop`] returns it again.
    pub fn unpop(&mut self) {
        self.ring.set_next_avail(self.ring.next_avail().wrapping_sub(1));
    }

    /// Give the request with this head back, `len` bytes of its writable part written.
    ///
    /// # Errors
    /// If the used ring is outside guest memory.
    pub fn add_used(&mut self, ram: &GuestRam, head: u16, len: u32) -> Result<(), QueueError> {
        self.ring.add_used(ram, head, len).map_err(QueueError::Ring)
    }

    /// Whether the guest wants an interrupt for what was used since the last call (2.7.7).
    ///
    /// # Errors
    /// If the available ring is outside guest memory.
    pub fn wants_interrupt(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        if !self.ring.needs_notification(ram).map_err(QueueError::Ring)? {
            return Ok(false);
        }
        if self.ring.event_idx_enabled() {
            return Ok(true);
        }
        // virtio-queue orders this read after the used index but does not look at the flag itself.
        let flags: u16 = ram
            .read_obj(GuestAddress(self.ring.avail_ring()))
            .map_err(|error| QueueError::Ring(virtio_queue::Error::GuestMemory(error)))?;
        Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
    }

    /// Ask the guest to ring (again). True if it made more available in the meantime without ringing: look again.
    ///
    /// # Errors
    /// If a ring is outside guest memory.
    pub fn enable_kicks(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        self.ring.enable_notification(ram).map_err(QueueError::Ring)
    }

    /// Tell the guest that ringing is not needed: the device is looking.
    ///
    /// # Errors
    /// If a ring is outside guest memory.
    pub fn disable_kicks(&mut self, ram: &GuestRam) -> Result<(), QueueError> {
        self.ring.disable_notification(ram).map_err(QueueError::Ring)
    }
}
