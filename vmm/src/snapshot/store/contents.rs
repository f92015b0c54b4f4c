//! What is in the files of a snapshot, as far as the store moves it from one to another.

use std::path::Path;

use devices::disk::layer::{self, Format};
use devices::storage::Storage;

use super::super::Id;
use super::super::manifest::{Manifest, Sum};
use super::super::memory::{self, Index, MemoryFileError, MemoryLayer};
use super::survey::layer_id;
use super::{Progress, Store, StoreError};

impl Store {
    /// Where the memory of `manifest` is.
    #[must_use]
    pub fn memory_layer(&self, manifest: &Manifest) -> MemoryLayer {
        let file = |name: &str| self.file(manifest.id, name);
        MemoryLayer { data: file(&manifest.memory.data), index: file(&manifest.memory.index) }
    }
}

/// The layer of the store's that the one at `path` stands on; `None` if that is none.
pub(super) fn layer_below(storage: &dyn Storage, path: &Path) -> Result<Option<Id>, StoreError> {
    let backing = layer::backing(storage, path)?;
    // A sibling is named without a directory, a base with its own.
    let sibling = backing.filter(|backing| backing.parent() == Some(Path::new("")));
    Ok(sibling.and_then(|name| layer_id(name.to_str()?)))
}

/// Write what two memory files hold as one. Says what the data file must be.
pub(super) fn merge_memory(
    store: &Store,
    base: &MemoryLayer,
    upper: &MemoryLayer,
    out: &MemoryLayer,
    progress: Progress<'_>,
) -> Result<Sum, StoreError> {
    let index = memory::merge(store.storage(), base, upper, out, progress)?;
    Ok(Sum { len: index.size(), crc32: index.crc32() })
}

/// Write what a chain of memory files holds as one that needs no other.
pub(super) fn flatten_memory(
    store: &Store,
    chain: &[MemoryLayer],
    out: &MemoryLayer,
    progress: Progress<'_>,
) -> Result<Index, StoreError> {
    Ok(memory::flatten(store.storage(), chain, out, progress)?)
}

/// Read all of a memory file and check it against its index. Says what it is.
pub(super) fn memory_sum(
    storage: &dyn Storage,
    layer: &MemoryLayer,
    progress: Progress<'_>,
) -> Result<Sum, MemoryFileError> {
    memory::verify(storage, layer, progress)?;
    let index = Index::read(storage, &layer.index)?;
    Ok(Sum { len: index.size(), crc32: index.crc32() })
}

/// Write what two layers hold as one.
pub(super) fn merge_layers(
    store: &Store,
    upper: &Path,
    lower: &Path,
    out: &Path,
    progress: Progress<'_>,
) -> Result<(), StoreError> {
    Ok(layer::merge(store.storage(), upper, lower, out, progress)?)
}

/// Write what a disk's whole chain holds as one layer that needs no other.
pub(super) fn flatten_layers(
    store: &Store,
    path: &Path,
    out: &Path,
    progress: Progress<'_>,
) -> Result<(), StoreError> {
    Ok(layer::flatten(store.storage(), path, out, progress)?)
}

/// Whether the file at `path` is a disk's layer of `size` bytes that names no other file. An error says what is wrong with it.
pub(super) fn check_alone(storage: &dyn Storage, path: &Path, size: u64) -> Result<(), String> {
    let info = layer::inspect(storage, path).map_err(|error| error.to_string())?;
    if info.format != Format::Qcow2 || info.backing.is_some() {
        return Err("a disk in it needs another file".to_owned());
    }
    if info.size != size {
        return Err(format!("a disk in it has {} bytes, and must have {size}", info.size));
    }
    Ok(())
}
