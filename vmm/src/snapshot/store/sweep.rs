//! Freeing what nobody needs any more.
//!
//! Users remove snapshots by a mark; this is what follows, at any later time and by any process, in steps after each of which the
//! store is whole. Merging goes on beside running VMs: what they have open stays what it is, and what takes its place has the
//! same content.

use std::io;
use std::path::{Path, PathBuf};

use super::super::Id;
use super::super::manifest::{DiskPoint, Manifest, MemoryFiles, Sum};
use super::super::memory::MemoryLayer;
use super::super::sealed::SealedError;
use super::survey::{GONE, Job, NEW, Survey, Users};
use super::{Store, StoreError, contents};

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Snapshots that are gone.
    pub snapshots: usize,
    /// Layers that are gone.
    pub layers: usize,
    /// How much the host's file system has back, in bytes.
    pub bytes: u64,
}

/// What a sweep would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Snapshots that nobody can see and nobody needs.
    pub snapshots: Vec<Id>,
    /// Layers that nobody needs.
    pub layers: Vec<Id>,
    /// Other files and directories.
    pub litter: usize,
    /// What the snapshots take, in bytes of the host's file system, with what was left behind by killed processes.
    pub snapshot_bytes: u64,
    /// What the layers take.
    pub layer_bytes: u64,
    /// There is something to merge: what it frees is not known before.
    pub merges: bool,
}

impl Garbage {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.layers.is_empty() && self.litter == 0 && !self.merges
    }

    /// How much all of it takes, merges not counted.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.snapshot_bytes.saturating_add(self.layer_bytes)
    }
}

/// Told how far a long step is: what is done, of how much.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

impl Store {
    /// What could be freed now. Nothing is changed.
    ///
    /// # Errors
    /// If something of it cannot be read.
    pub fn garbage(&self, users: Users<'_>) -> Result<Garbage, StoreError> {
        if !self.is_there()? {
            return Ok(Garbage::default());
        }
        let survey = {
            let _pin = self.pin()?;
            self.survey(users)?
        };
        let mut garbage = Garbage { litter: survey.litter.len(), ..Garbage::default() };
        for path in &survey.litter {
            garbage.snapshot_bytes = garbage.snapshot_bytes.saturating_add(self.taken(path)?);
        }
        let (snapshots, layers, rest) = survey.without_garbage();
        for id in &snapshots {
            let taken = self.taken(&self.places.snapshot(*id))?;
            garbage.snapshot_bytes = garbage.snapshot_bytes.saturating_add(taken);
        }
        for id in &layers {
            garbage.layer_bytes = garbage.layer_bytes.saturating_add(self.taken(&self.places.layer(*id))?);
        }
        Ok(Garbage { snapshots, layers, merges: rest.next_merge(&[]).is_some(), ..garbage })
    }

    /// Free what nobody needs: drafts whose makers are gone, snapshots that are removed, layers; and merge what one alone
    /// needs. If another process does so already, wait for it first. `users` are asked again and again.
    ///
    /// # Errors
    /// If the host fails, or something cannot be read, so that nobody knows what is in use. What could be done is done all the
    /// same, and the next sweep goes on.
    pub fn sweep(&self, users: Users<'_>, progress: Progress<'_>) -> Result<Swept, StoreError> {
        if !self.is_there()? {
            return Ok(Swept::default());
        }
        let _sweeping = self.sweeping()?;
        let mut swept = Swept::default();
        // What cannot be merged, because it is damaged or there is no room, keeps nothing else waiting.
        let (mut failed, mut first_error) = (Vec::new(), None);
        loop {
            let merge = {
                let _alone = self.alone()?;
                let survey = self.survey(users)?;
                let changed = self.finish_merges(&survey)? | self.hide_orphans(&survey)?;
                let survey = if changed { self.survey(users)? } else { survey };
                self.drop_all(survey, users, &mut swept)?.next_merge(&failed)
            };
            let Some(job) = merge else { return first_error.map_or(Ok(swept), Err) };
            let done = match job {
                Job::MergeMemory { base, upper } => self.merge_memory(base, upper, users, progress),
                Job::MergeLayers { lower, upper } => self.merge_layers(lower, upper, users, progress),
                Job::Drop(_) | Job::DropLayer(_) => Ok(()),
            };
            if let Err(error) = done {
                failed.push(job);
                first_error.get_or_insert(error);
            }
        }
    }

