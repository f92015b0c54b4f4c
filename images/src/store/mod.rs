//! The store of images: files named by their content, manifests, and names.
//!
//! ```text
//! $XDG_DATA_HOME/skiff/images/    for its owner only
//!   lock                          flock: shared for moments by whoever adds or takes, exclusive by a prune
//!   blobs/sha256-HEX              kernels, initial RAM disks, qcow2 files (on siblings, by their file names), layers of containers
//!   blobs/.new-…                  on its way; locked (flock) by its writer
//!   manifests/sha256-HEX          an image; HEX is its ID
//!   names/debian:12               the ID of the image; a / in a name is a + here
//!   checked/sha256-HEX            the stamps of a blob whose content was in order
//!   using/…                       what a living process has added or taken; locked by it (see [`session`])
//!   scratch/…                     directories of living processes
//!   partial/…                     downloads that can go on
//!   warm/HEX.json                 the snapshot that an image is started from
//!   cache/…                       results of build steps: see [`crate::file::cache`]; a digest in such a file keeps what it names
//! ```
//! All is written aside, synced and renamed, through [`Storage`]: after a crash a file is there whole or not at all. Blobs and manifests are
//! never written again; the same content is the same file. [`Store::prune`] deletes what nobody needs.
//!
//! Any thread and any process may use one store at once. No threads of its own.

mod blob;
mod disk;
mod error;
mod image;
mod names;
mod prune;
mod room;
mod scratch;
mod session;
#[cfg(test)]
mod tests;
mod verify;
mod warm;

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use devices::storage::{HostStorage, Storage, StoredFile};
use rustix::fs::{FlockOperation, flock};

pub use blob::Draft;
pub use error::StoreError;
pub use image::Image;
pub use prune::{Needs, Pruned};
pub use scratch::{Partial, Scratch, abandon};
pub use warm::Warm;

use crate::digest::Digest;
use crate::manifest::Blob;
use session::Session;

/// The largest manifest, name or note that is read, in bytes.
const MAX_SMALL: u64 = 4 << 20;

/// A store of images. Clones are the same store, and one user of it: what any of them has added or [held](Store::hold) no prune
/// touches until the last is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    pub(crate) storage: Arc<dyn Storage>,
    session: Arc<Mutex<Option<Session>>>,
}

