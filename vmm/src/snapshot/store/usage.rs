//! How much of the host's file system snapshots and layers take.

use super::super::manifest::Manifest;
use super::{Store, StoreError};

/// What a snapshot adds to those that it builds on, in bytes of the host's file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The guest's memory, and the state of its devices.
    pub memory: u64,
    /// The layers that it froze.
    pub disks: u64,
}

/// What lies in a store, in bytes of the host's file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Snapshots that are there for users, and others.
    pub snapshots: usize,
    /// Those of them that are removed, and stay while others need them.
    pub hidden: usize,
    /// What the snapshots take without layers.
    pub snapshot_bytes: u64,
    /// All layers, those of VMs included.
    pub layers: usize,
    /// What they take.
    pub layer_bytes: u64,
}

impl Store {
    /// What `manifest` adds.
    ///
    /// # Errors
    /// If the host fails.
    pub fn sizes(&self, manifest: &Manifest) -> Result<Sizes, StoreError> {
        let memory = self.taken(&self.places.snapshot(manifest.id))?;
        let mut disks = 0_u64;
        for layer in manifest.disks.iter().filter_map(|point| point.layer) {
            disks = disks.saturating_add(self.taken(&self.places.layer(layer))?);
        }
        Ok(Sizes { memory, disks })
    }

    /// What there is.
    ///
    /// # Errors
    /// If the host fails.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        for id in self.ids()? {
            usage.snapshots = usage.snapshots.saturating_add(1);
            let hidden = self.get(id).is_ok_and(|manifest| manifest.removed);
            usage.hidden = usage.hidden.saturating_add(hidden.into());
            usage.snapshot_bytes =
                usage.snapshot_bytes.saturating_add(self.taken(&self.places.snapshot(id))?);
        }
        let dir = self.places.layers();
        for name in self.storage.list(&dir).map_err(StoreError::io("list", &dir))? {
            usage.layers = usage.layers.saturating_add(1);
            usage.layer_bytes = usage.layer_bytes.saturating_add(self.taken(&dir.join(name))?);
        }
        Ok(usage)
    }

    /// The VM whose record this was is gone: so are the layers that it alone wrote.
    ///
    /// # Errors
    /// If the host fails: a sweep will find them.
    pub fn drop_tops(&self, record: &super::super::Record) -> Result<(), StoreError> {
        // No lock: nobody but this VM ever named them, and a sweep does not mind that they are gone.
        for layer in record.disks.iter().flatten() {
            let path = self.places.layer(*layer);
            self.storage.remove_file(&path).map_err(StoreError::io("delete", &path))?;
        }
        Ok(())
    }
}
