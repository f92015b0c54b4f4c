//! What a VM keeps for later: which snapshot it is on, and where the layers of its disks are.
//!
//! ```text
//!   the user's file ◄── layer ◄── … ◄── frozen layer ◄── top: the only one that is written
//!                                       (a snapshot's)   (in the record)
//! ```
//! The record is the VM's own and is durable before what it says is used (but that of a VM which is thrown away at its end):
//! whoever finds it after a crash finds a VM that can be started. New tops are made before the record names them, and old ones
//! are deleted after it has forgotten them; what a crash
//! leaves in between is garbage that a sweep finds. Belongs to the `vmm` thread.

use std::io;
use std::path::{Path, PathBuf};

use devices::disk::layer::{self, Base, Format};
use devices::disk::{Disk, DiskError, DiskOptions};

use crate::snapshot::manifest::{DiskPoint, Manifest};
use crate::snapshot::record::RecordError;
use crate::snapshot::store::StoreError;
use crate::snapshot::{Id, Places, Record, Store};
use crate::spec::{DiskSpec, Memory};

/// Where what a VM keeps for later is.
#[derive(Clone, Debug)]
pub struct Home {
    /// Layers and snapshots, of this VM and of others.
    pub places: Places,
    /// The VM's own record of what it stands on (`layers.json`); made when there is something to say if it is not there.
    pub record: PathBuf,
    /// Nothing of the VM is of use after a crash of the host: the record need not outlive one.
    pub passing: bool,
}

