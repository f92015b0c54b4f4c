//! A snapshot on its way.

use std::io;
use std::path::{Path, PathBuf};

use devices::storage::StoredFile;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::super::Id;
use super::super::manifest::{Manifest, Sum};
use super::super::sealed;
use super::{Store, StoreError};

/// Locked by the process that makes the snapshot, as long as it lives; says what it builds on ([`Note`]).
pub(super) const MAKER: &str = "maker";
/// How much is read at once for a sum, in bytes.
const CHUNK: usize = 1 << 20;

/// What is known of a snapshot before it is one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    format: u32,
    /// The snapshots that must stay meanwhile.
    pub(super) builds_on: Vec<Id>,
}

/// A snapshot on its way: a directory that nobody else looks into. Dropped without [`Draft::commit`], it is gone.
#[derive(Debug)]
pub struct Draft {
    store: Store,
    id: Id,
    dir: PathBuf,
    maker: Option<Box<dyn StoredFile>>,
    committed: bool,
}

impl Store {
    /// Begin the snapshot `id`, which builds on `parent`: its parent and the base of its memory, if it has them.
    ///
    /// # Errors
    /// If the host fails: then there is nothing of it.
    pub fn begin(&self, id: Id, parent: Option<Id>) -> Result<Draft, StoreError> {
        // So that a sweeper does not find it before its maker's lock.
        let _pin = self.pin()?;
        let dir = self.places.draft(id);
        let mut draft = Draft { store: self.clone(), id, dir, maker: None, committed: false };
        draft.make(parent).map_err(StoreError::io("begin a snapshot in", &draft.dir))?;
        Ok(draft)
    }

    /// The length and CRC-32 of the whole file at `path`.
    ///
    /// # Errors
    /// If the host fails.
    pub fn sum(&self, path: &Path) -> Result<Sum, StoreError> {
        let sum = || -> io::Result<Sum> {
            let file = self.storage.open(path, false)?;
            let len = file.len()?;
            let mut hasher = crc32fast::Hasher::new();
            let (mut chunk, mut offset) = (vec![0; CHUNK], 0_u64);
            while offset < len {
                let left = usize::try_from(len.saturating_sub(offset)).unwrap_or(CHUNK).min(CHUNK);
                let part = chunk.get_mut(..left).unwrap_or_default();
                file.read_exact_at(part, offset)?;
                hasher.update(part);
                offset = offset.saturating_add(left as u64);
            }
            Ok(Sum { len, crc32: hasher.finalize() })
        };
        sum().map_err(StoreError::io("read", path))
    }
}

impl Draft {
    fn make(&mut self, parent: Option<Id>) -> io::Result<()> {
        let storage = self.store.storage();
        storage.create_dir(&self.dir)?;
        let note = sealed::seal(&Note { format: 1, builds_on: parent.into_iter().collect() })?;
        let path = self.dir.join(MAKER);
        sealed::write_new(storage, &path, &note)?;
        let maker = storage.open(&path, true)?;
        if let Some(fd) = maker.fd() {
            flock(fd, FlockOperation::NonBlockingLockExclusive)?;
        }
        self.maker = Some(maker);
        Ok(())
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Where its files are to be written.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Write a whole file of it, durably. Says its sum.
    ///
    /// # Errors
    /// If the host fails.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<Sum, StoreError> {
        let path = self.dir.join(name);
        sealed::write_new(self.store.storage(), &path, content).map_err(StoreError::io("write", &path))?;
        Ok(Sum { len: content.len() as u64, crc32: crc32fast::hash(content) })
    }

    /// Make it a snapshot. Its other files are written and synced, and so are its layers. When this returns, it survives
    /// a power cut; on failure there is nothing of it.
    ///
    /// # Errors
    /// If the host fails.
    pub fn commit(mut self, manifest: &Manifest) -> Result<(), StoreError> {
        let _pin = self.store.pin()?;
        self.publish(manifest).map_err(StoreError::io("keep the snapshot", &self.dir))?;
        self.committed = true;
        Ok(())
    }

    fn publish(&self, manifest: &Manifest) -> io::Result<()> {
        let (storage, places) = (self.store.storage(), self.store.places());
        let text = manifest.to_text()?;
        sealed::write_new(storage, &self.dir.join(Manifest::FILE), &text)?;
        self.store.note_made(manifest, &self.dir);
        storage.remove_file(&self.dir.join(MAKER))?;
        storage.sync_dir(&self.dir)?;
        // The names of the layers, too.
        storage.sync_dir(&places.layers())?;
        let to = places.snapshot(self.id);
        storage.rename(&self.dir, &to)?;
        if let Err(error) = storage.sync_dir(&places.snapshots()) {
            // Nobody is told of a snapshot that may be gone tomorrow.
            let _ = storage.rename(&to, &self.dir);
            return Err(error);
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = self.store.delete_dir(&self.dir)
        {
            log::warn!("a snapshot that failed is left to skiff system prune: {error}");
        }
    }
}

impl Store {
    /// Delete a directory of plain files.
    pub(super) fn delete_dir(&self, dir: &Path) -> Result<(), StoreError> {
        let delete = || -> io::Result<()> {
            for name in self.storage.list(dir)? {
                self.storage.remove_file(&dir.join(name))?;
            }
            self.storage.remove_dir(dir)
        };
        delete().map_err(StoreError::io("delete", dir))
    }
}
