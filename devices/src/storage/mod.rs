//! The file system below snapshots and layers, as far as they need it.
//!
//! Everything that must outlive a crash (disk layers, snapshots, the record of a VM's layers) is made through a
//! [`Storage`], so that tests can put one below that fails, fills up or loses power at any step. [`HostStorage`] is the
//! real one. No state, no threads; any thread may call.

#[cfg(any(test, feature = "testing"))]
pub mod faulty;
mod host;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

pub use host::HostStorage;

/// How much a file system holds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// What is free for whoever asks.
    pub free: u64,
}

/// A place that holds files. Like the host's: what is not synced may be gone after a crash, names as well as contents, each
/// on its own.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Make a new, empty file, for reading and writing, for its owner only.
    ///
    /// # Errors
    /// If it exists, or the host fails.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StoredFile>>;

    /// Open a file, for reading alone or for writing too.
    ///
    /// # Errors
    /// If it is not there, or the host fails.
    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn StoredFile>>;

    /// Give `from` the name `to`, replacing at once what had it (files, or a directory by one that is new).
    ///
    /// # Errors
    /// If the host fails.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Remove a file. One that is gone is no error.
    ///
    /// # Errors
    /// If the host fails.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Make a directory, for its owner only, with those above it. One that exists is no error.
    ///
    /// # Errors
    /// If the host fails.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Remove a directory that is empty. One that is gone is no error.
    ///
    /// # Errors
    /// If it is not empty, or the host fails.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, in no order; none if there is no directory.
    ///
    /// # Errors
    /// If the host fails.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// Whether something has this name.
    ///
    /// # Errors
    /// If the host fails.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Make the names in a directory durable.
    ///
    /// # Errors
    /// If the host fails.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// How much there is on the file system that `path` is on.
    ///
    /// # Errors
    /// If it is not there, or the host fails.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// An open file of a [`Storage`]. It has no position: any thread may use it.
pub trait StoredFile: Send + Sync + fmt::Debug {
    /// Fill `data` from byte `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before, or the host fails.
    fn read_exact_at(&self, data: &mut [u8], offset: u64) -> io::Result<()>;

    /// Write all of `data` at byte `offset`; the file grows as needed.
    ///
    /// # Errors
    /// If the host fails; parts may have been written.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Its length in bytes.
    ///
    /// # Errors
    /// If the host fails.
    fn len(&self) -> io::Result<u64>;

    /// Whether nothing is in it.
    ///
    /// # Errors
    /// If the host fails.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cut or lengthen it (by a hole) to `len` bytes.
    ///
    /// # Errors
    /// If the host fails.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Make a part of the file read as zeroes, and give its place back if the host can. The file does not grow: what lies behind its
    /// end is left out.
    ///
    /// # Errors
    /// If the host fails; parts may have been erased.
    fn erase(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Make what was written durable, and its length.
    ///
    /// # Errors
    /// If the host fails: what was written since the last success may or may not be there after a crash.
    fn sync(&self) -> io::Result<()>;

    /// The host's file below, for calls that only the kernel can do (mapping, io_uring, locks); `None` if there is none.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}