/// While this lives, no prune begins (if it is shared), or nobody else adds or takes anything.
#[derive(Debug)]
struct Locked(#[expect(dead_code, reason = "its close unlocks")] Box<dyn StoredFile>);

impl Store {
    /// The one at `root`, an absolute path. It is made when something is put there.
    #[must_use]
    pub fn open(root: impl Into<PathBuf>) -> Self {
        Self::with_storage(root, Arc::new(HostStorage))
    }

    /// The same, on another file system.
    #[must_use]
    pub fn with_storage(root: impl Into<PathBuf>, storage: Arc<dyn Storage>) -> Self {
        Self { root: root.into(), storage, session: Arc::default() }
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the blob with this content is, if it is there.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(file_name(digest))
    }

    /// Whether `blob` is there, with its length. Its content is [`Store::verify`]'s.
    ///
    /// # Errors
    /// If the host fails.
    pub fn has(&self, blob: &Blob) -> Result<bool, StoreError> {
        let path = self.blob_path(&blob.digest);
        match self.storage.open(&path, false).and_then(|file| file.len()) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            len => Ok(len.map_err(StoreError::io("open", &path))? == blob.size),
        }
    }

    /// Whether `blob` is there; if it is, no prune touches it for as long as this store lives.
    ///
    /// # Errors
    /// If the host fails.
    pub fn keep(&self, blob: &Blob) -> Result<bool, StoreError> {
        let shared = self.shared()?;
        let there = self.has(blob)?;
        if there {
            self.note(&shared, blob.digest)?;
        }
        Ok(there)
    }

    /// What all of the store takes of the host's file system, in bytes, what is being made included.
    ///
    /// # Errors
    /// If the host fails.
    pub fn size(&self) -> Result<u64, StoreError> {
        let mut size = 0_u64;
        for dir in [self.blobs(), self.manifests(), self.root.join("partial")] {
            let files = self.list_dir(&dir)?;
            size = files.iter().map(|file| prune::taken(&dir.join(file))).fold(size, u64::saturating_add);
        }
        Ok(size)
    }

    /// What the blob takes of the host's file system, in bytes; 0 if it is not there.
    #[must_use]
    pub fn taken(&self, digest: &Digest) -> u64 {
        prune::taken(&self.blob_path(digest))
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    fn dir(&self, name: &str) -> Result<PathBuf, StoreError> {
        let dir = self.root.join(name);
        self.storage.create_dir(&dir).map_err(StoreError::io("make", &dir))?;
        Ok(dir)
    }

    /// Let no prune begin meanwhile. For moments.
    fn shared(&self) -> Result<Locked, StoreError> {
        self.lock(FlockOperation::LockShared)
    }

    /// Wait until nobody else is at it.
    fn alone(&self) -> Result<Locked, StoreError> {
        self.lock(FlockOperation::LockExclusive)
    }

    /// The same if nobody else is at it.
    fn try_alone(&self) -> Result<Option<Locked>, StoreError> {
        match self.lock(FlockOperation::NonBlockingLockExclusive) {
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => Ok(None),
            locked => locked.map(Some),
        }
    }

    fn lock(&self, how: FlockOperation) -> Result<Locked, StoreError> {
        let path = self.root.join("lock");
        let file = self.lock_file(&path).map_err(StoreError::io("open", &path))?;
        if let Some(fd) = file.fd() {
            rustix::io::retry_on_intr(|| flock(fd, how))
                .map_err(|error| StoreError::io("lock", &path)(error.into()))?;
        }
        Ok(Locked(file))
    }

    /// The file to lock, made with its store if it is not there.
    fn lock_file(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        match self.storage.open(path, true) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return opened,
        }
        for dir in [self.blobs(), self.manifests(), self.root.join("names")] {
            self.storage.create_dir(&dir)?;
        }
        self.storage.sync_dir(&self.root)?;
        for above in self.root.ancestors().skip(1) {
            // Those that were there before may be closed to this user, and need it not.
            let _ = self.storage.sync_dir(above);
        }
        match self.storage.create(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.storage.open(path, true),
            made => made,
        }
    }

    /// All of a small file; `None` if it is not there.
    pub(crate) fn read_small(&self, path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || -> io::Result<Vec<u8>> {
            let file = self.storage.open(path, false)?;
            let len = file.len()?;
            if len > MAX_SMALL {
                return Err(io::Error::new(ErrorKind::InvalidData, "it is far too long"));
            }
            let mut data = vec![0; usize::try_from(len).map_err(io::Error::other)?];
            file.read_exact_at(&mut data, 0)?;
            Ok(data)
        };
        match read() {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(Some).map_err(StoreError::io("read", path)),
        }
    }

    /// Let the file at `path` have this content: the old or the new whatever happens, and with `sync` the new one, power cuts included,
    /// from the return on.
    pub(crate) fn replace(&self, path: &Path, content: &[u8], sync: bool) -> Result<(), StoreError> {
        let dir = path.parent().unwrap_or(&self.root);
        let write = || -> io::Result<()> {
            self.storage.create_dir(dir)?;
            let (aside, file) = session::create_new(&*self.storage, dir, ".new-")?;
            let mut written = file.write_all_at(content, 0);
            if sync {
                written = written.and_then(|()| file.sync());
            }
            let written = written.and_then(|()| self.storage.rename(&aside, path));
            if written.is_err() {
                // A prune finds it.
                let _ = self.storage.remove_file(&aside);
            }
            written?;
            if sync { self.storage.sync_dir(dir) } else { Ok(()) }
        };
        write().map_err(StoreError::io("write", path))
    }

    pub(crate) fn list_dir(&self, dir: &Path) -> Result<Vec<String>, StoreError> {
        let names = self.storage.list(dir).map_err(StoreError::io("list", dir))?;
        let mut names: Vec<String> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        Ok(names)
    }
}

/// What a blob's or manifest's file is called.
#[must_use]
pub fn file_name(digest: &Digest) -> String {
    format!("sha256-{}", digest.hex())
}

/// The digest in a file's name.
fn digest_of(name: &str) -> Option<Digest> {
    format!("sha256:{}", name.strip_prefix("sha256-")?).parse().ok()
}
