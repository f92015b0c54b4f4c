//! What is in the store, who needs it, and what could go: a value, from which the sweeper takes its next step.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::PathBuf;

use devices::storage::StoredFile;
use rustix::fs::{FlockOperation, flock};

use super::super::Id;
use super::super::manifest::Manifest;
use super::super::record::Record;
use super::super::sealed;
use super::draft::{MAKER, Note};
use super::{Store, StoreError, contents};

/// Begins the names of what is removed, but not deleted to the end.
pub(super) const GONE: &str = ".gone-";
/// Begins the names of snapshots on their way.
pub(super) const NEW: &str = ".new-";
/// Notes of what was checked, beside a manifest.
pub(super) const CHECKED: &str = "checked.json";

/// A VM, as far as the store must know of it.
#[derive(Clone, Debug)]
pub struct User {
    /// What it is called.
    pub name: String,
    /// Its disks.
    pub record: Record,
    /// Its spec as text: boot files that it names are in use.
    pub spec: String,
    /// Its process is there.
    pub running: bool,
}

/// All VMs at the moment of the call.
pub type Users<'a> = &'a dyn Fn() -> Result<Vec<User>, StoreError>;

/// The store at one moment.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) snapshots: BTreeMap<Id, Manifest>,
    /// Of each layer, the layer below it, if there is one.
    pub(super) layers: BTreeMap<Id, Option<Id>>,
    users: Vec<User>,
    /// What is being made builds on these.
    drafted: BTreeSet<Id>,
    /// Something is being made.
    busy: bool,
    /// Files and directories that nobody can ever need.
    pub(super) litter: Vec<PathBuf>,
    /// Manifests that cannot be read: what they name is not known.
    pub(super) wrong: Vec<StoreError>,
}

/// What a sweeper can do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Nobody needs this snapshot's memory.
    Drop(Id),
    /// One snapshot alone needs the memory of one that is removed.
    MergeMemory { base: Id, upper: Id },
    /// Nobody needs this layer.
    DropLayer(Id),
    /// One layer alone needs this one that no snapshot and no VM names.
    MergeLayers { lower: Id, upper: Id },
}

impl Store {
    /// Look at everything. The caller has the store for itself, or what it learns is old.
    pub(super) fn survey(&self, users: Users<'_>) -> Result<Survey, StoreError> {
        let (all, wrong) = self.all()?;
        let snapshots = all.into_iter().map(|manifest| (manifest.id, manifest)).collect();
        let mut survey = Survey { snapshots, wrong, users: users()?, ..Survey::default() };
        self.survey_snapshots(&mut survey)?;
        self.survey_layers(&mut survey)?;
        self.survey_boot_files(&mut survey)?;
        Ok(survey)
    }

    fn survey_snapshots(&self, survey: &mut Survey) -> Result<(), StoreError> {
        let dir = self.places.snapshots();
        for name in self.storage.list(&dir).map_err(StoreError::io("list", &dir))? {
            let path = dir.join(&name);
            if starts(&name, GONE) {
                survey.litter.push(path);
            } else if starts(&name, NEW) {
                match self.living_draft(&path.join(MAKER))? {
                    Some(note) => {
                        survey.busy = true;
                        survey.drafted.extend(note.builds_on);
                    }
                    None => survey.litter.push(path),
                }
            }
        }
        for manifest in survey.snapshots.values() {
            let dir = self.places.snapshot(manifest.id);
            for name in self.storage.list(&dir).map_err(StoreError::io("list", &dir))? {
                let known = name.to_str().is_some_and(|name| {
                    [Manifest::FILE, CHECKED].contains(&name) || manifest.files.contains_key(name)
                });
                if !known {
                    survey.litter.push(dir.join(name));
                }
            }
        }
        Ok(())
    }

    /// What is being made there; `None` if its maker is gone.
    fn living_draft(&self, maker: &std::path::Path) -> Result<Option<Note>, StoreError> {
        // A maker that is not there, or half written, is one that never got as far as its lock.
        let Ok(file) = self.storage.open(maker, true) else { return Ok(None) };
        if !is_locked(file.as_ref()) {
            return Ok(None);
        }
        let text = sealed::read_small(self.storage(), maker).map_err(StoreError::io("read", maker))?;
        let wrong = |source| StoreError::Manifest { path: maker.to_owned(), source };
        sealed::unseal(&text, 1).map(Some).map_err(wrong)
    }

    fn survey_layers(&self, survey: &mut Survey) -> Result<(), StoreError> {
        let dir = self.places.layers();
        for name in self.storage.list(&dir).map_err(StoreError::io("list", &dir))? {
            let path = dir.join(&name);
            match name.to_str().and_then(layer_id) {
                Some(id) => match contents::layer_below(self.storage(), &path) {
                    Ok(below) => _ = survey.layers.insert(id, below),
                    // The top of a VM that has just ended.
                    Err(_) if !self.storage.exists(&path).map_err(StoreError::io("find", &path))? => {}
                    Err(error) => return Err(error),
                },
                None if name.as_encoded_bytes().starts_with(b".") => survey.litter.push(path),
                // Not skiff's.
                None => {}
            }
        }
        Ok(())
    }

    fn survey_boot_files(&self, survey: &mut Survey) -> Result<(), StoreError> {
        if !survey.wrong.is_empty() {
            return Ok(());
        }
        let dir = self.places.boot();
        for name in self.storage.list(&dir).map_err(StoreError::io("list", &dir))? {
            let Some(text) = name.to_str() else { continue };
            let mut specs = survey.snapshots.values().map(|manifest| &manifest.spec);
            let named = specs.any(|spec| spec.contains(text))
                || survey.users.iter().any(|user| user.spec.contains(text));
            if !named {
                survey.litter.push(dir.join(&name));
            }
        }
        Ok(())
    }
}

