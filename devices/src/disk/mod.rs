//! Disks: what a guest's block device reads and writes.
//!
//! A [`Disk`] is opened and locked once, and shared (`Arc`) by every device object that is built around it: its
//! files and their locks outlive a reboot of the VM. It has no position, so any thread may use it. Requests are carried out by an
//! [`engine`], one for each worker thread, at byte offsets of the disk.
//!
//! A raw disk is one file, and a disk's offset is the file's. A qcow2 disk is a chain of files, a [`Stack`]: the uppermost is
//! written, those below it (its backing files) never are. [`layer`] makes, inspects and merges such files.

mod chain;
pub mod engine;
mod erase;
mod error;
mod freeze;
pub mod layer;
mod layers;
mod lock;
mod lru;
mod member;
mod probe;
mod qcow2;
mod stack;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use erase::{Erase, Extent};
pub use error::DiskError;
pub use freeze::{Frozen, NextTop};
pub use qcow2::Malformed;

use chain::Access;
use layer::Format;
use stack::Stack;

use crate::storage::HostStorage;

/// The unit of a disk's size and of a guest's requests, in bytes (virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// What a chain of layers transfers without reading it first, in bytes: a page of the host.
const LAYER_BLOCK: u32 = 4096;

/// Which file is the disk and how it may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// A regular file or a block device; a qcow2 image by its content, with all that it lies on, otherwise raw.
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

/// Where a disk's content is.
#[derive(Debug)]
enum Content {
    /// In one file, as it is.
    Raw { file: File, backing: Backing },
    /// In a chain. Replaced while the device is stopped.
    Layers(Mutex<Arc<Stack>>),
}

/// An open, locked disk.
#[derive(Debug)]
pub struct Disk {
    content: Content,
    path: PathBuf,
    readonly: bool,
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
        match chain::sniff(&HostStorage, path)? {
            Format::Raw => Self::open_raw(options, backing),
            Format::Qcow2 => Self::open_layers(options),
        }
    }

    fn open_raw(options: &DiskOptions, backing: Backing) -> Result<Self, DiskError> {
        let path = options.path.as_path();
        let file = open_file(options, backing)?;
        lock::lock(&file, path, options.readonly)?;
        let size = probe::size(&file, path)?;
        let blocks = probe::blocks(&file, backing);
        let direct = options.direct.then(|| probe::alignment(&file, blocks.logical));
        // Under O_DIRECT a guest has to keep to the blocks that the host can transfer.
        let logical_block = direct.map_or(blocks.logical, |align| align.offset.max(blocks.logical));
        Ok(Self {
            content: Content::Raw { file, backing },
            path: options.path.clone(),
            readonly: options.readonly,
            size: AtomicU64::new(size),
            direct,
            logical_block,
            physical_block: blocks.physical.max(logical_block),
        })
    }

    fn open_layers(options: &DiskOptions) -> Result<Self, DiskError> {
        let access = Access { write: !options.readonly, direct: options.direct };
        let stack = chain::open(&HostStorage, &options.path, access)?;
        let files = stack.members().filter_map(|member| member.direct.as_ref());
        let strictest = |one: Alignment, other: Alignment| Alignment {
            memory: one.memory.max(other.memory),
            offset: one.offset.max(other.offset),
        };
        let direct = files.map(|file| probe::alignment(file, SECTOR as u32)).reduce(strictest);
        let logical_block = direct.map_or(SECTOR as u32, |align| align.offset);
        Ok(Self {
            size: AtomicU64::new(stack.size()),
            content: Content::Layers(Mutex::new(Arc::new(stack))),
            path: options.path.clone(),
            readonly: options.readonly,
            direct,
            logical_block,
            physical_block: logical_block.max(LAYER_BLOCK),
        })
    }

    /// The files of a disk of layers, for as long as the device runs; `None` if it is raw.
    fn stack(&self) -> Option<Arc<Stack>> {
        match &self.content {
            Content::Raw { .. } => None,
            Content::Layers(stack) => Some(Arc::clone(&stack.lock().unwrap_or_else(PoisonError::into_inner))),
        }
    }

    /// Whether it is a chain of layers, or one qcow2 file.
    #[must_use]
    pub fn is_layered(&self) -> bool {
        matches!(self.content, Content::Layers(_))
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
        match &self.content {
            Content::Raw { file, backing } => self.resize_raw(file, *backing, size)?,
            Content::Layers(_) if self.readonly => {
                return Err(DiskError::ReadOnly { path: path(), size });
            }
            Content::Layers(stack) => {
                let stack = stack.lock().unwrap_or_else(PoisonError::into_inner);
                if size > stack.size() {
                    let failed =
                        |source: Malformed| DiskError::Grow { path: path(), size, source: source.into() };
                    stack.resize(size).map_err(failed)?;
                }
            }
        }
        // Two at once: the larger one stays.
        self.size.fetch_max(size, Ordering::SeqCst);
        Ok(())
    }

    fn resize_raw(&self, file: &File, backing: Backing, size: u64) -> Result<(), DiskError> {
        let path = || self.path.clone();
        let there = probe::size(file, &self.path)?;
        match backing {
            _ if there >= size => Ok(()),
            Backing::BlockDevice => Err(DiskError::DeviceTooSmall { path: path(), size, there }),
            Backing::File if self.readonly => Err(DiskError::ReadOnly { path: path(), size }),
            Backing::File => {
                file.set_len(size).map_err(|source| DiskError::Grow { path: path(), size, source })
            }
        }
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

    pub(crate) fn direct(&self) -> Option<Alignment> {
        self.direct
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Content::Raw { file, .. } = &self.content {
            lock::unlock(file);
        }
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
        match source.raw_os_error() {
            Some(libc::EINVAL) if options.direct => DiskError::NoDirect { path: path.clone() },
            _ => chain::open_failed(path, options.readonly, source),
        }
    })
}
