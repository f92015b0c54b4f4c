//! Why a disk cannot become an image, or an image no disk.

use std::io;
use std::path::{Path, PathBuf};

/// Each message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be reached or read.
    #[error("cannot read the disk {}", path.display())]
    Read {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing that a disk's content is in.
    #[error("{} is no regular file: give the file of a disk", path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// A format that is known and not read.
    #[error("{} is {format}, which skiff does not read: {fix}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it is.
        format: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// Its header or tables say what no such file can.
    #[error("{} cannot be imported", path.display())]
    Image {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: Malformed,
    },
    /// It is no image that skiff's own disks can be, or cannot be written.
    #[error(transparent)]
    Disk(#[from] devices::disk::DiskError),
    /// The copy cannot be made.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be copied: it cannot be read, or the copy cannot be written.
    #[error("cannot copy {} to {}", path.display(), out.display())]
    Copy {
        /// The disk.
        path: PathBuf,
        /// The copy.
        out: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no system in it that can be started.
    #[error("no system was found on the disk {}: {reason}", path.display())]
    System {
        /// The disk.
        path: PathBuf,
        /// What was looked for, and what to do.
        reason: String,
    },
    /// Another part of this library failed.
    #[error("{what}")]
    Other {
        /// What was done.
        what: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What is wrong with the file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends before what its header says is there.
    #[error("it is cut off: {what} at {offset:#x} lies outside the file; get it again")]
    Outside {
        /// The table.
        what: &'static str,
        /// Where it should be, in bytes.
        offset: u64,
    },
    /// A number that no such file has.
    #[error("its {what} is {value:#x}, which cannot be: get it again, or look at it with `qemu-img info`")]
    Value {
        /// The field.
        what: &'static str,
        /// What is there.
        value: u64,
    },
    /// Its tables contradict each other.
    #[error("{what} at {offset:#x} is damaged: get it again, or look at it with `qemu-img check`")]
    Damaged {
        /// What contradicts.
        what: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// Another file would be needed, and no file may say which.
    #[error(
        "it needs another file ({0}), which is not opened for it: make one file of them with `qemu-img convert -O qcow2`"
    )]
    NeedsFile(String),
    /// It is encrypted.
    #[error("it is encrypted: decrypt it first, with the program that made it")]
    Encrypted,
    /// Something of the format that is not done.
    #[error("it has {0}, which skiff does not read: convert it with `qemu-img convert -O qcow2`")]
    Unsupported(&'static str),
    /// Something was being done to it when it was last used.
    #[error("it was not closed ({0}): open and close it with the program that made it")]
    Unclean(&'static str),
    /// The disk is larger than is believed.
    #[error("it is {size} bytes large, more than {most}: no such disk is imported")]
    TooLarge {
        /// Of the disk, in bytes.
        size: u64,
        /// The limit, in bytes.
        most: u64,
    },
}

impl From<Malformed> for io::Error {
    fn from(error: Malformed) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

pub(super) fn read_failed(path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    |source| DiskError::Read { path: path.to_owned(), source }
}

pub(super) fn write_failed(path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    |source| DiskError::Write { path: path.to_owned(), source }
}

/// What an error of reading a file of some format means.
pub(super) fn read_or_malformed(path: &Path) -> impl Fn(io::Error) -> DiskError {
    |error| {
        let path = path.to_owned();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Malformed>()) {
            Some(source) => DiskError::Image { path, source: source.clone() },
            None => DiskError::Read { path, source: error },
        }
    }
}

/// What an error of copying from `path` to `out` means: either may be to blame.
pub(super) fn copy_failed(path: &Path, out: &Path) -> impl FnOnce(io::Error) -> DiskError {
    |error| match error.get_ref().is_some_and(|inner| inner.is::<Malformed>()) {
        true => read_or_malformed(path)(error),
        false => DiskError::Copy { path: path.to_owned(), out: out.to_owned(), source: error },
    }
}