impl Survey {
    /// The next thing to do that takes no time.
    pub(super) fn next_drop(&self) -> Option<Job> {
        if !self.wrong.is_empty() {
            // What they name is not known, so nothing is known to be free.
            return None;
        }
        let unneeded = |id: &&Id| self.is_unused(**id) && self.above(**id).is_empty();
        if let Some(id) = self.snapshots.keys().find(unneeded) {
            return Some(Job::Drop(*id));
        }
        if let Some(id) =
            self.layers.keys().find(|id| !self.is_named(**id) && self.layers_above(**id).is_empty())
        {
            return Some(Job::DropLayer(*id));
        }
        None
    }

    /// The next thing to do that takes time, but for what `failed` before.
    pub(super) fn next_merge(&self, failed: &[Job]) -> Option<Job> {
        if !self.wrong.is_empty() {
            return None;
        }
        let memory = |base: &Id| match self.above(*base).as_slice() {
            [upper] => {
                self.allows_memory(*base, *upper).then_some(Job::MergeMemory { base: *base, upper: *upper })
            }
            _ => None,
        };
        let layers = |lower: &Id| match self.layers_above(*lower).as_slice() {
            [upper] => self
                .allows_layers(*lower, *upper)
                .then_some(Job::MergeLayers { lower: *lower, upper: *upper }),
            _ => None,
        };
        let all = self.snapshots.keys().filter_map(memory).chain(self.layers.keys().filter_map(layers));
        all.into_iter().find(|job| !failed.contains(job))
    }

    /// Whether the memory of `base` can be merged into that of `upper`.
    pub(super) fn allows_memory(&self, base: Id, upper: Id) -> bool {
        self.is_unused(base) && self.above(base) == [upper]
    }

    /// Whether the layer `lower` can be merged into `upper`.
    pub(super) fn allows_layers(&self, lower: Id, upper: Id) -> bool {
        // The layer that is frozen just now is still being finished by its VM, and nobody names it yet.
        let still = !self.busy && !self.is_top(upper);
        still && !self.is_named(lower) && self.layers_above(lower) == [upper]
    }

    /// The snapshots whose memory builds on that of `id`.
    pub(super) fn above(&self, id: Id) -> Vec<Id> {
        let above = self.snapshots.values().filter(|manifest| manifest.memory.base == Some(id));
        above.map(|manifest| manifest.id).collect()
    }

    /// The snapshots that name `id` as their parent.
    pub(super) fn children(&self, id: Id) -> Vec<Id> {
        let children = self.snapshots.values().filter(|manifest| manifest.parent == Some(id));
        children.map(|manifest| manifest.id).collect()
    }

    /// Whether the snapshot `id` is removed, or its VM, and neither a running VM nor anything that is being made builds on it.
    fn is_unused(&self, id: Id) -> bool {
        let removed =
            self.snapshots.get(&id).is_some_and(|manifest| manifest.removed || self.is_orphan(manifest));
        let used = self.users.iter().any(|user| user.running && user.record.parent == Some(id));
        removed && !used && !self.drafted.contains(&id)
    }

    /// Whether the VM of a snapshot is gone, so that nobody can name it any more.
    pub(super) fn is_orphan(&self, manifest: &Manifest) -> bool {
        !self.users.iter().any(|user| user.record.vm == manifest.vm)
    }

    fn is_named(&self, layer: Id) -> bool {
        self.is_top(layer)
            || self.snapshots.values().any(|manifest| names(manifest, layer))
            || self.is_base(layer)
    }

    /// Whether a VM's spec names the layer: an imported disk is one, until it has another on it, and what the VM is booted with.
    fn is_base(&self, layer: Id) -> bool {
        let name = layer.to_string();
        self.users.iter().any(|user| user.spec.contains(&name))
    }

    fn is_top(&self, layer: Id) -> bool {
        self.users.iter().any(|user| user.record.disks.contains(&Some(layer)))
    }

    fn layers_above(&self, layer: Id) -> Vec<Id> {
        let above = self.layers.iter().filter(|(_, below)| **below == Some(layer));
        above.map(|(id, _)| *id).collect()
    }

    /// What is left when all is done that takes no time: the caller sees what would go.
    pub(super) fn without_garbage(mut self) -> (Vec<Id>, Vec<Id>, Self) {
        let (mut snapshots, mut layers) = (Vec::new(), Vec::new());
        while let Some(job) = self.next_drop() {
            match job {
                Job::Drop(id) => {
                    self.snapshots.remove(&id);
                    snapshots.push(id);
                }
                Job::DropLayer(id) => {
                    self.layers.remove(&id);
                    layers.push(id);
                }
                Job::MergeMemory { .. } | Job::MergeLayers { .. } => break,
            }
        }
        (snapshots, layers, self)
    }
}

/// Whether `manifest` is of a disk whose frozen layer is `layer`.
pub(super) fn names(manifest: &Manifest, layer: Id) -> bool {
    manifest.disks.iter().any(|disk| disk.layer == Some(layer))
}

/// The layer whose file is called `name`.
pub(super) fn layer_id(name: &str) -> Option<Id> {
    name.strip_suffix(".qcow2")?.parse().ok()
}

fn starts(name: &OsStr, with: &str) -> bool {
    name.as_encoded_bytes().starts_with(with.as_bytes())
}

/// Whether another open file has the lock.
fn is_locked(file: &dyn StoredFile) -> bool {
    let locked = file.fd().map(|fd| flock(fd, FlockOperation::NonBlockingLockExclusive));
    matches!(locked, Some(Err(rustix::io::Errno::WOULDBLOCK)))
}
