//! The guest memory of one frame, resolved to host addresses once: what `readv` and `writev` take.
//!
//! Kept from one frame to the next, so that memory that waits for a frame is not looked up again for each. Only the
//! kernel follows the addresses, or copies that allow for the guest's writing at the same time.

use std::io;

use vm_memory::{Bytes, GuestMemory, GuestMemoryError, VolatileSlice};

use arch::memory::SharedRam;

use crate::virtio::chain::Segment;

/// What one system call takes (`IOV_MAX`), less what a back end puts before and after.
const MAX_IOVECS: usize = 1020;

/// Guest memory that a frame is in, or that one may be put in. Owns a share of the RAM: what its addresses point at stays
/// mapped while it lives.
#[derive(Debug)]
pub struct Frame {
    ram: SharedRam,
    iovecs: Vec<libc::iovec>,
    total: u64,
    /// Of a frame that is in no guest's memory.
    own: Vec<u8>,
}

// SAFETY: the pointers lead into guest RAM, which `ram` keeps mapped and which belongs to no thread, or into `own`.
unsafe impl Send for Frame {}

impl Frame {
    /// Nothing of `ram`, for now.
    #[must_use]
    pub fn new(ram: &SharedRam) -> Self {
        Self { ram: SharedRam::clone(ram), iovecs: Vec::new(), total: 0, own: Vec::new() }
    }

    /// `len` bytes of the host's own memory.
    #[must_use]
    pub fn scratch(ram: &SharedRam, len: usize) -> Self {
        let mut own = vec![0; len];
        let iovecs = vec![libc::iovec { iov_base: own.as_mut_ptr().cast(), iov_len: len }];
        Self { ram: SharedRam::clone(ram), iovecs, total: len as u64, own }
    }

    /// What the kernel wrote into a [`Frame::scratch`].
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.own
    }

    /// Nothing again.
    pub fn clear(&mut self) {
        self.iovecs.clear();
        self.total = 0;
    }

    /// Add a segment that was checked to lie inside the RAM. False if there is no room for (all of) it: a system call takes no
    /// more pieces.
    ///
    /// # Errors
    /// If the segment is outside guest RAM after all.
    pub fn push(&mut self, segment: Segment) -> Result<bool, GuestMemoryError> {
        // Almost everything lies in one region, and needs no walk over all of them.
        if let Ok(piece) = self.ram.get_slice(segment.addr, segment.len as usize)
            && self.iovecs.len() < MAX_IOVECS
        {
            let base = piece.ptr_guard_mut().as_ptr().cast();
            self.iovecs.push(libc::iovec { iov_base: base, iov_len: piece.len() });
            self.total += piece.len() as u64;
            return Ok(true);
        }
        for piece in self.ram.get_slices(segment.addr, segment.len as usize) {
            let piece = piece?;
            if self.iovecs.len() >= MAX_IOVECS {
                return Ok(false);
            }
            let base = piece.ptr_guard_mut().as_ptr().cast();
            self.iovecs.push(libc::iovec { iov_base: base, iov_len: piece.len() });
            self.total += piece.len() as u64;
        }
        Ok(true)
    }

    /// Take `bytes` off the front.
    pub fn advance(&mut self, bytes: u64) {
        let mut left = bytes.min(self.total);
        self.total -= left;
        let mut whole = 0;
        for iovec in &mut self.iovecs {
            let len = iovec.iov_len as u64;
            if left < len {
                // `left` is less than a length that is a usize.
                iovec.iov_base = iovec.iov_base.cast::<u8>().wrapping_add(left as usize).cast();
                iovec.iov_len -= left as usize;
                break;
            }
            left -= len;
            whole += 1;
        }
        self.iovecs.drain(..whole);
    }

    /// Its length in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// For the kernel, good while `self` is left as it is: at most 1020 pieces.
    #[must_use]
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// Copy `data` into guest memory, `from` bytes in. What does not fit is left out.
    ///
    /// # Errors
    /// None that a sound host has.
    pub fn fill(&self, from: u64, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        for piece in self.pieces(from, data.len() as u64) {
            let (now, after) = rest.split_at_checked(piece.iov_len).unwrap_or((rest, &[]));
            volatile(&piece).write_slice(now, 0).map_err(io::Error::other)?;
            rest = after;
        }
        Ok(())
    }

    /// Copy guest memory from `from` bytes in to `data`, as far as it goes.
    ///
    /// # Errors
    /// None that a sound host has.
    pub fn fetch(&self, from: u64, data: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        for piece in self.pieces(from, data.len() as u64) {
            let Some(now) = data.get_mut(at..at + piece.iov_len) else { break };
            at += now.len();
            volatile(&piece).read_slice(now, 0).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// The pieces of what lies `from` bytes in and is up to `len` bytes long.
    fn pieces(&self, from: u64, len: u64) -> impl Iterator<Item = libc::iovec> + '_ {
        let (mut skip, mut left) = (from, len);
        self.iovecs.iter().filter_map(move |iovec| {
            let size = iovec.iov_len as u64;
            let start = skip.min(size);
            skip -= start;
            let take = (size - start).min(left);
            left -= take;
            // Both are at most the piece's own length, a usize.
            let base = iovec.iov_base.cast::<u8>().wrapping_add(start as usize).cast();
            (take > 0).then_some(libc::iovec { iov_base: base, iov_len: take as usize })
        })
    }
}

