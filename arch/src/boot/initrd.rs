//! Places an initial RAM disk in guest memory and reads it there.

use vm_memory::{Bytes, GuestAddress, ReadVolatile};

use super::LoadError;
use crate::memory::GuestRam;

/// An initial RAM disk to be read straight into guest memory.
#[derive(Debug)]
pub struct Initrd<'a, R> {
    /// Where it is read from: a file, or `&[u8]`.
    pub source: &'a mut R,
    /// Its length in bytes. Empty is as good as none.
    pub len: u64,
}

/// Where an initrd was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Guest physical address, page aligned.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The highest page-aligned address at which `len` bytes end at or below `ceiling`, and at or above `floor`.
#[must_use]
pub fn place(len: u64, floor: u64, ceiling: u64) -> Option<u64> {
    let addr = ceiling.checked_sub(len)? & !0xfff;
    (addr >= floor).then_some(addr)
}

impl<R: ReadVolatile> Initrd<'_, R> {
    /// Read it to the highest place between `floor` and `ceiling`.
    ///
    /// # Errors
    /// If it does not fit, or cannot be read.
    pub fn load(self, ram: &GuestRam, floor: u64, ceiling: u64) -> Result<Placed, LoadError> {
        let too_large = || LoadError::InitrdTooLarge { len: self.len, room: ceiling.saturating_sub(floor) };
        let addr = place(self.len, floor, ceiling).ok_or_else(too_large)?;
        let count = usize::try_from(self.len).map_err(|_| too_large())?;
        ram.read_exact_volatile_from(GuestAddress(addr), self.source, count).map_err(LoadError::Initrd)?;
        Ok(Placed { addr, len: self.len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_as_high_as_it_may() {
        assert_eq!(place(1, 0x10_0000, 0x400_0000), Some(0x3ff_f000));
        assert_eq!(place(0x1001, 0x10_0000, 0x400_0000), Some(0x3ff_e000));
        assert_eq!(place(0x1000, 0x3ff_f000, 0x400_0000), Some(0x3ff_f000));
        assert_eq!(place(0x1001, 0x3ff_f000, 0x400_0000), None);
        assert_eq!(place(u64::MAX, 0, 0x400_0000), None);
    }
}
