//! A snapshot that a machine is to be made of: everything of it that is looked at, checked before anything is changed.

use std::sync::Arc;

use crate::error::VmError;
use crate::snapshot::memory::{Image, MemoryLayer};
use crate::snapshot::state::{STATE, VmState};
use crate::snapshot::{Id, Manifest, Store};
use crate::spec::VmSpec;

/// A snapshot, open.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) manifest: Manifest,
    pub(crate) state: VmState,
    pub(crate) memory: Arc<Image>,
}

impl Point {
    /// Open the snapshot `id`. The caller has a [`Pin`](crate::snapshot::store::Pin).
    ///
    /// # Errors
    /// If it is not there, or damaged.
    pub(crate) fn open(store: &Store, id: Id) -> Result<Self, VmError> {
        let chain = store.verify(id, &mut |_, _| {})?;
        let memory = Arc::new(Image::open(&files(store, &chain))?);
        let state = VmState::read(store.storage(), &store.file(id, STATE))?;
        // The chain of a snapshot ends with it.
        let manifest =
            chain.into_iter().next_back().ok_or(crate::snapshot::store::StoreError::Unknown(id))?;
        Ok(Self { manifest, state, memory })
    }

    /// Whether a VM with this spec has the devices that the snapshot's had.
    ///
    /// # Errors
    /// If it has not.
    pub(crate) fn fits(&self, spec: &VmSpec) -> Result<(), VmError> {
        let saved = VmSpec::from_toml(&self.manifest.spec);
        let same = saved.is_ok_and(|saved| saved.is_same_machine(spec));
        if same { Ok(()) } else { Err(VmError::OtherMachine(self.manifest.name.clone())) }
    }
}

/// The memory files of a chain of snapshots.
pub(super) fn files(store: &Store, chain: &[Manifest]) -> Vec<MemoryLayer> {
    let files = |manifest: &Manifest| MemoryLayer {
        data: store.file(manifest.id, &manifest.memory.data),
        index: store.file(manifest.id, &manifest.memory.index),
    };
    chain.iter().map(files).collect()
}