/// A VM's home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Snapshots or layers.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The VM's record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A layer, or what is below it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host has no random numbers.
    #[error("the host has no random numbers to give names")]
    Names(#[source] io::Error),
    /// A new layer may be gone after a power cut.
    #[error("cannot sync {}", path.display())]
    Sync {
        /// The directory.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A disk cannot be cut.
    #[error("the disk {path} has {least} and cannot be seen as {size}: give it a size of at least that")]
    Shrunk {
        /// Its file.
        path: PathBuf,
        /// The size that was asked for.
        size: Memory,
        /// The size of what is in the file.
        least: Memory,
    },
    /// A snapshot needs a home to be in.
    #[error("a VM that starts from a snapshot needs a place to keep its own: this is a defect of skiff")]
    Homeless,
    /// The snapshot knows nothing of a disk that has layers.
    #[error("the snapshot {snapshot} has no layer of {disk}: its VM had other disks")]
    NoLayer {
        /// The snapshot's name.
        snapshot: String,
        /// Such as `disk0`.
        disk: String,
    },
}

/// An open [`Home`].
#[derive(Debug)]
pub(crate) struct Lineage {
    pub(crate) store: Store,
    path: PathBuf,
    passing: bool,
    record: Record,
    /// What it was before a start from a snapshot that has not come off yet.
    undo: Option<Record>,
}

impl Lineage {
    /// Of a VM with so many disks, which is new if it has no record.
    pub(crate) fn open(home: &Home, disks: usize) -> Result<Self, HomeError> {
        let store = Store::open(home.places.clone());
        let record = match Record::read(store.storage(), &home.record)? {
            Some(mut record) => {
                // Disks that were added or taken away are at the end.
                record.disks.resize(disks, None);
                record
            }
            None => Record::new(draw()?, vec![None; disks]),
        };
        Ok(Self { store, path: home.record.clone(), passing: home.passing, record, undo: None })
    }

    /// What is durable.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Let it be this, durably unless it is of a passing VM. Returns what it was.
    ///
    /// # Errors
    /// If the host fails: it is the old one or this one then, and the old one for this process.
    pub(crate) fn change(&mut self, record: Record) -> Result<Record, RecordError> {
        let storage = self.store.storage();
        match self.passing {
            true => record.write_soon(storage, &self.path)?,
            false => record.write(storage, &self.path)?,
        }
        Ok(std::mem::replace(&mut self.record, record))
    }

    /// The file that the VM writes for its disk number `at`.
    pub(crate) fn file<'a>(&self, at: usize, spec: &'a DiskSpec) -> std::borrow::Cow<'a, Path> {
        match self.record.disks.get(at).copied().flatten() {
            Some(top) if spec.is_layered() => self.store.places().layer(top).into(),
            _ => spec.path.as_path().into(),
        }
    }

    /// Make a first layer for each disk that is to have some and has none. The caller has a [`Pin`](crate::snapshot::store::Pin), and
    /// writes down what is returned.
    pub(crate) fn first_tops(&self, disks: &[DiskSpec]) -> Result<Record, HomeError> {
        let mut made = Making::new(self);
        for (at, disk) in disks.iter().enumerate().filter(|(_, disk)| disk.is_layered()) {
            if made.record.disks.get(at).copied().flatten().is_none() {
                let (base, least) = user_base(&disk.path)?;
                let size = disk.size.map_or(least, |size| size.0);
                if size < least {
                    return Err(HomeError::Shrunk {
                        path: disk.path.clone(),
                        size: Memory(size),
                        least: Memory(least),
                    });
                }
                made.top(at, &self.as_sibling(base), size)?;
            }
        }
        made.done()
    }

    /// A disk that was imported is a layer of the store's: named as such, it is known to be in use.
    fn as_sibling(&self, base: Base) -> Base {
        let layers = self.store.places().layers();
        match base.name.strip_prefix(&layers) {
            Ok(name) if base.format == Format::Qcow2 => Base { name: name.to_owned(), ..base },
            _ => base,
        }
    }

    /// Make an empty layer on the one that each disk had at a snapshot.
    fn tops_on(&self, disks: &[DiskSpec], points: &[DiskPoint], snapshot: &str) -> Result<Record, HomeError> {
        let mut made = Making::new(self);
        for (at, disk) in disks.iter().enumerate() {
            let point = points.get(at).and_then(|point| Some((point.layer?, point.size)));
            match point {
                Some((layer, size)) if disk.is_layered() => made.top(at, &sibling(layer), size)?,
                None if disk.is_layered() => {
                    let (snapshot, disk) = (snapshot.to_owned(), format!("disk{at}"));
                    return Err(HomeError::NoLayer { snapshot, disk });
                }
                _ => made.none(at),
            }
        }
        made.done()
    }

    /// Let the VM be on a snapshot, with new layers on its. Returns the record before. The caller has a
    /// [`Pin`](crate::snapshot::store::Pin).
    pub(crate) fn move_to(&mut self, disks: &[DiskSpec], snapshot: &Manifest) -> Result<Record, HomeError> {
        let mut record = self.tops_on(disks, &snapshot.disks, &snapshot.name)?;
        record.parent = Some(snapshot.id);
        // If it fails nobody knows which of both is there: the new layers stay for a sweep to judge.
        Ok(self.change(record)?)
    }

    /// Let the VM start on a snapshot. Dropped before [`Lineage::confirm`], it is where it was. The caller has a
    /// [`Pin`](crate::snapshot::store::Pin).
    pub(crate) fn start_on(&mut self, disks: &[DiskSpec], snapshot: &Manifest) -> Result<(), HomeError> {
        self.undo = Some(self.move_to(disks, snapshot)?);
        Ok(())
    }

    /// The VM runs: what it was on before the start is not needed any more.
    pub(crate) fn confirm(&mut self) {
        if let Some(before) = self.undo.take() {
            self.forget(&before);
        }
    }

    /// Make an empty layer on each disk's top.
    pub(crate) fn next_tops(&self, sizes: &[u64]) -> Result<Record, HomeError> {
        let mut made = Making::new(self);
        for (at, (top, size)) in self.record.disks.iter().zip(sizes).enumerate() {
            if let Some(top) = top {
                made.top(at, &sibling(*top), *size)?;
            }
        }
        made.done()
    }

    /// Delete the tops of `old` that the record does not name any more, if the host lets us: a sweep finds the rest.
    pub(crate) fn forget(&self, old: &Record) {
        let mut gone = old.clone();
        for top in &mut gone.disks {
            *top = top.filter(|top| !self.record.disks.contains(&Some(*top)));
        }
        if let Err(error) = self.store.drop_tops(&gone) {
            log::warn!("a layer that nobody needs stays until skiff system prune: {error}");
        }
    }
}

