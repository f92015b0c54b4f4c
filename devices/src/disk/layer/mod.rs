//! Layers as files: made, looked at, repaired, merged and put together.
//!
//! Nothing here is called while a guest uses the file, but for those that are only read. All of it goes through a [`Storage`]. Files
//! that are made are durable when the call returns; their names are once the caller has synced the directory.

mod merge;
mod source;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use super::qcow2::Format;
pub use merge::{flatten, gather, merge};
pub use source::{Content, Source, pack};

use super::DiskError;
use super::chain;
use super::qcow2::{self, Image, Mapping, Top};
use crate::storage::Storage;

/// What a new layer lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// As it is written in the layer: absolute, or relative to the layer's directory.
    pub name: PathBuf,
    /// The file's format.
    pub format: Format,
}

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// By its first bytes.
    pub format: Format,
    /// Of the disk that it holds, in bytes.
    pub size: u64,
    /// Of the file, in bytes.
    pub len: u64,
    /// Bytes of the disk that lie in this file. Of a raw file all of them.
    pub allocated: u64,
    /// The file below, as it is written.
    pub backing: Option<PathBuf>,
    /// The format of the file below, if it is written.
    pub backing_format: Option<Format>,
}

/// Make an empty layer of `size` bytes at `path`, durable.
///
/// # Errors
/// If there is a file, the size or the name cannot be had, or the host fails; then no file stays.
pub fn create(storage: &dyn Storage, path: &Path, base: Option<&Base>, size: u64) -> Result<(), DiskError> {
    let file = storage.create(path).map_err(make_failed(path))?;
    let base = base.map(|base| (base.name.clone(), base.format));
    let made = qcow2::create(&*file, size, base, qcow2::CLUSTER_BITS).map_err(chain::malformed(path));
    if made.is_err() {
        // The first error is the one that matters.
        let _ = storage.remove_file(path);
    }
    made
}

/// Look at a file, raw or qcow2. It is not locked.
///
/// # Errors
/// If it cannot be read, or is damaged.
pub fn inspect(storage: &dyn Storage, path: &Path) -> Result<Info, DiskError> {
    let format = chain::sniff(storage, path)?;
    let file = storage.open(path, false).map_err(|source| chain::open_failed(path, true, source))?;
    let len = file.len().map_err(chain::read_failed(path))?;
    if format == Format::Raw {
        return Ok(Info { format, size: len, len, allocated: len, backing: None, backing_format: None });
    }
    let image = Image::new(file, path).map_err(chain::malformed(path))?;
    Ok(Info {
        format,
        size: image.header.size,
        len,
        allocated: allocated(&image).map_err(chain::malformed(path))?,
        backing: image.header.backing,
        backing_format: image.header.backing_format,
    })
}

/// What the file at `path` lies on, as it is written there; `None` if it is raw or lies on nothing. Reads the header alone.
///
/// # Errors
/// If it cannot be read, or is damaged.
pub fn backing(storage: &dyn Storage, path: &Path) -> Result<Option<PathBuf>, DiskError> {
    if chain::sniff(storage, path)? == Format::Raw {
        return Ok(None);
    }
    let file = storage.open(path, false).map_err(|source| chain::open_failed(path, true, source))?;
    Ok(Image::new(file, path).map_err(chain::malformed(path))?.header.backing)
}

/// Bytes of the disk that lie in the file itself.
fn allocated(image: &Image) -> Result<u64, qcow2::Malformed> {
    let mut entries = [0; 512];
    let (mut first, mut clusters) = (0, 0);
    while first < image.clusters() {
        let count = (image.clusters() - first).min(512) as usize;
        let part = entries.get_mut(..count).unwrap_or_default();
        image.entries(first, part)?;
        for entry in part.iter().filter(|entry| **entry != 0) {
            let mapping = image.mapping(*entry, image.len)?;
            clusters += u64::from(matches!(mapping, Mapping::Data(_) | Mapping::Packed(..)));
        }
        first += count as u64;
    }
    Ok(clusters * image.header.cluster())
}

/// Repair what a crash may have left in a qcow2 file. Afterwards `qemu-img check` finds nothing.
///
/// # Errors
/// If it is in use, damaged in another way, or the host fails.
pub fn repair(storage: &dyn Storage, path: &Path) -> Result<(), DiskError> {
    let image = chain::open_image(storage, path, true)?;
    let top = Top::new(image).map_err(chain::malformed(path))?;
    let closed = top.close().and_then(|()| top.image.file.sync());
    closed.map_err(|source| DiskError::Flush { path: path.to_owned(), source })
}

/// The CRC-32 (IEEE) of a file's bytes.
///
/// # Errors
/// If it cannot be read.
pub fn sum(storage: &dyn Storage, path: &Path) -> Result<u32, DiskError> {
    let file = storage.open(path, false).map_err(|source| chain::open_failed(path, true, source))?;
    let mut sum = crc32fast::Hasher::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    let len = file.len().map_err(chain::read_failed(path))?;
    while at < len {
        // At most the buffer's length.
        let part = buffer.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
        let part = buffer.get_mut(..part).unwrap_or_default();
        file.read_exact_at(part, at).map_err(chain::read_failed(path))?;
        sum.update(part);
        at += part.len() as u64;
    }
    Ok(sum.finalize())
}

fn make_failed(path: &Path) -> impl FnOnce(std::io::Error) -> DiskError {
    |source| DiskError::Make { path: path.to_owned(), source }
}
