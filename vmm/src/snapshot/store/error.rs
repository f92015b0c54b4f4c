//! What can go wrong with stored snapshots.

use std::io;
use std::path::{Path, PathBuf};

use devices::disk::DiskError;

use super::super::Id;
use super::super::memory::MemoryFileError;
use super::super::record::RecordError;
use super::super::sealed::SealedError;

/// The store of snapshots cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The host fails.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// Such as `write`.
        what: &'static str,
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A manifest cannot be used.
    #[error("a snapshot cannot be used (skiff system prune --force removes those that are damaged): {}", path.display())]
    Manifest {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SealedError,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot {0}: skiff snapshot ls shows those of a VM")]
    Unknown(Id),
    /// The manifest is fine, but for another machine.
    #[error(
        "the snapshot {name} was taken on {found}, and this host is {here}: it can be restored on {found} only"
    )]
    Arch {
        /// The snapshot's name.
        name: String,
        /// Its architecture.
        found: String,
        /// The host's.
        here: &'static str,
    },
    /// A file is not what it was.
    #[error("{} is damaged: {why}; bring it back from a backup, or remove the snapshot {snapshot} with skiff snapshot rm", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// The snapshot that needs it.
        snapshot: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another state directory's VMs use the store.
    #[error(
        "the snapshots and layers beside {} are those of the VMs in {}, and not in {}: set XDG_DATA_HOME to another \
         directory; if the VMs have moved, delete that file",
        path.display(), theirs.display(), ours.display()
    )]
    Owner {
        /// The file that says so.
        path: PathBuf,
        /// Where their records are.
        theirs: PathBuf,
        /// Where those of this user are.
        ours: PathBuf,
    },
    /// A chain of snapshots leads back to itself.
    #[error(
        "the memory of the snapshot {0} builds on itself: its manifest is wrong; remove it with skiff snapshot rm"
    )]
    Loop(Id),
    /// A layer.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The memory of a snapshot.
    #[error(transparent)]
    Memory(#[from] MemoryFileError),
    /// A record is damaged, so nothing is known to be free.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl StoreError {
    /// The host failed to do this to `path`.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}