    /// Remove the snapshots whose manifests are damaged, so that nobody knows what they need. Says what was wrong with them.
    ///
    /// # Errors
    /// If the host fails.
    pub fn remove_damaged(&self) -> Result<Vec<StoreError>, StoreError> {
        if !self.is_there()? {
            return Ok(Vec::new());
        }
        let _alone = self.alone()?;
        let mut removed = Vec::new();
        for id in self.ids()? {
            // One of a newer skiff is as good as ever, and so is one that cannot be read just now.
            if let Err(error @ StoreError::Manifest { source: SealedError::Damaged(_), .. }) = self.get(id) {
                self.hide(id)?;
                removed.push(error);
            }
        }
        Ok(removed)
    }

    /// Out of sight in one step, to be deleted file by file.
    fn hide(&self, id: Id) -> Result<PathBuf, StoreError> {
        let dir = self.places.snapshots();
        let (from, gone) = (self.places.snapshot(id), dir.join(format!("{GONE}{id}")));
        self.storage.rename(&from, &gone).map_err(StoreError::io("remove", &from))?;
        self.storage.sync_dir(&dir).map_err(StoreError::io("sync", &dir))?;
        Ok(gone)
    }

    /// Do all that takes no time. Returns what is there then.
    fn drop_all(
        &self,
        mut survey: Survey,
        users: Users<'_>,
        swept: &mut Swept,
    ) -> Result<Survey, StoreError> {
        loop {
            // What nobody can need may be so since the last step alone: the boot files of a snapshot that is gone.
            for path in &std::mem::take(&mut survey.litter) {
                swept.bytes = swept.bytes.saturating_add(self.taken(path)?);
                self.delete(path)?;
            }
            match survey.next_drop() {
                Some(Job::Drop(id)) => {
                    swept.bytes = swept.bytes.saturating_add(self.taken(&self.places.snapshot(id))?);
                    self.drop_snapshot(id, &survey)?;
                    swept.snapshots = swept.snapshots.saturating_add(1);
                }
                Some(Job::DropLayer(id)) => {
                    let path = self.places.layer(id);
                    swept.bytes = swept.bytes.saturating_add(self.taken(&path)?);
                    self.delete(&path)?;
                    swept.layers = swept.layers.saturating_add(1);
                }
                _ => {
                    return match survey.wrong.pop() {
                        Some(error) => Err(error),
                        None => Ok(survey),
                    };
                }
            }
            survey = self.survey(users)?;
        }
    }

    /// First out of sight in one step, then file by file. Those that have it as their parent get its own.
    fn drop_snapshot(&self, id: Id, survey: &Survey) -> Result<(), StoreError> {
        let Some(manifest) = survey.snapshots.get(&id) else { return Ok(()) };
        for child in survey.children(id) {
            if let Some(child) = survey.snapshots.get(&child) {
                self.put(&Manifest { parent: manifest.parent, ..child.clone() })?;
            }
        }
        let gone = self.hide(id)?;
        self.delete_dir(&gone)
    }

    /// Delete a file, or a directory of files.
    fn delete(&self, path: &Path) -> Result<(), StoreError> {
        if is_dir(path) {
            return self.delete_dir(path);
        }
        self.storage.remove_file(path).map_err(StoreError::io("delete", path))
    }

    /// Write the memory of `base` and `upper` as one beside that of `upper`, then let it take its place.
    fn merge_memory(
        &self,
        base: Id,
        upper: Id,
        users: Users<'_>,
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let (below, above) = (self.get(base)?, self.get(upper)?);
        let dir = self.places.snapshot(upper);
        let new = Id::draw().map_err(StoreError::io("name a file in", &dir))?;
        let memory = MemoryFiles {
            data: format!("memory-{new}"),
            index: format!("index-{new}"),
            base: below.memory.base,
        };
        let sum = contents::merge_memory(
            self,
            &self.memory_layer(&below),
            &self.memory_layer(&above),
            &MemoryLayer { data: dir.join(&memory.data), index: dir.join(&memory.index) },
            progress,
        )?;
        let index_sum = self.sum(&dir.join(&memory.index))?;
        self.storage.sync_dir(&dir).map_err(StoreError::io("sync", &dir))?;
        let _alone = self.alone()?;
        // It may have been needed again meanwhile: then what was written is litter.
        let survey = self.survey(users)?;
        if !survey.allows_memory(base, upper) {
            return Ok(());
        }
        // Or its manifest was changed.
        let mut manifest = self.get(upper)?;
        let old = std::mem::replace(&mut manifest.memory, memory);
        manifest.files.remove(&old.data);
        manifest.files.remove(&old.index);
        manifest.files.insert(manifest.memory.data.clone(), sum);
        manifest.files.insert(manifest.memory.index.clone(), index_sum);
        self.put(&manifest)
    }

