//! Blobs on their way into the store.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use devices::storage::StoredFile;
use sha2::{Digest as _, Sha256};

use super::{Locked, Store, StoreError, session};
use crate::digest::Digest;
use crate::manifest::Blob;

/// How much is copied at once, in bytes.
const CHUNK: usize = 1 << 20;
/// The most for which it is asked at once whether there is room, in bytes: whoever writes may not know how much comes.
const ROOM: u64 = 64 << 20;
/// Zeroes that are not written but left out, in bytes: a block of most file systems.
const HOLE: usize = 4096;

/// A blob on its way: what is written to it is hashed. Dropped before [`Draft::commit`], it is gone.
#[derive(Debug)]
pub struct Draft {
    store: Store,
    path: PathBuf,
    file: Box<dyn StoredFile>,
    hasher: Sha256,
    len: u64,
    /// Up to where there was room.
    room: u64,
    committed: bool,
}

impl Store {
    /// Begin a blob.
    ///
    /// # Errors
    /// If the host fails.
    pub fn draft(&self) -> Result<Draft, StoreError> {
        let _shared = self.shared()?;
        let dir = self.blobs();
        let (path, file) = session::create_locked(&*self.storage, &dir, ".new-")
            .map_err(StoreError::io("write in", &dir))?;
        Ok(Draft {
            store: self.clone(),
            path,
            file,
            hasher: Sha256::new(),
            len: 0,
            room: 0,
            committed: false,
        })
    }

    /// A blob of these bytes.
    ///
    /// # Errors
    /// If the host fails, or is full.
    pub fn add_bytes(&self, bytes: &[u8]) -> Result<Blob, StoreError> {
        let mut draft = self.draft()?;
        draft.write_all(bytes).map_err(StoreError::io("write", &draft.path))?;
        draft.commit()
    }

    /// Make the file at `path`, in the store's own file system (see [`Store::scratch`] and [`Store::partial`]), a blob: it is synced and moved.
    /// `known` is its content if the caller has just hashed it.
    ///
    /// # Errors
    /// If the host fails: then it is where it was, or is a blob.
    pub fn adopt(
        &self,
        path: &Path,
        known: Option<&Blob>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Blob, StoreError> {
        let file = self.storage.open(path, true).map_err(StoreError::io("open", path))?;
        let blob = match known {
            Some(blob) => *blob,
            None => {
                let (digest, size) = hash(&*file, progress).map_err(StoreError::io("read", path))?;
                Blob { digest, size }
            }
        };
        file.sync().map_err(StoreError::io("sync", path))?;
        drop(file);
        let shared = self.shared()?;
        self.place(&shared, path, &blob)?;
        Ok(blob)
    }

    /// Give a synced file its name among the blobs.
    fn place(&self, locked: &Locked, path: &Path, blob: &Blob) -> Result<(), StoreError> {
        self.note(locked, blob.digest)?;
        let to = self.blob_path(&blob.digest);
        if self.has(blob)? && self.is_stamped(&blob.digest) {
            // One that was not checked lately is replaced: it may be damaged.
            self.storage.remove_file(path).map_err(StoreError::io("delete", path))?;
        } else {
            self.storage.rename(path, &to).map_err(StoreError::io("rename", path))?;
        }
        let dir = self.blobs();
        self.storage.sync_dir(&dir).map_err(StoreError::io("sync", &dir))?;
        self.stamp(&blob.digest);
        Ok(())
    }
}

impl Draft {
    /// How many bytes were written.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Make it a blob, durably.
    ///
    /// # Errors
    /// If the host fails: then it is gone, or is a blob.
    pub fn commit(mut self) -> Result<Blob, StoreError> {
        let digest = Digest::from_hasher(std::mem::take(&mut self.hasher));
        let blob = Blob { digest, size: self.len };
        self.finish(&blob)?;
        Ok(blob)
    }

    /// The same if it is what was announced.
    ///
    /// # Errors
    /// If it is not, or the host fails: then it is gone, or is a blob.
    pub fn commit_as(mut self, wanted: &Digest) -> Result<Blob, StoreError> {
        let found = Digest::from_hasher(std::mem::take(&mut self.hasher));
        if found != *wanted {
            return Err(StoreError::Mismatch { wanted: *wanted, found });
        }
        let blob = Blob { digest: found, size: self.len };
        self.finish(&blob)?;
        Ok(blob)
    }

    fn finish(&mut self, blob: &Blob) -> Result<(), StoreError> {
        let length = self.file.set_len(self.len);
        length.and_then(|()| self.file.sync()).map_err(StoreError::io("write", &self.path))?;
        let shared = self.store.shared()?;
        self.store.place(&shared, &self.path, blob)?;
        self.committed = true;
        Ok(())
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.len.saturating_add(bytes.len() as u64) > self.room {
            let wanted = self.len.min(ROOM).max(bytes.len() as u64);
            self.store.room(wanted).map_err(io::Error::other)?;
            self.room = self.len.saturating_add(wanted);
        }
        // Runs of zeroes become holes.
        for block in bytes.chunks(HOLE) {
            if block.len() < HOLE || block.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(block, self.len)?;
            }
            self.hasher.update(block);
            self.len = self.len.saturating_add(block.len() as u64);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.committed {
            // A prune finds what cannot be deleted.
            let _ = self.store.storage.remove_file(&self.path);
        }
    }
}

/// What a file's content is.
pub(super) fn hash(file: &dyn StoredFile, progress: &mut dyn FnMut(u64)) -> io::Result<(Digest, u64)> {
    let (hasher, len) = feed(file, progress)?;
    Ok((Digest::from_hasher(hasher), len))
}

fn feed(file: &dyn StoredFile, progress: &mut dyn FnMut(u64)) -> io::Result<(Sha256, u64)> {
    let (len, mut at) = (file.len()?, 0_u64);
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
    while at < len {
        let part = CHUNK.min(usize::try_from(len.saturating_sub(at)).unwrap_or(CHUNK));
        let part = buffer.get_mut(..part).unwrap_or_default();
        file.read_exact_at(part, at)?;
        hasher.update(&*part);
        at = at.saturating_add(part.len() as u64);
        progress(at);
    }
    Ok((hasher, len))
}
