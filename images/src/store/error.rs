//! What can go wrong with the store of images.

use std::io;
use std::path::{Path, PathBuf};

use devices::disk::DiskError;

use crate::digest::Digest;

/// The store of images cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The host failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// Such as `write`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// Nothing has that name or ID.
    #[error("there is no image '{text}': {hint}")]
    Unknown {
        /// What was asked for.
        text: String,
        /// What was most likely meant, or where to look.
        hint: String,
    },
    /// Several images' IDs begin so.
    #[error("'{text}' begins the IDs of several images, {}: give more digits", ids.join(", "))]
    Ambiguous {
        /// What was asked for.
        text: String,
        /// Some of them.
        ids: Vec<String>,
    },
    /// A file of the store is not what its name says, or not there.
    #[error("{} is damaged, {why}: remove the image that has it, and make or fetch it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A manifest is of a later version.
    #[error("{} is of a newer skiff (schema {found}; this one knows {known}): update skiff", path.display())]
    Newer {
        /// The manifest.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// This build's.
        known: u32,
    },
    /// What came is not what was announced.
    #[error("this is not the content that was announced: {found} instead of {wanted}; try again")]
    Mismatch {
        /// Announced.
        wanted: Digest,
        /// Came.
        found: Digest,
    },
    /// The file system would be too full.
    #[error(
        "{} MiB are needed in {}, and only {} MiB are free there beside what is kept in reserve: free some, such as with skiff image prune",
        needed.div_ceil(1 << 20), path.display(), free >> 20
    )]
    Room {
        /// Where.
        path: PathBuf,
        /// In bytes.
        needed: u64,
        /// In bytes, without the reserve.
        free: u64,
    },
    /// Another command fetches the same.
    #[error("another command is at {} already: wait for it", path.display())]
    Busy {
        /// What is fetched.
        path: PathBuf,
    },
    /// A file was to be a raw disk.
    #[error("{} is no raw disk, but says of itself that it is qcow2", path.display())]
    NotRaw {
        /// The file.
        path: PathBuf,
    },
    /// A disk is to stand on another, and does not.
    #[error("the disk {} does not lie on {}", path.display(), below.display())]
    NotOver {
        /// The disk's top.
        path: PathBuf,
        /// What it is to lie on.
        below: PathBuf,
    },
    /// A disk's file.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl StoreError {
    /// A file that is needed is not in the store.
    pub(crate) fn missing(path: PathBuf) -> Self {
        Self::Damaged { path, why: "it is not there".to_owned() }
    }

    /// For `map_err`.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}