    /// Write what `lower` and `upper` hold as one layer aside, then let it take the name of `upper`.
    fn merge_layers(
        &self,
        lower: Id,
        upper: Id,
        users: Users<'_>,
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let out = self.places.layers().join(format!(".merge-{upper}.qcow2"));
        self.storage.remove_file(&out).map_err(StoreError::io("delete", &out))?;
        contents::merge_layers(self, &self.places.layer(upper), &self.places.layer(lower), &out, progress)?;
        let sum = self.sum(&out)?;
        let _alone = self.alone()?;
        let survey = self.survey(users)?;
        if !survey.allows_layers(lower, upper) {
            return self.delete(&out);
        }
        self.mark_merging(&survey, upper, Some(sum))?;
        let path = self.places.layer(upper);
        self.storage.rename(&out, &path).map_err(StoreError::io("replace", &path))?;
        let dir = self.places.layers();
        self.storage.sync_dir(&dir).map_err(StoreError::io("sync", &dir))?;
        self.mark_merged(&survey, upper, sum)
    }

    /// From now on the layer may be what it was, or this.
    fn mark_merging(&self, survey: &Survey, layer: Id, sum: Option<Sum>) -> Result<(), StoreError> {
        self.change_points(survey, layer, |point| point.merging = sum)
    }

    /// From now on the layer is this.
    fn mark_merged(&self, survey: &Survey, layer: Id, sum: Sum) -> Result<(), StoreError> {
        self.change_points(survey, layer, |point| {
            point.sum = Some(sum);
            point.merging = None;
        })
    }

    fn change_points(
        &self,
        survey: &Survey,
        layer: Id,
        change: impl Fn(&mut DiskPoint),
    ) -> Result<(), StoreError> {
        for manifest in survey.snapshots.values().filter(|manifest| super::survey::names(manifest, layer)) {
            let mut manifest = self.get(manifest.id)?;
            manifest.disks.iter_mut().filter(|point| point.layer == Some(layer)).for_each(&change);
            self.put(&manifest)?;
        }
        Ok(())
    }

    /// Write down what became of merges that somebody was killed in. Says whether there were any.
    fn finish_merges(&self, survey: &Survey) -> Result<bool, StoreError> {
        let points = survey.snapshots.values().flat_map(|manifest| &manifest.disks);
        let merging: Vec<(Id, Sum)> =
            points.filter_map(|point| Some((point.layer?, point.merging?))).collect();
        for (layer, sum) in &merging {
            if self.sum(&self.places.layer(*layer))? == *sum {
                self.mark_merged(survey, *layer, *sum)?;
            } else {
                self.mark_merging(survey, *layer, None)?;
            }
        }
        Ok(!merging.is_empty())
    }

    /// Mark the snapshots of VMs that are gone. Says whether there were any.
    fn hide_orphans(&self, survey: &Survey) -> Result<bool, StoreError> {
        let orphans = survey.snapshots.values().filter(|manifest| survey.is_orphan(manifest));
        let orphans: Vec<Id> =
            orphans.filter(|manifest| !manifest.removed).map(|manifest| manifest.id).collect();
        for id in &orphans {
            let manifest = self.get(*id)?;
            self.put(&Manifest { removed: true, ..manifest })?;
        }
        Ok(!orphans.is_empty())
    }

    /// How much of the host's file system a file, or a directory of files, takes, in bytes.
    pub(super) fn taken(&self, path: &Path) -> Result<u64, StoreError> {
        if !is_dir(path) {
            return self.taken_by_file(path).map_err(StoreError::io("measure", path));
        }
        let mut bytes = 0_u64;
        for name in self.storage.list(path).map_err(StoreError::io("list", path))? {
            bytes = bytes.saturating_add(self.taken(&path.join(name))?);
        }
        Ok(bytes)
    }

    fn taken_by_file(&self, path: &Path) -> io::Result<u64> {
        let file = match self.storage.open(path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            opened => opened?,
        };
        match file.fd() {
            Some(fd) => Ok(u64::try_from(rustix::fs::fstat(fd)?.st_blocks).unwrap_or(0).saturating_mul(512)),
            None => file.len(),
        }
    }
}

/// Whether this is the name of a snapshot, whole or not, and not of a file.
fn is_dir(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.parse::<Id>().is_ok() && path.parent().is_some_and(|dir| dir.ends_with("snapshots"))
        || name.starts_with(GONE)
        || name.starts_with(NEW)
}
