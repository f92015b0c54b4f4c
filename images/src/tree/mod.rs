//! Trees of files out of archives that nobody vouches for, and back: [`unpack`], [`pack`] and [`remove`].
//!
//! Whatever an archive says, nothing outside the directory that it is unpacked below is made, changed or removed: each entry's parent is
//! opened by `openat2` beneath that directory, and what is made in it is made by its last name alone, never through a link. The
//! directory belongs to the caller. All of it runs on the caller's thread.

use std::io;

mod beneath;
mod look;
mod overlay;
mod pack;
mod remove;
mod tar;
mod unpack;

pub use look::{list, open};
pub use overlay::Overlay;
pub use pack::{Packed, Packing, pack};
pub use remove::{names, remove};
pub use unpack::unpack;

pub(crate) use tar::{Entry, Kind, Writer};

/// How much may come out of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Limits {
    /// Bytes of data, without holes.
    pub bytes: u64,
    /// Entries of every kind.
    pub entries: u64,
    /// Names in a path.
    pub depth: usize,
    /// Bytes that stay free on the file system.
    pub leave: u64,
}

impl Default for Limits {
    /// What the root file system of any real guest stays below.
    fn default() -> Self {
        Self { bytes: 256 << 30, entries: 5_000_000, depth: 256, leave: 512 << 20 }
    }
}

/// What of an archive counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Files get the owners that the archive has, by number. Needs root, or a user namespace with as many users. Otherwise they are
    /// the caller's own.
    pub owners: bool,
    /// Files keep the set-user-ID, set-group-ID and sticky bits, and `security.capability`.
    pub privileges: bool,
    /// Names that begin with `.wh.` remove what is there (OCI image-spec, layer.md, "Whiteouts").
    pub whiteouts: bool,
    /// The directory is the root of a guest: links on the way to an entry are followed in it, absolute ones too, and whatever
    /// is in an entry's place goes. Otherwise such links may not lead out of it, and an entry that is no directory
    /// does not take the place of one.
    pub root: bool,
    /// How much may come out.
    pub limits: Limits,
}

impl Options {
    /// For a guest's root file system, as root or as root of a user namespace.
    #[must_use]
    pub fn image() -> Self {
        Self { owners: true, privileges: true, whiteouts: false, root: true, limits: Limits::default() }
    }

    /// For files on their way into a directory of the user's.
    #[must_use]
    pub fn copy() -> Self {
        Self { owners: false, privileges: false, whiteouts: false, root: false, limits: Limits::default() }
    }
}

/// What came out of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Unpacked {
    /// Entries of every kind.
    pub entries: u64,
    /// Bytes of data, without holes.
    pub bytes: u64,
    /// Device nodes, which are left out: a guest's kernel makes its own.
    pub devices: u64,
    /// Entries of kinds that no file system has, and attributes that this one cannot keep; left out, too.
    pub skipped: u64,
}

/// A tree was not unpacked, packed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream ends in an error.
    #[error("the archive cannot be read")]
    Read(#[source] io::Error),
    /// The archive cannot be written.
    #[error("the archive cannot be written")]
    Write(#[source] io::Error),
    /// It breaks the rules of tar.
    #[error("the archive is damaged, or is no tar archive: {what} at byte {at}")]
    Format {
        /// Where, in bytes of the uncompressed archive.
        at: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// An entry would be written outside.
    #[error("the archive's entry {entry} leads out of the directory that it is unpacked in")]
    Outside {
        /// Its name.
        entry: String,
    },
    /// An entry would take the place of a directory.
    #[error("the archive's entry {entry} is no directory, but there is one in its place")]
    IsDirectory {
        /// Its name.
        entry: String,
    },
    /// The host refuses.
    #[error("cannot {doing} {entry}")]
    Entry {
        /// What was tried.
        doing: &'static str,
        /// The entry's name.
        entry: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else changes the tree.
    #[error(
        "the directory {entry} was moved elsewhere while it was being removed: what is left stays; remove it again when nobody changes it"
    )]
    Moved {
        /// Its name.
        entry: String,
    },
    /// [`Limits::bytes`].
    #[error("the archive holds more than {limit} bytes of data: that much was not expected of it")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// [`Limits::entries`].
    #[error("the archive has more than {limit} entries: that many were not expected of it")]
    TooMany {
        /// The limit.
        limit: u64,
    },
    /// [`Limits::depth`].
    #[error("the archive's entry {entry} is more than {limit} directories deep")]
    TooDeep {
        /// Its name.
        entry: String,
        /// The limit.
        limit: usize,
    },
    /// [`Limits::leave`].
    #[error(
        "the archive does not fit: {free} bytes are free on the file system, of which {leave} are to stay so"
    )]
    NoRoom {
        /// Bytes that are free.
        free: u64,
        /// Bytes that stay free.
        leave: u64,
    },
}

/// Whether a stream, which is not compressed, begins as a tar archive does.
pub fn is_archive(from: impl io::Read) -> bool {
    matches!(tar::Tar::new(from).next(), Ok(Some(_)))
}

/// Whether a file keeps an extended attribute in archives and out of them: others mean something to one host, or only it may set them. Files with
/// `privileges` keep their capabilities.
pub(crate) fn is_kept(attribute: &[u8], privileges: bool) -> bool {
    attribute.starts_with(b"user.") || privileges && attribute == b"security.capability"
}

/// A name of the archive's, for a message on one line.
pub(crate) fn shown(name: &[u8]) -> String {
    let text: String = name
        .utf8_chunks()
        .flat_map(|chunk| {
            chunk.valid().chars().chain(Some('\u{fffd}').filter(|_| !chunk.invalid().is_empty()))
        })
        .take(200)
        .collect();
    format!("{text:?}")
}

#[cfg(test)]
pub(crate) mod tests;
