//! All snapshots and layers of a user: found, added, checked, removed.
//!
//! Any number of processes use the same store at once. What keeps them apart is a lock on the file `lock` (flock):
//! [`Store::pin`] shares it for as long as somebody opens what a manifest names or adds what nobody names yet, and whoever
//! changes a manifest or deletes anything has it alone, for moments. One process at a time sweeps (`sweep.lock`). Nothing is
//! held while a VM runs: an open file stays what it is when another takes its name.
//!
//! One data directory belongs to one state directory, whose VMs' records say what is in use.

pub mod archive;
mod contents;
mod draft;
mod error;
mod lock;
mod survey;
mod sweep;
mod usage;
mod verify;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use devices::storage::{HostStorage, Storage};

pub use draft::Draft;
pub use error::StoreError;
pub use lock::Pin;
pub use survey::{User, Users};
pub use sweep::{Garbage, Progress, Swept};
pub use usage::{Sizes, Usage};

use super::manifest::Manifest;
use super::sealed::{self, SealedError};
use super::{Id, Places};

/// The store. A clone is the same one.
#[derive(Clone, Debug)]
pub struct Store {
    storage: Arc<dyn Storage>,
    places: Places,
}

impl Store {
    /// The one at `places`, which is made when something is put there.
    #[must_use]
    pub fn open(places: Places) -> Self {
        Self::over(Arc::new(HostStorage), places)
    }

    /// The same on a file system of the caller's.
    #[must_use]
    pub fn over(storage: Arc<dyn Storage>, places: Places) -> Self {
        Self { storage, places }
    }

    /// Where it is.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Whether anything was ever put there.
    fn is_there(&self) -> Result<bool, StoreError> {
        let path = self.places.root();
        self.storage.exists(path).map_err(StoreError::io("find", path))
    }

    /// The file system below.
    #[must_use]
    pub fn storage(&self) -> &dyn Storage {
        self.storage.as_ref()
    }

    /// The snapshot `id`, removed ones included.
    ///
    /// # Errors
    /// If there is none, or its manifest is damaged or newer than this build.
    pub fn get(&self, id: Id) -> Result<Manifest, StoreError> {
        let path = self.places.snapshot(id).join(Manifest::FILE);
        let wrong = |source| StoreError::Manifest { path: path.clone(), source };
        match sealed::read_small(self.storage(), &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(StoreError::Unknown(id)),
            Err(error) => Err(StoreError::io("read", &path)(error)),
            Ok(text) => {
                let manifest = Manifest::parse(&text).map_err(wrong)?;
                if manifest.id != id {
                    return Err(wrong(SealedError::Damaged(format!("it is that of {}", manifest.id))));
                }
                Ok(manifest)
            }
        }
    }

    /// The ids of all snapshots, sorted, removed ones included.
    ///
    /// # Errors
    /// If the host fails.
    pub fn ids(&self) -> Result<Vec<Id>, StoreError> {
        let dir = self.places.snapshots();
        let names = self.storage.list(&dir).map_err(StoreError::io("list", &dir))?;
        let mut ids: Vec<Id> = names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
        ids.sort();
        Ok(ids)
    }

    /// All snapshots, removed ones included, oldest first; and what is wrong with those that cannot be read.
    ///
    /// # Errors
    /// If the host fails.
    pub fn all(&self) -> Result<(Vec<Manifest>, Vec<StoreError>), StoreError> {
        let (mut all, mut wrong) = (Vec::new(), Vec::new());
        for id in self.ids()? {
            match self.get(id) {
                Ok(manifest) => all.push(manifest),
                // Gone meanwhile.
                Err(StoreError::Unknown(_)) => {}
                Err(error) => wrong.push(error),
            }
        }
        all.sort_by_key(|manifest| (manifest.created_ms, manifest.id));
        Ok((all, wrong))
    }

    /// The snapshots of the VM whose life is `vm` that are not removed, oldest first.
    ///
    /// # Errors
    /// If the host fails.
    pub fn list(&self, vm: Id) -> Result<Vec<Manifest>, StoreError> {
        let (mut all, _) = self.all()?;
        all.retain(|manifest| manifest.vm == vm && !manifest.removed);
        Ok(all)
    }

    /// The snapshots that have `id` as their parent, removed ones included, oldest first.
    ///
    /// # Errors
    /// If the host fails.
    pub fn children(&self, id: Id) -> Result<Vec<Manifest>, StoreError> {
        let (mut all, _) = self.all()?;
        all.retain(|manifest| manifest.parent == Some(id));
        Ok(all)
    }

    /// The snapshot of the VM `vm` that is called `name`, or has it as its id; `None` if there is none.
    ///
    /// # Errors
    /// If the host fails.
    pub fn find(&self, vm: Id, name: &str) -> Result<Option<Manifest>, StoreError> {
        let id: Option<Id> = name.parse().ok();
        let mut all = self.list(vm)?;
        all.retain(|manifest| manifest.name == name || Some(manifest.id) == id);
        Ok(all.pop())
    }

    /// The snapshots that the memory of `id` is made of, base first, `id` last.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn chain(&self, id: Id) -> Result<Vec<Manifest>, StoreError> {
        let mut chain: Vec<Manifest> = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            if chain.iter().any(|manifest| manifest.id == id) {
                return Err(StoreError::Loop(id));
            }
            let manifest = self.get(id)?;
            next = manifest.memory.base;
            chain.push(manifest);
        }
        chain.reverse();
        Ok(chain)
    }

    /// The file `name` of the snapshot `id`.
    #[must_use]
    pub fn file(&self, id: Id, name: &str) -> PathBuf {
        self.places.snapshot(id).join(name)
    }

    /// Write `manifest` over the one that is there. The caller has the store for itself.
    fn put(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let path = self.file(manifest.id, Manifest::FILE);
        let text = manifest.to_text().map_err(StoreError::io("write", &path))?;
        sealed::replace(self.storage(), &path, &text).map_err(StoreError::io("write", &path))
    }

    /// Nobody is to see the snapshot `id` any more. [`Store::sweep`] frees what nobody needs.
    ///
    /// # Errors
    /// If there is none, or the host fails: then it is still there.
    pub fn mark_removed(&self, id: Id) -> Result<(), StoreError> {
        let _alone = self.alone()?;
        let mut manifest = self.get(id)?;
        manifest.removed = true;
        self.put(&manifest)
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
