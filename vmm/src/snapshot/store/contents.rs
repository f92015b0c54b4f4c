//! What is in the files of a snapshot, as far as the store moves it from one to another.

use std::path::{Path, PathBuf};

use devices::storage::Storage;

use super::super::Id;
use super::super::manifest::{Manifest, Sum};
use super::{Progress, Store, StoreError};

/// The memory files of one snapshot.
pub struct MemoryLayer {
    pub data: PathBuf,
    pub index: PathBuf,
}

impl Store {
    /// Where the memory of `manifest` is.
    pub fn memory_layer(&self, manifest: &Manifest) -> MemoryLayer {
        let file = |name: &str| self.file(manifest.id, name);
        MemoryLayer { data: file(&manifest.memory.data), index: file(&manifest.memory.index) }
    }
}

/// The layer that the one at `path` stands on; `None` if that is no layer of the store's.
pub(super) fn layer_below(_storage: &dyn Storage, _path: &Path) -> Result<Option<Id>, StoreError> {
    Ok(None)
}

/// Write what two memory files hold as one. Says what the data file must be.
pub(super) fn merge_memory(
    _store: &Store,
    _base: &MemoryLayer,
    _upper: &MemoryLayer,
    _out: &MemoryLayer,
    _progress: Progress<'_>,
) -> Result<Sum, StoreError> {
    Ok(Sum { len: 0, crc32: 0 })
}

/// Write what two layers hold as one.
pub(super) fn merge_layers(
    _store: &Store,
    _upper: &Path,
    _lower: &Path,
    _out: &Path,
    _progress: Progress<'_>,
) -> Result<(), StoreError> {
    Ok(())
}

/// The sum of a memory file's data.
pub(super) fn memory_sum(
    _storage: &dyn Storage,
    _layer: &MemoryLayer,
    _progress: Progress<'_>,
) -> Result<Sum, StoreError> {
    Ok(Sum { len: 0, crc32: 0 })
}
