//! Disks: what a guest's block device reads and writes.
//!
//! A [`Disk`] is opened and locked once, and shared (`Arc`) by every device object that is built around it: its
//! file and its lock outlive a reboot of the VM. It holds no position and no cache, so any thread may use it.
//! Requests are carried out by an [`engine`], one for each worker thread, at byte offsets of the disk; the raw
//! format, where a disk's offset is the file's, is the only one so far.

pub mod engine;
mod erase;
mod error;
mod lock;
mod probe;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use erase::{Erase, Extent};
pub use error::DiskError;

/// The unit of a disk's size and of a guest's requests, in bytes (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// Which file is the disk and how it may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// A regular file or a block device, in the raw format.
    pub path: PathBuf,
    /// The guest may only read; other readers may share the disk.
    pub readonly: bool,
    /// Go around the host's page cache (`O_DIRECT`).
    pub direct: bool,
}

/// What the file is, as far as requests have to differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    File,
    BlockDevice,
}

/// What `O_DIRECT` asks of each transfer, in bytes, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Of each buffer's address.
    pub memory: u32,
    /// Of the offset, and of each buffer's length.
    pub offset: u32,
}

/// An open, locked disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
    readonly: bool,
    backing: Backing,
    /// In bytes. Only grows.
    size: AtomicU64,
    /// `Some` when the file is open for direct I/O.
    direct: Option<Alignment>,
    logical_block: u32,
    physical_block: u32,
}

impl Disk {
    /// Open and lock a disk.
    ///
    /// # Errors
    /// If it cannot be opened, is no raw disk, or another VM (or the host) uses it. Each names the path and the fix.
    pub fn open(options: &DiskOptions) -> Result<Self, DiskError> {
        let path = options.path.as_path();
        let backing = probe::backing(path)?;
        let file = open_file(options, backing)?;
        lock::lock(&file, path, options.readonly)?;
        let size = probe::size(&file, path)?;
        probe::check_raw(&file, path, options.direct)?;
        let blocks = probe::blocks(&file, backing);
        let direct = options.direct.then(|| probe::alignment(&file, blocks.logical));
        // Under O_DIRECT a guest has to keep to the blocks that the host can transfer.
        let logical_block = direct.map_or(blocks.logical, |align| align.offset.max(blocks.logical));
        Ok(Self {
            file,
            path: options.path.clone(),
            readonly: options.readonly,
            backing,
            size: AtomicU64::new(size),
            direct,
            logical_block,
            physical_block: blocks.physical.max(logical_block),
        })
    }

    /// Its size in bytes, a multiple of [`SECTOR`]. It may grow at any time.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    /// Make it `size` bytes large from now on. A file that is shorter is made longer, by a hole; a file that was made longer by
    /// someone else is taken as it is, and so is a block device.
    ///
    /// # Errors
    /// If that would cut something off, or the file or device is shorter and cannot be made longer. The disk
    /// is then as it was.
    pub fn resize(&self, size: u64) -> Result<(), DiskError> {
        let path = || self.path.clone();
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(DiskError::OddSize { path: path(), size });
        }
        let now = self.size();
        if size < now {
            return Err(DiskError::Shrink { path: path(), size, now });
        }
        let there = probe::size(&self.file, &self.path)?;
        match self.backing {
            _ if there >= size => {}
            Backing::BlockDevice => return Err(DiskError::DeviceTooSmall { path: path(), size, there }),
            Backing::File if self.readonly => return Err(DiskError::ReadOnly { path: path(), size }),
            Backing::File => {
                self.file.set_len(size).map_err(|source| DiskError::Grow { path: path(), size, source })?;
            }
        }
        // Two at once: the larger one stays.
        self.size.fetch_max(size, Ordering::SeqCst);
        Ok(())
    }

    /// Whether it may only be read.
    #[must_use]
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// Where it was opened. For messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The smallest block that the guest should transfer, in bytes: a power of two, at least [`SECTOR`].
    #[must_use]
    pub fn logical_block(&self) -> u32 {
        self.logical_block
    }

    /// The block that the host transfers without reading it first, in bytes: a power of two, at least
    /// [`Disk::logical_block`].
    #[must_use]
    pub fn physical_block(&self) -> u32 {
        self.physical_block
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn backing(&self) -> Backing {
        self.backing
    }

    pub(crate) fn direct(&self) -> Option<Alignment> {
        self.direct
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        lock::unlock(&self.file);
    }
}

fn open_file(options: &DiskOptions, backing: Backing) -> Result<File, DiskError> {
    let mut flags = libc::O_CLOEXEC;
    if options.direct {
        flags |= libc::O_DIRECT;
    }
    if backing == Backing::BlockDevice && !options.readonly {
        // On a block device this is the kernel's own lock: it fails while the device is mounted or part of another.
        flags |= libc::O_EXCL;
    }
    let path = &options.path;
    OpenOptions::new().read(true).write(!options.readonly).custom_flags(flags).open(path).map_err(|source| {
        let path = path.clone();
        match source.raw_os_error() {
            Some(libc::EBUSY) => DiskError::HostUses { path },
            Some(libc::EINVAL) if options.direct => DiskError::NoDirect { path },
            Some(libc::EROFS) => DiskError::ReadOnlyFileSystem { path },
            _ if source.kind() == io::ErrorKind::NotFound => DiskError::Missing { path },
            _ if source.kind() == io::ErrorKind::PermissionDenied && !options.readonly => {
                DiskError::Permission { path, need: "read and write" }
            }
            _ if source.kind() == io::ErrorKind::PermissionDenied => {
                DiskError::Permission { path, need: "read" }
            }
            _ => DiskError::Open { path, source },
        }
    })
}