/// A piece as memory that others write too.
fn volatile(piece: &libc::iovec) -> VolatileSlice<'_> {
    // SAFETY: a part of a slice of guest RAM, which the frame that it comes from keeps mapped, or of that frame's own memory; it
    // is reached by volatile accesses only.
    unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::memory::GuestRam;
    use std::sync::Arc;
    use vm_memory::GuestAddress;

    fn ram() -> SharedRam {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]);
        Arc::new(ram.unwrap())
    }

    fn segment(addr: u64, len: u32) -> Segment {
        Segment { addr: GuestAddress(addr), len }
    }

    #[test]
    fn bytes_go_where_the_segments_are() {
        let ram = ram();
        let mut frame = Frame::new(&ram);
        assert!(frame.push(segment(0x10, 3)).unwrap());
        // Across the border of two regions.
        assert!(frame.push(segment(0xffe, 4)).unwrap());
        assert_eq!((frame.total(), frame.iovecs().len()), (7, 3));
        frame.fill(1, b"abcdefgh").unwrap();
        let mut seen = [0; 8];
        frame.fetch(0, &mut seen).unwrap();
        assert_eq!(&seen, b"\0abcdef\0");
        let mut direct = [0; 4];
        ram.read_slice(&mut direct, GuestAddress(0xffe)).unwrap();
        assert_eq!(&direct, b"cdef");
    }

    #[test]
    fn what_is_used_is_taken_off_the_front() {
        let ram = ram();
        let mut frame = Frame::new(&ram);
        for at in [0, 0x100, 0x200] {
            frame.push(segment(at, 0x10)).unwrap();
        }
        frame.advance(0x18);
        assert_eq!((frame.total(), frame.iovecs().len()), (0x18, 2));
        frame.fill(0, b"x").unwrap();
        assert_eq!(ram.read_obj::<u8>(GuestAddress(0x108)).unwrap(), b'x');
        frame.advance(1000);
        assert_eq!((frame.total(), frame.iovecs().len()), (0, 0));
    }

    #[test]
    fn memory_outside_is_refused_and_the_pieces_are_bounded() {
        let ram = ram();
        let mut frame = Frame::new(&ram);
        assert!(frame.push(segment(0x1fff, 2)).is_err());
        frame.clear();
        for at in 0..MAX_IOVECS as u64 {
            assert!(frame.push(segment(at, 1)).unwrap());
        }
        assert!(!frame.push(segment(0, 1)).unwrap());
        assert_eq!(frame.total(), MAX_IOVECS as u64);
    }
}
