//! ext4 file systems without mounting them, by e2fsprogs: [`make`] one of a tree, [`check`] one, and [`Debugfs`] to look into one and
//! change it, at any offset of a file; and by parsers of its own all files of one as an [`archive`].
//!
//! The programs are separate processes, so that a file system that breaks them breaks nothing else; what they print is read
//! with bounds. All of it runs on the caller's thread.

mod archive;
mod debugfs;
mod make;
pub mod reader;
mod run;

pub use archive::{ArchiveError, archive};
pub use debugfs::{Change, Debugfs, Entry, Kind, Stat};
pub use make::{Made, Making, check, make, replay};

use std::io;
use std::path::Path;

/// Something about an ext4 file system failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is missing.
    #[error("{program} does not start: install the package e2fsprogs")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why it does not start.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} has failed: {said}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// The end of what it said.
        said: String,
    },
    /// The host refuses.
    #[error("cannot {doing}")]
    Io {
        /// What was tried, with its object.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A path that debugfs would misread.
    #[error(
        "{path:?} is no path in a guest: it begins with a slash, has no quotes or control characters, and is at most 1000 bytes long"
    )]
    Path {
        /// It.
        path: String,
    },
    /// A file is not there.
    #[error("the file system has no {path}")]
    Missing {
        /// Its path.
        path: String,
    },
    /// A file is larger than the caller can use.
    #[error("{path} has {size} bytes, which is more than the {limit} it may have")]
    TooLarge {
        /// Its path.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// How much it may have.
        limit: u64,
    },
}

/// The host refuses to do something with a file.
fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let doing = format!("{doing} {}", path.display());
    move |source| Error::Io { doing, source }
}

#[cfg(test)]
mod tests;
