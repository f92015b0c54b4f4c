//! A split virtqueue as a device holds it while it is active.
//!
//! The ring itself is virtio-queue's; this adds the checks that tell a broken guest from an empty ring,
//! and the doorbell. A queue is moved into a device by `activate` and out of it by `stop`, positions and all.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use arch::memory::GuestRam;

use super::chain::{self, Chain, ChainError};

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
    /// Entries after the used index that were written and that the guest does not see yet.
    unpublished: u16,
    /// The used index when it was last decided whether to interrupt.
    told: u16,
}

impl Queue {
    /// Queue `index`, as its ring stands.
    #[must_use]
    pub fn new(index: u16, ring: virtio_queue::Queue, kick: EventFd, indirect: bool) -> Self {
        let told = ring.next_used();
        Self { index, ring, kick, indirect, unpublished: 0, told }
    }

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
        let slot = offset(self.ring.avail_ring(), 4 + 2 * u64::from(next % size))?;
        let head: u16 = chain::read(ram, slot).map_err(memory)?;
        let table = GuestAddress(self.ring.desc_table());
        let chain =
            Chain::parse(ram, table, size, u16::from_le(head), self.indirect).map_err(QueueError::Chain)?;
        self.ring.set_next_avail(next.wrapping_add(1));
        Ok(Some(chain))
    }

    /// The ring as it stands, for somebody who reads the chains that are popped next once more with virtio-queue's eyes.
    ///
    /// # Errors
    /// If the ring is none.
    pub fn second_look(&self) -> Result<virtio_queue::Queue, QueueError> {
        self.ring.state().try_into().map_err(QueueError::Ring)
    }

    /// Put the request popped last back: the next [`Queue::pop`] returns it again.
    pub fn unpop(&mut self) {
        self.unpop_all(1);
    }

    /// Put the `count` requests popped last back.
    pub fn unpop_all(&mut self, count: u16) {
        self.ring.set_next_avail(self.ring.next_avail().wrapping_sub(count));
    }

    /// Give the request with this head back, `len` bytes of its writable part written.
    ///
    /// # Errors
    /// If the used ring is outside guest memory.
    pub fn add_used(&mut self, ram: &GuestRam, head: u16, len: u32) -> Result<(), QueueError> {
        self.ring.add_used(ram, head, len).map_err(QueueError::Ring)
    }

    /// Put a request in the used ring as [`Queue::add_used`] does, but do not show it to the guest before
    /// [`Queue::publish_used`]: what belongs together is seen together, and the index is written once for many.
    ///
    /// # Errors
    /// If the used ring is outside guest memory.
    pub fn put_used(&mut self, ram: &GuestRam, head: u16, len: u32) -> Result<(), QueueError> {
        let at = self.ring.next_used().wrapping_add(self.unpublished) % self.ring.size().max(1);
        let entry = u64::from(head) | u64::from(len) << 32;
        let slot = offset(self.ring.used_ring(), 4 + 8 * u64::from(at))?;
        ram.write_obj(entry.to_le(), slot).map_err(memory)?;
        self.unpublished = self.unpublished.wrapping_add(1);
        Ok(())
    }

    /// Show the guest what was put in the used ring. Whether there was anything.
    ///
    /// # Errors
    /// If the used ring is outside guest memory.
    pub fn publish_used(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        if self.unpublished == 0 {
            return Ok(false);
        }
        let next = self.ring.next_used().wrapping_add(std::mem::take(&mut self.unpublished));
        self.ring.set_next_used(next);
        let index = offset(self.ring.used_ring(), 2)?;
        ram.store(next.to_le(), index, Ordering::Release).map_err(memory)?;
        Ok(true)
    }

    /// Whether the guest wants an interrupt for what was used since the last call (2.7.7).
    ///
    /// # Errors
    /// If the available ring is outside guest memory.
    pub fn wants_interrupt(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        let used = self.ring.next_used();
        let told = std::mem::replace(&mut self.told, used);
        // The used index is written before the guest's wish is read: one of the two sides sees the other.
        fence(Ordering::SeqCst);
        let avail = self.ring.avail_ring();
        if self.ring.event_idx_enabled() {
            let event = offset(avail, 4 + 2 * u64::from(self.ring.size()))?;
            let event = u16::from_le(ram.load(event, Ordering::Relaxed).map_err(memory)?);
            return Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(told));
        }
        let flags = u16::from_le(ram.load(GuestAddress(avail), Ordering::Relaxed).map_err(memory)?);
        Ok(flags & NO_INTERRUPT == 0)
    }

    /// Take it that the guest was told of nothing: [`Queue::wants_interrupt`] is true if there may be anything that it has not seen.
    pub fn forget_told(&mut self) {
        self.told = self.ring.next_used().wrapping_sub(self.ring.size());
    }

    /// How many requests the guest has made available and not got back: those that were not popped, and those in hand.
    ///
    /// # Errors
    /// If the available ring is outside guest memory.
    pub fn outstanding(&self, ram: &GuestRam) -> Result<u16, QueueError> {
        let avail = self.ring.avail_idx(ram, Ordering::Acquire).map_err(QueueError::Ring)?.0;
        let used = self.ring.next_used().wrapping_add(self.unpublished);
        Ok(avail.wrapping_sub(used).min(self.ring.size()))
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

/// What lies `offset` bytes into a ring.
fn offset(ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
    ring.checked_add(offset).map(GuestAddress).ok_or(QueueError::Ring(virtio_queue::Error::AddressOverflow))
}

fn memory(error: vm_memory::GuestMemoryError) -> QueueError {
    QueueError::Ring(virtio_queue::Error::GuestMemory(error))
}
