//! What can be wrong with a container's image.

use std::io;
use std::path::PathBuf;

use super::spec;
use crate::digest::Digest;
use crate::disk::DiskError;
use crate::store::StoreError;

/// An image cannot be imported or exported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A document is none that skiff can use.
    #[error(transparent)]
    Document(#[from] spec::Error),
    /// A file cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// Such as `read`.
        what: &'static str,
        /// The file, layout or archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A content is not the one that was named.
    #[error("{what} is damaged: its digest is {got}, not {wanted}")]
    Digest {
        /// What it is.
        what: String,
        /// What was named.
        wanted: Digest,
        /// What is there.
        got: Digest,
    },
    /// A content is longer or shorter than was said.
    #[error("{what} is damaged: it has not the {wanted} bytes that were promised")]
    Length {
        /// What it is.
        what: String,
        /// What was promised.
        wanted: u64,
    },
    /// There are several images.
    #[error("{} has several images: say which of them by its name: {}", path.display(), names.join(", "))]
    Several {
        /// The layout or archive.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// There is no image of that name.
    #[error("{} has no image {name:?}, only: {}", path.display(), names.join(", "))]
    Unknown {
        /// The layout or archive.
        path: PathBuf,
        /// What was asked for.
        name: String,
        /// What there is.
        names: Vec<String>,
    },
    /// It is no image, or has not all that one has.
    #[error("{} is no image that skiff can use: {why}", path.display())]
    Unusable {
        /// The layout or archive.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A layer is of a kind that is not known.
    #[error("the image has a layer of the type {0:.100}, which skiff does not know")]
    Layer(String),
    /// An image's disks are not what they must be.
    #[error("the image's disks do not fit together: {0}")]
    Disks(String),
    /// The layers cannot be made a disk that boots.
    #[error("cannot make a disk of the image's layers")]
    Machine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The files on an image's disk cannot be made a layer.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The store cannot take it, or does not have it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// For `map_err`.
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}
