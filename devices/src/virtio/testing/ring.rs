//! A driver's end of a split virtqueue (virtio 1.2, 2.7), with every part of it open to be set wrongly.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use arch::memory::SharedRam;

use super::registers::QueueLayout;
use super::{Guest, eventually};

/// Descriptor flags (2.7.5).
pub mod flags {
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes this buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// One buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buf {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it (or else reads it).
    pub writable: bool,
}

impl Buf {
    /// A buffer that the device reads.
    #[must_use]
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: false }
    }

    /// A buffer that the device writes.
    #[must_use]
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: true }
    }

    fn flags(self) -> u16 {
        if self.writable { flags::WRITE } else { 0 }
    }
}

/// A driver's end of a virtqueue. Descriptors are given out round and round: no more than a ring full may be in
/// flight.
pub struct GuestQueue {
    ram: SharedRam,
    index: u16,
    layout: QueueLayout,
    event_idx: bool,
    next_descriptor: u16,
    avail: u16,
    used: u16,
    /// For indirect tables.
    scratch: u64,
}

/// Descriptors that an indirect table of [`GuestQueue::add_indirect`] can have.
const SCRATCH: u64 = 64;

impl GuestQueue {
    /// Rings of `size` entries in fresh memory of `guest`.
    pub fn new(guest: &mut Guest, index: u16, size: u16, event_idx: bool) -> Self {
        let entries = u64::from(size);
        let layout = QueueLayout {
            size,
            desc: guest.alloc(16 * entries),
            avail: guest.alloc(6 + 2 * entries),
            used: guest.alloc(6 + 8 * entries),
        };
        let scratch = guest.alloc(16 * SCRATCH);
        let ram = SharedRam::clone(&guest.ram);
        for (at, len) in [(layout.avail, 6 + 2 * entries), (layout.used, 6 + 8 * entries)] {
            ram.write_slice(&vec![0; len as usize], GuestAddress(at)).expect("allocated");
        }
        Self { ram, index, layout, event_idx, next_descriptor: 0, avail: 0, used: 0, scratch }
    }

    /// Which queue of the device it is.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Where it is.
    #[must_use]
    pub fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// Make a chain of `buffers` available. Returns its head.
    pub fn add(&mut self, buffers: &[Buf]) -> u16 {
        let size = self.layout.size;
        let head = self.next_descriptor;
        for (i, buffer) in buffers.iter().enumerate() {
            let at = self.next_descriptor;
            self.next_descriptor = (at + 1) % size;
            let next = if i + 1 < buffers.len() { flags::NEXT } else { 0 };
            self.set_descriptor(at, buffer.addr, buffer.len, buffer.flags() | next, self.next_descriptor);
        }
        self.publish(head);
        head
    }

    /// Make a chain of `buffers` available through an indirect table. Returns its head. One at a time: there is
    /// one table.
    pub fn add_indirect(&mut self, buffers: &[Buf]) -> u16 {
        for (i, buffer) in (0_u16..).zip(buffers) {
            let next = if usize::from(i) + 1 < buffers.len() { flags::NEXT } else { 0 };
            self.set_indirect(i, buffer.addr, buffer.len, buffer.flags() | next, i + 1);
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.layout.size;
        self.set_descriptor(head, self.scratch, 16 * buffers.len() as u32, flags::INDIRECT, 0);
        self.publish(head);
        head
    }

    /// Where the indirect table is.
    #[must_use]
    pub fn indirect_table(&self) -> u64 {
        self.scratch
    }

    /// Write entry `at` of the indirect table.
    pub fn set_indirect(&self, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.write_descriptor(self.scratch, at, addr, len, flags, next);
    }

    /// Write descriptor `at`.
    pub fn set_descriptor(&self, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.write_descriptor(self.layout.desc, at, addr, len, flags, next);
    }

    fn write_descriptor(&self, table: u64, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(addr.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.ram.write_slice(&bytes, GuestAddress(table + 16 * u64::from(at))).expect("a table in RAM");
    }

    /// Put `head` in the available ring and move its index on.
    pub fn publish(&mut self, head: u16) {
        let slot = self.layout.avail + 4 + 2 * u64::from(self.avail % self.layout.size);
        self.ram.write_obj(head.to_le(), GuestAddress(slot)).expect("a ring in RAM");
        self.set_avail(self.avail.wrapping_add(1));
    }

    /// Set the available index.
    pub fn set_avail(&mut self, value: u16) {
        self.avail = value;
        let at = GuestAddress(self.layout.avail + 2);
        self.ram.store(value.to_le(), at, Ordering::SeqCst).expect("a ring in RAM");
    }

    /// How many requests were made available in all.
    #[must_use]
    pub fn avail(&self) -> u16 {
        self.avail
    }

    /// Set the flags of the available ring: 1 asks for no interrupts, without EVENT_IDX.
    pub fn set_avail_flags(&self, value: u16) {
        let at = GuestAddress(self.layout.avail);
        self.ram.store(value.to_le(), at, Ordering::SeqCst).expect("a ring in RAM");
    }

    /// Set `used_event`: interrupt when the used index passes it, with EVENT_IDX.
    pub fn set_used_event(&self, value: u16) {
        let at = self.layout.avail + 4 + 2 * u64::from(self.layout.size);
        self.ram.store(value.to_le(), GuestAddress(at), Ordering::SeqCst).expect("a ring in RAM");
    }

    /// Whether the device wants to be rung when one more request is made available.
    #[must_use]
    pub fn wants_kick(&self) -> bool {
        let load =
            |at| u16::from_le(self.ram.load(GuestAddress(at), Ordering::SeqCst).expect("a ring in RAM"));
        if self.event_idx {
            load(self.layout.used + 4 + 8 * u64::from(self.layout.size)) == self.avail
        } else {
            load(self.layout.used) & 1 == 0
        }
    }

    /// The used index.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        let at = GuestAddress(self.layout.used + 2);
        u16::from_le(self.ram.load(at, Ordering::SeqCst).expect("a ring in RAM"))
    }

    /// The next request that the device has used: its head, and how many bytes were written.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.used {
            return None;
        }
        let slot = self.layout.used + 4 + 8 * u64::from(self.used % self.layout.size);
        let [head, len]: [u32; 2] =
            [slot, slot + 4].map(|at| self.ram.read_obj(GuestAddress(at)).expect("a ring in RAM"));
        self.used = self.used.wrapping_add(1);
        Some((u32::from_le(head), u32::from_le(len)))
    }

    /// Wait for the next request that the device has used.
    ///
    /// # Panics
    /// If there is none within [`super::PATIENCE`].
    pub fn wait_used(&mut self) -> (u32, u32) {
        let mut used = None;
        eventually(|| {
            used = self.take_used();
            used.is_some()
        });
        used.unwrap_or_else(|| panic!("queue {} uses what was made available", self.index))
    }
}
