//! Disks of images: qcow2 files on nothing, or on another blob.

use std::path::Path;

use devices::disk::layer::{self, Base, Format};

use super::{Store, StoreError, file_name};
use crate::manifest::Blob;

/// The most layers of one disk.
const MOST_LAYERS: usize = 1000;

impl Store {
    /// A disk of the content of the raw file at `raw`, on nothing. Holes and zeroes take no place. `progress` is told how many bytes are done,
    /// and of how many.
    ///
    /// # Errors
    /// If it is no raw disk, there is no room, or the host fails.
    pub fn disk_from_raw(&self, raw: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Blob, StoreError> {
        // Its first bytes may be a guest's, and would lead to other files of the host.
        let info = layer::inspect(&*self.storage, raw)?;
        if info.format != Format::Raw {
            return Err(StoreError::NotRaw { path: raw.to_owned() });
        }
        self.room(allocated(raw).unwrap_or(info.size))?;
        let scratch = self.scratch()?;
        let out = scratch.path().join("disk");
        layer::flatten(&*self.storage, raw, &out, progress)?;
        self.adopt(&out, None, &mut |_| ())
    }

    /// A disk that has what the layers at `layers`, the lowest first, have themselves, on the disk `below`, which the lowest of them lies on.
    ///
    /// # Errors
    /// If a file cannot be used, there is no room, or the host fails.
    pub fn disk_on(
        &self,
        layers: &[&Path],
        below: &Blob,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Blob, StoreError> {
        let needed = layers.iter().filter_map(|layer| allocated(layer)).fold(0, u64::saturating_add);
        self.room(needed)?;
        let scratch = self.scratch()?;
        let out = scratch.path().join("disk");
        let base = Base { name: file_name(&below.digest).into(), format: Format::Qcow2 };
        layer::gather(&*self.storage, layers, &base, &out, progress)?;
        self.adopt(&out, None, &mut |_| ())
    }

    /// The same of all layers from `top` down to `below`, which they lie on. Those that are named without a directory are in `dir`.
    ///
    /// # Errors
    /// As [`Store::disk_on`]; and if `top` does not lie on `below`.
    pub fn disk_over(
        &self,
        top: &Path,
        dir: &Path,
        below: &Blob,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Blob, StoreError> {
        let end = self.blob_path(&below.digest);
        let mut layers = vec![top.to_owned()];
        loop {
            let lowest = layers.last().map_or(top, |layer| layer.as_path());
            let lower = layer::backing(&*self.storage, lowest)?;
            let lower = lower.map(|lower| dir.join(lower));
            match lower {
                Some(lower) if same(&lower, &end) => break,
                Some(lower) if layers.len() < MOST_LAYERS => layers.push(lower),
                _ => return Err(StoreError::NotOver { path: top.to_owned(), below: end }),
            }
        }
        layers.reverse();
        let layers: Vec<&Path> = layers.iter().map(std::path::PathBuf::as_path).collect();
        self.disk_on(&layers, below, progress)
    }
}

/// Whether two paths lead to one file.
fn same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let id = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    one == other || id(one).is_some_and(|one| Some(one) == id(other))
}

/// What a file takes of its file system, in bytes.
fn allocated(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Some(std::fs::metadata(path).ok()?.blocks().saturating_mul(512))
}
