//! What can go wrong with the memory of snapshots.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::super::envelope::EnvelopeError;
use super::index::IndexError;
use crate::memory::MemoryError;
use crate::spec::Memory;

/// A snapshot's memory cannot be saved, checked or put back.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFileError {
    /// The host fails at a file.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// At which.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The index cannot be read or written.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// What was saved makes no sense: a defect of skiff.
    #[error("the memory's index makes no sense")]
    Index(#[from] IndexError),
    /// The memory file is shorter than its index says.
    #[error("{} is truncated ({has} of {needs} bytes are there): take it from a copy, or remove the snapshot", path.display())]
    Truncated {
        /// Which.
        path: PathBuf,
        /// What it has, in bytes.
        has: u64,
        /// What it must have.
        needs: u64,
    },
    /// The memory file does not hold what was written.
    #[error("{} is corrupted (its checksum is wrong): take it from a copy, or remove the snapshot", path.display())]
    Corrupted {
        /// Which.
        path: PathBuf,
    },
    /// The files of a chain are of different RAM, or not of that of the VM.
    #[error("{} is of {has} of memory, and the VM has {needs}: its snapshot is made of files that do not belong together", path.display())]
    Size {
        /// Which.
        path: PathBuf,
        /// What it is of.
        has: Memory,
        /// What it has to be of.
        needs: Memory,
    },
    /// There can be no process that writes the memory.
    #[error("cannot {what} for saving the guest's memory")]
    Prepare {
        /// What was tried.
        what: &'static str,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// It could not do it.
    #[error("cannot save the guest's memory: {step}, {}", path.display())]
    Save {
        /// At what it failed.
        step: Step,
        /// The file that it wrote.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// Nobody wants it any more.
    #[error("saving the guest's memory was broken off")]
    Cancelled,
    /// It was killed.
    #[error(
        "the process that saved the guest's memory was ended by signal {0}, perhaps for lack of memory on the host: \
         try again"
    )]
    Killed(i32),
    /// It ended for no known reason: a defect of skiff.
    #[error("the process that saved the guest's memory ended without a word (exit code {0})")]
    Lost(i32),
    /// The guest's memory is of huge pages, and there are none for its copies.
    #[error(
        "the host had no free huge page when the guest wrote to its memory while that was saved: reserve more \
         (sudo sysctl vm.nr_hugepages), or pause the VM meanwhile"
    )]
    HugePages,
    /// The guest's memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl MemoryFileError {
    /// For `map_err`: `what` could not be done with the file `path`.
    pub(super) fn file(what: &'static str, path: &std::path::Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::File { what, path: path.to_owned(), source }
    }
}

/// What the process that saves is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// It closes what is not its business.
    Detach = 1,
    /// It looks for pages that the guest has of its own.
    Scan = 2,
    /// It reads what the parent snapshot has.
    Compare = 3,
    /// It writes.
    Write = 4,
    /// It makes that durable.
    Sync = 5,
}

impl Step {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::Detach, Self::Scan, Self::Compare, Self::Write, Self::Sync]
            .into_iter()
            .find(|step| *step as u8 == code)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Detach => "the saving process cannot let go of the VM's files",
            Self::Scan => "the guest's pages cannot be looked up",
            Self::Compare => "the parent's memory file cannot be read",
            Self::Write => "writing failed",
            Self::Sync => "it did not get to the disk",
        })
    }
}