impl Drop for Lineage {
    fn drop(&mut self) {
        let Some(before) = self.undo.take() else { return };
        match self.change(before) {
            Ok(made) => self.forget(&made),
            Err(error) => log::warn!("the VM stays on the snapshot that it could not start from: {error}"),
        }
    }
}

fn draw() -> Result<Id, HomeError> {
    Id::draw().map_err(HomeError::Names)
}

/// A layer below another.
fn sibling(layer: Id) -> Base {
    Base { name: format!("{layer}.qcow2").into(), format: Format::Qcow2 }
}

/// The user's own file below a first layer, and the size of the disk in it.
fn user_base(path: &Path) -> Result<(Base, u64), HomeError> {
    let options = DiskOptions { path: path.to_owned(), readonly: true, direct: false };
    let disk = Disk::open(&options)?;
    let format = if disk.is_layered() { Format::Qcow2 } else { Format::Raw };
    Ok((Base { name: path.to_owned(), format }, disk.size()))
}

/// New tops, which are deleted again if not all can be made.
struct Making<'a> {
    lineage: &'a Lineage,
    record: Record,
    new: Vec<Id>,
}

impl<'a> Making<'a> {
    fn new(lineage: &'a Lineage) -> Self {
        Self { lineage, record: lineage.record.clone(), new: Vec::new() }
    }

    fn top(&mut self, at: usize, base: &Base, size: u64) -> Result<(), HomeError> {
        let id = draw()?;
        let (store, path) = (&self.lineage.store, self.lineage.store.places().layer(id));
        layer::create(store.storage(), &path, Some(base), size)?;
        self.new.push(id);
        if let Some(top) = self.record.disks.get_mut(at) {
            *top = Some(id);
        }
        Ok(())
    }

    fn none(&mut self, at: usize) {
        if let Some(top) = self.record.disks.get_mut(at) {
            *top = None;
        }
    }

    /// All are there, and will be.
    fn done(mut self) -> Result<Record, HomeError> {
        if !self.new.is_empty() {
            let path = self.lineage.store.places().layers();
            let synced = self.lineage.store.storage().sync_dir(&path);
            synced.map_err(|source| HomeError::Sync { path, source })?;
        }
        self.new.clear();
        Ok(self.record.clone())
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let store = &self.lineage.store;
        for id in &self.new {
            // A sweep finds what cannot be deleted.
            let _ = store.storage().remove_file(&store.places().layer(*id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_top_has_the_size_that_was_asked_for_if_it_cuts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::new(dir.path().join("data"));
        let home = Home { places, record: dir.path().join("layers.json"), passing: true };
        let file = dir.path().join("disk.img");
        std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let lineage = Lineage::open(&home, 1).unwrap();
        let _pin = lineage.store.pin().unwrap();
        let disk = |size| DiskSpec { layers: Some(true), size, ..DiskSpec::new(&file) };
        for (size, seen) in
            [(None, 1 << 20), (Some(Memory(1 << 20)), 1 << 20), (Some(Memory(1 << 30)), 1 << 30)]
        {
            let record = lineage.first_tops(&[disk(size)]).unwrap();
            let path = lineage.store.places().layer(record.disks[0].unwrap());
            assert_eq!(layer::inspect(lineage.store.storage(), &path).unwrap().size, seen);
        }
        let refused = lineage.first_tops(&[disk(Some(Memory(512)))]).unwrap_err().to_string();
        assert!(
            refused.ends_with("has 1M and cannot be seen as 512: give it a size of at least that"),
            "{refused}"
        );
    }
}
