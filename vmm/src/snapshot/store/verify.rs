//! Whether the files of a snapshot are what they were when it was made.
//!
//! Small files are read and checked each time. Large ones are checked by their length each time, and by content unless
//! they have not been touched since their last good check: that they have not is told by their stamps in
//! `checked.json`, so that a restore need not read what it is going to map.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use devices::disk::DiskError;
use devices::ratelog::Chained;
use serde::{Deserialize, Serialize};

use super::super::Id;
use super::super::manifest::{DiskPoint, Manifest, Sum};
use super::super::memory::{MemoryFileError, MemoryLayer};
use super::super::sealed;
use super::survey::{CHECKED, names};
use super::{Progress, Store, StoreError, contents};

/// The version of `checked.json`. Another one is no error: all is checked again.
const FORMAT: u32 = 1;

/// What can be wrong with a file.
const GONE: &str = "it is gone";
const WRONG: &str = "its checksum is wrong";

/// What was found in order, by the names of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Checked {
    format: u32,
    files: BTreeMap<String, Stamp>,
}

/// A file that nobody has touched still has this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    /// In nanoseconds since 1970, as is the next.
    modified: i128,
    changed: i128,
    /// What its content is.
    crc32: u32,
}

/// A file to check.
struct Wanted {
    /// In `checked.json`.
    key: String,
    path: PathBuf,
    /// What it must be: one of these.
    sums: Vec<Sum>,
    kind: Kind,
}

enum Kind {
    /// Read each time.
    Small,
    /// The pages of the guest's memory.
    Pages(MemoryLayer),
    Layer,
}

impl Store {
    /// Check everything that the snapshot `id` needs: its files, those of the snapshots that it builds on, and its
    /// layers. Returns these snapshots, base first. `progress` is told of content that must be read. The caller has a
    /// [`Pin`](super::Pin).
    ///
    /// # Errors
    /// If something is missing, damaged, of a newer skiff or of another processor; it says which file, and what to do.
    pub fn verify(&self, id: Id, progress: Progress<'_>) -> Result<Vec<Manifest>, StoreError> {
        let chain = self.chain(id)?;
        let Some(last) = chain.last() else { return Err(StoreError::Unknown(id)) };
        let here = std::env::consts::ARCH;
        if last.arch != here {
            return Err(StoreError::Arch { name: last.name.clone(), found: last.arch.clone(), here });
        }
        let layers = self.layers_of(last)?;
        let owners = if layers.is_empty() { Vec::new() } else { self.owners(&chain, &layers)? };
        for manifest in &chain {
            let only_memory = manifest.id != id;
            self.check(manifest, &last.name, only_memory, &layers, progress)?;
        }
        for owner in owners.iter().filter(|owner| !chain.iter().any(|manifest| manifest.id == owner.id)) {
            self.check_files(owner, &last.name, self.layer_files(owner, &layers), progress)?;
        }
        Ok(chain)
    }

    /// The layers that the disks of `manifest` are made of, as far as they are the store's.
    fn layers_of(&self, manifest: &Manifest) -> Result<Vec<Id>, StoreError> {
        let mut layers = Vec::new();
        for point in &manifest.disks {
            let mut next = point.layer;
            while let Some(layer) = next {
                if layers.contains(&layer) {
                    break;
                }
                layers.push(layer);
                next = contents::layer_below(self.storage(), &self.places.layer(layer)).map_err(|error| {
                    let why = match &error {
                        StoreError::Disk(DiskError::Missing { .. }) => GONE.to_owned(),
                        error => Chained(error).to_string(),
                    };
                    self.damaged(&self.places.layer(layer), &manifest.name, &why)
                })?;
            }
        }
        Ok(layers)
    }

    /// The snapshots that say what these layers must be. Looked for beyond `chain` only if that does not say it.
    fn owners(&self, chain: &[Manifest], layers: &[Id]) -> Result<Vec<Manifest>, StoreError> {
        let of = |all: &[Manifest], layer: &Id| all.iter().any(|manifest| names(manifest, *layer));
        if layers.iter().all(|layer| of(chain, layer)) {
            return Ok(Vec::new());
        }
        let (mut all, _) = self.all()?;
        all.retain(|manifest| layers.iter().any(|layer| names(manifest, *layer)));
        Ok(all)
    }

    fn check(
        &self,
        manifest: &Manifest,
        snapshot: &str,
        only_memory: bool,
        layers: &[Id],
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let memory = &manifest.memory;
        let mut wanted = self.layer_files(manifest, layers);
        for (name, sum) in &manifest.files {
            let kind = match name {
                name if *name == memory.data => Kind::Pages(self.memory_layer(manifest)),
                name if *name == memory.index => Kind::Small,
                _ if only_memory => continue,
                _ => Kind::Small,
            };
            let path = self.file(manifest.id, name);
            wanted.push(Wanted { key: name.clone(), path, sums: vec![*sum], kind });
        }
        self.check_files(manifest, snapshot, wanted, progress)
    }

