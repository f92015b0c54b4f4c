//! The guest memory of one transfer, kept mapped for as long as the host may touch it.

use std::io;
use std::sync::Arc;

use vm_memory::{Bytes, GuestMemory};

use arch::memory::SharedRam;

use super::chain::{self, Segment};

/// What one system call takes (`IOV_MAX`).
const MAX_IOVECS: usize = 1024;

/// Segments of guest RAM. Owns a share of the RAM, so pointers made from it stay mapped while it lives.
#[derive(Clone, Debug)]
pub struct Buffers {
    ram: SharedRam,
    segments: Vec<Segment>,
}

impl Buffers {
    /// Take segments that were checked to lie inside `ram`.
    #[must_use]
    pub fn new(ram: &SharedRam, segments: Vec<Segment>) -> Self {
        Self { ram: Arc::clone(ram), segments }
    }

    /// Their length together, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        chain::total(&self.segments)
    }

    /// Point at what lies `from` bytes in, behind what is in `iovecs` already: at most `len` bytes, or as many as one call takes. The
    /// pointers are good for as long as `self` is; only the kernel may follow them, for the guest uses this memory as well. Returns
    /// how many bytes they are.
    ///
    /// # Errors
    /// If a segment is outside guest RAM after all.
    pub(crate) fn point_on(&self, from: u64, len: u64, iovecs: &mut Vec<libc::iovec>) -> io::Result<u64> {
        let mut pointed = 0;
        for segment in chain::slice(&self.segments, from, len) {
            for piece in self.ram.get_slices(segment.addr, segment.len as usize) {
                if iovecs.len() == MAX_IOVECS {
                    return Ok(pointed);
                }
                let piece = piece.map_err(io::Error::other)?;
                let base = piece.ptr_guard_mut().as_ptr().cast();
                iovecs.push(libc::iovec { iov_base: base, iov_len: piece.len() });
                pointed += piece.len() as u64;
            }
        }
        Ok(pointed)
    }

    /// Copy `data` into guest memory, `from` bytes in.
    ///
    /// # Errors
    /// If a segment is outside guest RAM after all.
    pub(crate) fn fill(&self, from: u64, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        for segment in chain::slice(&self.segments, from, data.len() as u64) {
            // `slice` yields no more than `data.len()` bytes together.
            let (piece, after) = rest.split_at_checked(segment.len as usize).unwrap_or((rest, &[]));
            self.ram.write_slice(piece, segment.addr).map_err(io::Error::other)?;
            rest = after;
        }
        Ok(())
    }

    /// Copy guest memory from `from` bytes in to `data`.
    ///
    /// # Errors
    /// If a segment is outside guest RAM after all.
    pub(crate) fn fetch(&self, from: u64, data: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        for segment in chain::slice(&self.segments, from, data.len() as u64) {
            let Some(piece) = data.get_mut(at..at + segment.len as usize) else { break };
            at += piece.len();
            self.ram.read_slice(piece, segment.addr).map_err(io::Error::other)?;
        }
        Ok(())
    }
}
