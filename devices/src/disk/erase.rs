//! Discarding and zeroing parts of a disk, synchronously.
//!
//! What a host offers differs by file system and device, so each request is a ladder of system calls down to
//! what always works: nothing for a discard, which is a hint, and writing zeroes for zeroes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use super::Backing;

/// What is written at a time where nothing but writing works, in bytes.
const ZEROES: usize = 64 * 1024;

/// The strictest alignment that direct I/O may ask of a buffer here.
#[repr(C, align(4096))]
struct Zeroes([u8; ZEROES]);

static ZERO_BUFFER: Zeroes = Zeroes([0; ZEROES]);

/// What is to become of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erase {
    /// The content does not matter any more.
    Discard,
    /// It reads as zeroes and keeps its place on the host.
    Zero,
    /// It reads as zeroes and the host may take its place back.
    Unmap,
}

/// A part of a disk to erase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
    /// What to do to it.
    pub how: Erase,
}

impl Extent {
    /// The `fallocate` call that does it in one go on this kind of file, if there is one.
    pub(super) fn fallocate(&self, backing: Backing) -> Option<FallocateFlags> {
        match self.how {
            // Punching a block device means zeroing it, which may be slow; it has its own call.
            Erase::Discard if backing == Backing::BlockDevice => None,
            Erase::Discard | Erase::Unmap => Some(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
            Erase::Zero => Some(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
        }
    }
}

/// A raw disk's file, for what is done to it at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawFile<'a> {
    pub file: &'a File,
    pub backing: Backing,
}

impl RawFile<'_> {
    /// Discard or zero an extent that lies inside the disk, and wait until it is done.
    ///
    /// # Errors
    /// If the host fails for another reason than not being able to do it the fast way.
    pub(super) fn erase(self, extent: Extent) -> io::Result<()> {
        if let Some(flags) = extent.fallocate(self.backing) {
            match self.fallocate(flags, extent) {
                Err(error) if unsupported(&error) => {}
                result => return result,
            }
        }
        match extent.how {
            Erase::Discard => self.discard_device(extent),
            Erase::Unmap => self.erase(Extent { how: Erase::Zero, ..extent }),
            Erase::Zero => self.write_zeroes(extent),
        }
    }

    fn fallocate(self, flags: FallocateFlags, extent: Extent) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| rustix::fs::fallocate(self.file, flags, extent.offset, extent.len))?)
    }

    /// A discard that the host cannot do is done: it is only a hint (virtio 1.2, 5.2.6).
    fn discard_device(self, extent: Extent) -> io::Result<()> {
        /// `_IO(0x12, 119)` of linux/fs.h.
        const BLKDISCARD: libc::Ioctl = 0x1277;
        if self.backing != Backing::BlockDevice {
            return Ok(());
        }
        let range: [u64; 2] = [extent.offset, extent.len];
        // SAFETY: the request reads two u64 from `range`, which outlives the call.
        if unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, &range) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if unsupported(&error) => Ok(()),
            error => Err(error),
        }
    }

    fn write_zeroes(self, extent: Extent) -> io::Result<()> {
        let mut offset = extent.offset;
        let mut left = extent.len;
        while left > 0 {
            let len = left.min(ZEROES as u64);
            let zeroes = ZERO_BUFFER.0.get(..len as usize).unwrap_or(&ZERO_BUFFER.0);
            self.file.write_all_at(zeroes, offset)?;
            // The extent lies inside the disk, so this does not overflow.
            offset += len;
            left -= len;
        }
        Ok(())
    }
}

/// Whether the host says that it cannot do this at all here (some say so with `EINVAL`).
pub(super) fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOTTY))
}