    /// The layers among `layers` that `manifest` says something of.
    fn layer_files(&self, manifest: &Manifest, layers: &[Id]) -> Vec<Wanted> {
        let points = manifest.disks.iter().filter_map(|point| Some((point.layer?, point)));
        let points = points.filter(|(layer, point)| layers.contains(layer) && point.sum.is_some());
        let wanted = |(layer, point): (Id, &DiskPoint)| Wanted {
            key: format!("layer {layer}"),
            path: self.places.layer(layer),
            sums: point.sum.into_iter().chain(point.merging).collect(),
            kind: Kind::Layer,
        };
        points.map(wanted).collect()
    }

    fn check_files(
        &self,
        manifest: &Manifest,
        snapshot: &str,
        wanted: Vec<Wanted>,
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let path = self.file(manifest.id, CHECKED);
        let before = self.checked(&path);
        let mut now = before.clone();
        for file in wanted {
            self.check_file(&file, snapshot, &mut now, progress)?;
        }
        if now != before {
            self.note_checked(&path, &now);
        }
        Ok(())
    }

    fn check_file(
        &self,
        file: &Wanted,
        snapshot: &str,
        checked: &mut Checked,
        progress: Progress<'_>,
    ) -> Result<(), StoreError> {
        let damaged = |why: &str| self.damaged(&file.path, snapshot, why);
        let (len, stamp) = self.stamp(&file.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged(GONE),
            _ => StoreError::io("read", &file.path)(error),
        })?;
        let fits: Vec<&Sum> = file.sums.iter().filter(|sum| sum.len == len).collect();
        if fits.is_empty() {
            let must = file.sums.first().map_or(0, |sum| sum.len);
            return Err(damaged(&format!("it has {len} bytes, and must have {must}")));
        }
        let good = |stamp: &Stamp| fits.iter().any(|sum| sum.crc32 == stamp.crc32);
        let known = checked.files.get(&file.key).filter(|known| good(known));
        if let (Some(known), Some(stamp), false) = (known, stamp, matches!(file.kind, Kind::Small))
            && *known == (Stamp { crc32: known.crc32, ..stamp })
        {
            return Ok(());
        }
        let sum = match &file.kind {
            Kind::Pages(layer) => {
                contents::memory_sum(self.storage(), layer, progress).map_err(|error| match error {
                    MemoryFileError::Corrupted { .. } => damaged(WRONG),
                    error => damaged(&Chained(&error).to_string()),
                })
            }
            Kind::Small | Kind::Layer => self.sum(&file.path),
        };
        let sum = sum?;
        if !fits.iter().any(|fit| fit.crc32 == sum.crc32) {
            return Err(damaged(WRONG));
        }
        if let (Some(stamp), false) = (stamp, matches!(file.kind, Kind::Small)) {
            checked.files.insert(file.key.clone(), Stamp { crc32: sum.crc32, ..stamp });
        }
        Ok(())
    }

    /// Its length, and its stamp if the file system has such.
    fn stamp(&self, path: &Path) -> io::Result<(u64, Option<Stamp>)> {
        let file = self.storage.open(path, false)?;
        let Some(fd) = file.fd() else { return Ok((file.len()?, None)) };
        let stat = rustix::fs::fstat(fd)?;
        let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        let stamp = Stamp {
            device: stat.st_dev,
            inode: stat.st_ino,
            len,
            modified: time(stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: time(stat.st_ctime, stat.st_ctime_nsec as i64),
            crc32: 0,
        };
        Ok((len, Some(stamp)))
    }

    /// What was found in order before. What cannot be read is checked again.
    fn checked(&self, path: &Path) -> Checked {
        let read = || sealed::unseal(&sealed::read_small(self.storage(), path).ok()?, FORMAT).ok();
        read().unwrap_or(Checked { format: FORMAT, ..Checked::default() })
    }

    /// Whoever may only read checks again next time.
    fn note_checked(&self, path: &Path, checked: &Checked) {
        let written =
            sealed::seal(checked).and_then(|text| sealed::replace_soon(self.storage(), path, &text));
        if let Err(error) = written {
            log::info!("{} cannot be written: {error}", path.display());
        }
    }

    /// The maker of a snapshot has just written what its manifest says: nobody needs to read it again.
    pub(super) fn note_made(&self, manifest: &Manifest, dir: &Path) {
        let mut checked = Checked { format: FORMAT, ..Checked::default() };
        let mut note = |key: String, path: &Path, sum: Option<Sum>| {
            if let (Some(sum), Ok((_, Some(stamp)))) = (sum, self.stamp(path)) {
                checked.files.insert(key, Stamp { crc32: sum.crc32, ..stamp });
            }
        };
        let data = &manifest.memory.data;
        note(data.clone(), &dir.join(data), manifest.files.get(data).copied());
        for point in &manifest.disks {
            if let Some(layer) = point.layer {
                note(format!("layer {layer}"), &self.places.layer(layer), point.sum);
            }
        }
        if !checked.files.is_empty() {
            self.note_checked(&dir.join(CHECKED), &checked);
        }
    }

    fn damaged(&self, path: &Path, snapshot: &str, why: &str) -> StoreError {
        StoreError::Damaged { path: path.to_owned(), snapshot: snapshot.to_owned(), why: why.to_owned() }
    }
}
