//! A descriptor chain, parsed once into owned, checked segments.
//!
//! The guest can change a descriptor at any time, so each is read exactly once and only the copy is used. After
//! [`Chain::parse`] every segment lies inside guest RAM, is not empty, and the readable ones come first
//! (virtio 1.2, 2.7.4.2).

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use arch::memory::GuestRam;

/// The longest chain that is followed, direct or indirect: what other hosts allow, whatever the queue's size.
pub const MAX_CHAIN: u16 = 1024;

const DESCRIPTOR_LEN: u64 = 16;

/// One buffer of a chain, inside guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: GuestAddress,
    /// Length in bytes, at least 1.
    pub len: u32,
}

/// What the guest got wrong about a chain.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    /// The descriptor's index is not below the table's length.
    #[error("descriptor index {0} is outside its table")]
    Index(u16),
    /// The descriptor itself is not in guest RAM.
    #[error("the descriptor at {0:#x} is outside guest memory")]
    Descriptor(u64),
    /// The buffer is not (wholly) in guest RAM.
    #[error("the buffer {addr:#x}+{len:#x} is outside guest memory")]
    Buffer {
        /// Guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A buffer of no bytes.
    #[error("a buffer has no length")]
    Empty,
    /// The chain loops, or is longer than its table.
    #[error("the chain is too long or loops")]
    TooLong,
    /// A device-readable buffer after a device-writable one.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// An indirect table where none was negotiated, nested, of odd length, or chained on.
    #[error("a malformed indirect descriptor")]
    Indirect,
}

/// One request of the guest: device-readable segments, then device-writable ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The head's index: what is returned in the used ring.
    pub head: u16,
    /// What the device reads, in order.
    pub readable: Vec<Segment>,
    /// What the device writes, in order.
    pub writable: Vec<Segment>,
}

/// A descriptor as it lies in guest memory (virtio 1.2, 2.7.5), little-endian.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

// SAFETY: four integers with no padding; any bit pattern is valid.
unsafe impl ByteValued for Descriptor {}

impl Descriptor {
    fn read(ram: &GuestRam, table: u64, index: u16) -> Result<Self, ChainError> {
        let at = table.checked_add(u64::from(index) * DESCRIPTOR_LEN).ok_or(ChainError::Descriptor(table))?;
        let raw: Self = read(ram, GuestAddress(at)).map_err(|_| ChainError::Descriptor(at))?;
        Ok(Self {
            addr: u64::from_le(raw.addr),
            len: u32::from_le(raw.len),
            flags: u16::from_le(raw.flags),
            next: u16::from_le(raw.next),
        })
    }

    fn has(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

impl Chain {
    /// Read the chain that starts at `head` of the descriptor table at `table` with `size` entries.
    ///
    /// # Errors
    /// If the guest broke a rule of virtio 1.2, 2.7.5.
    pub fn parse(
        ram: &GuestRam,
        table: GuestAddress,
        size: u16,
        head: u16,
        indirect: bool,
    ) -> Result<Self, ChainError> {
        let mut chain = Self { head, readable: Vec::new(), writable: Vec::new() };
        chain.walk(ram, table.0, size, head, indirect)?;
        Ok(chain)
    }

    fn walk(
        &mut self,
        ram: &GuestRam,
        table: u64,
        size: u16,
        head: u16,
        indirect: bool,
    ) -> Result<(), ChainError> {
        let mut index = head;
        for _ in 0..size.min(MAX_CHAIN) {
            if index >= size {
                return Err(ChainError::Index(index));
            }
            let descriptor = Descriptor::read(ram, table, index)?;
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                return self.walk_indirect(ram, &descriptor, indirect);
            }
            self.push(ram, &descriptor)?;
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(ChainError::TooLong)
    }

    /// An indirect table replaces the rest of the chain: 2.7.5.3.1 forbids `NEXT` beside `INDIRECT` and a
    /// table within a table.
    fn walk_indirect(
        &mut self,
        ram: &GuestRam,
        descriptor: &Descriptor,
        allowed: bool,
    ) -> Result<(), ChainError> {
        let len = u64::from(descriptor.len);
        if !allowed || descriptor.has(VRING_DESC_F_NEXT) || len == 0 || !len.is_multiple_of(DESCRIPTOR_LEN) {
            return Err(ChainError::Indirect);
        }
        let entries = u16::try_from(len / DESCRIPTOR_LEN).map_err(|_| ChainError::Indirect)?;
        self.walk(ram, descriptor.addr, entries, 0, false)
    }

    fn push(&mut self, ram: &GuestRam, descriptor: &Descriptor) -> Result<(), ChainError> {
        let Descriptor { addr, len, .. } = *descriptor;
        if len == 0 {
            return Err(ChainError::Empty);
        }
        let segment = Segment { addr: GuestAddress(addr), len };
        // Almost everything lies in one region, and needs no walk over all of them.
        if ram.get_slice(segment.addr, len as usize).is_err() && !ram.check_range(segment.addr, len as usize)
        {
            return Err(ChainError::Buffer { addr, len });
        }
        if descriptor.has(VRING_DESC_F_WRITE) {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(ChainError::Order);
        }
        Ok(())
    }

    /// How many bytes the device may read.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        total(&self.readable)
    }

    /// How many bytes the device may write.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        total(&self.writable)
    }

    /// Copy from the readable bytes, starting `offset` bytes in. Returns how many were copied: less than
    /// `data.len()` only where the chain ends.
    pub fn read(&self, ram: &GuestRam, offset: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        for part in slice(&self.readable, offset, data.len() as u64) {
            let Some(piece) = data.get_mut(done..done + part.len as usize) else { break };
            // The range was checked when it was parsed and RAM never shrinks.
            if ram.read_slice(piece, part.addr).is_err() {
                break;
            }
            done += piece.len();
        }
        done
    }

    /// Copy into the writable bytes, starting `offset` bytes in. Returns how many were copied: less than
    /// `data.len()` only where the chain ends.
    pub fn write(&self, ram: &GuestRam, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for part in slice(&self.writable, offset, data.len() as u64) {
            let Some(piece) = data.get(done..done + part.len as usize) else { break };
            if ram.write_slice(piece, part.addr).is_err() {
                break;
            }
            done += piece.len();
        }
        done
    }
}

/// Copy a value from guest RAM. What lies in one region, as almost everything does, needs no walk over all of them.
pub(super) fn read<T: ByteValued>(ram: &GuestRam, addr: GuestAddress) -> Result<T, GuestMemoryError> {
    match ram.get_slice(addr, size_of::<T>()) {
        Ok(slice) => Ok(slice.read_obj(0)?),
        Err(_) => ram.read_obj(addr),
    }
}

/// The length of `segments` together. At most [`MAX_CHAIN`] × 4 GiB: no overflow.
#[must_use]
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// The part of `segments` that lies `offset` bytes in and is up to `len` bytes long.
pub fn slice(segments: &[Segment], offset: u64, len: u64) -> impl Iterator<Item = Segment> + '_ {
    let mut skip = offset;
    let mut left = len;
    segments.iter().filter_map(move |segment| {
        let size = u64::from(segment.len);
        let start = skip.min(size);
        skip -= start;
        let take = (size - start).min(left);
        left -= take;
        // `take` and `start` are at most the segment's own 32-bit length, which was checked against RAM.
        (take > 0).then(|| Segment { addr: GuestAddress(segment.addr.0 + start), len: take as u32 })
    })
}
