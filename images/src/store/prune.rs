//! What nobody needs, and how it goes.
//!
//! Kept is: an image that has a name, that a living process has added or taken, or whose ID somebody names; a blob that a kept image, a living process
//! or somebody names; and what a kept disk stands on. Everything else goes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use devices::disk::layer;

use super::{Locked, Store, StoreError, digest_of};
use crate::digest::Digest;

/// What is in use outside of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs(BTreeSet<Digest>);

impl Needs {
    /// Whatever `text` (a VM's spec, which names files of the store) names.
    pub fn add_text(&mut self, text: &str) {
        for mark in ["sha256-", "sha256:"] {
            for (at, _) in text.match_indices(mark) {
                let digits = at.saturating_add(mark.len());
                let digits = text.get(digits..digits.saturating_add(64)).unwrap_or_default();
                self.0.extend(format!("sha256:{digits}").parse::<Digest>().ok());
            }
        }
    }

    /// An image, or a file.
    pub fn add(&mut self, digest: Digest) {
        self.0.insert(digest);
    }

    /// Whether an image or a file is named.
    #[must_use]
    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.contains(digest)
    }
}

/// What went, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images.
    pub images: Vec<Digest>,
    /// Files of them, and of what was never one.
    pub blobs: Vec<Digest>,
    /// What they take of the host's file system, in bytes.
    pub bytes: u64,
}

/// What to delete.
#[derive(Debug, Default)]
struct Garbage {
    found: Pruned,
    /// Drafts of processes that are gone, and notes of what is gone.
    litter: Vec<PathBuf>,
}

impl Store {
    /// Delete what nobody needs. `needs` is asked once no other process can add or take anything. With `downloads`, the unfinished ones go,
    /// too.
    ///
    /// # Errors
    /// If the host fails, or a manifest that is needed cannot be read: what it names is not known, so nothing more goes.
    pub fn prune<E: From<StoreError>>(
        &self,
        downloads: bool,
        needs: impl FnOnce() -> Result<Needs, E>,
    ) -> Result<Pruned, E> {
        if !self.is_there()? {
            return Ok(Pruned::default());
        }
        let alone = self.alone()?;
        let garbage = self.garbage(&alone, needs)?;
        // First the images: one without its files is never seen.
        let manifests = garbage.found.images.iter().map(|id| self.manifest_path(id));
        self.delete(manifests, &self.manifests())?;
        let blobs = garbage.found.blobs.iter().map(|digest| self.blob_path(digest));
        self.delete(blobs.chain(garbage.litter), &self.blobs())?;
        self.sweep_unfinished(downloads)?;
        Ok(garbage.found)
    }

    /// What [`Store::prune`] would delete.
    ///
    /// # Errors
    /// As [`Store::prune`].
    pub fn would_prune<E: From<StoreError>>(
        &self,
        needs: impl FnOnce() -> Result<Needs, E>,
    ) -> Result<Pruned, E> {
        if !self.is_there()? {
            return Ok(Pruned::default());
        }
        let alone = self.alone()?;
        Ok(self.garbage(&alone, needs)?.found)
    }

    /// Whether anything was ever put here.
    fn is_there(&self) -> Result<bool, StoreError> {
        self.storage.exists(&self.root.join("lock")).map_err(StoreError::io("find", &self.root))
    }

    fn garbage<E: From<StoreError>>(
        &self,
        _: &Locked,
        needs: impl FnOnce() -> Result<Needs, E>,
    ) -> Result<Garbage, E> {
        // In this order: whoever is not in the first any more is in the second.
        let mut kept = self.noted()?;
        kept.extend(needs()?.0);
        kept.extend(self.names()?.into_values());
        let mut cached = Needs::default();
        for name in self.list_dir(&self.root.join("cache"))? {
            let text = self.read_small(&self.root.join("cache").join(name))?.unwrap_or_default();
            cached.add_text(&String::from_utf8_lossy(&text));
        }
        kept.extend(cached.0);
        let mut garbage = Garbage::default();
        for id in self.ids()? {
            if !kept.contains(&id) {
                garbage.found.bytes = garbage.found.bytes.saturating_add(taken(&self.manifest_path(&id)));
                garbage.found.images.push(id);
                continue;
            }
            kept.extend(self.get(&id)?.blobs().iter().map(|blob| blob.digest));
        }
        self.add_backing(&mut kept)?;
        self.collect(&kept, &mut garbage)?;
        Ok(garbage)
    }

    /// What kept disks stand on.
    fn add_backing(&self, kept: &mut BTreeSet<Digest>) -> Result<(), StoreError> {
        let mut next: Vec<Digest> = kept.iter().copied().collect();
        while let Some(digest) = next.pop() {
            let path = self.blob_path(&digest);
            if !self.storage.exists(&path).map_err(StoreError::io("find", &path))? {
                continue;
            }
            let below = layer::backing(&*self.storage, &path)?;
            let below = below.and_then(|below| digest_of(below.to_str()?));
            next.extend(below.filter(|below| kept.insert(*below)));
        }
        Ok(())
    }

    fn collect(&self, kept: &BTreeSet<Digest>, garbage: &mut Garbage) -> Result<(), StoreError> {
        let (blobs, stamps, warm) = (self.blobs(), self.stamps(), self.root.join("warm"));
        for name in self.list_dir(&blobs)? {
            let path = blobs.join(&name);
            match digest_of(&name) {
                Some(digest) if !kept.contains(&digest) => {
                    garbage.found.bytes = garbage.found.bytes.saturating_add(taken(&path));
                    garbage.found.blobs.push(digest);
                }
                None if name.starts_with(".new-") && !self.is_in_use(&path)? => garbage.litter.push(path),
                _ => {}
            }
        }
        for dir in [stamps, warm, self.manifests(), self.root.join("names"), self.root.join("cache")] {
            for name in self.list_dir(&dir)? {
                let plain = name.strip_suffix(".json").unwrap_or(&name);
                let dead = digest_of(plain).is_some_and(|digest| !kept.contains(&digest));
                // Nobody else is writing a name now.
                if name.starts_with(".new-") || dead && dir != self.manifests() {
                    garbage.litter.push(dir.join(name));
                }
            }
        }
        Ok(())
    }

    fn delete(&self, paths: impl Iterator<Item = PathBuf>, dir: &Path) -> Result<(), StoreError> {
        for path in paths {
            self.storage.remove_file(&path).map_err(StoreError::io("delete", &path))?;
        }
        self.storage.sync_dir(dir).map_err(StoreError::io("sync", dir))
    }
}

/// What a file takes of the host's file system, in bytes.
pub(super) fn taken(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path).map_or(0, |file| file.blocks().saturating_mul(512))
}
