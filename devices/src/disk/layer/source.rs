//! What a disk holds, wherever it is from: read once, to become a layer or to be written as it is.
//!
//! A [`Source`] is read by one thread. [`Content`] is one that reads what skiff's own disks are made of; other formats are read elsewhere.

use std::io;
use std::path::Path;

use super::super::DiskError;
use super::super::chain;
use super::super::layers::{Layers, Place};
use super::super::qcow2::{Below as _, CLUSTER_BITS, Malformed, Top};
use super::create;
use super::merge::Unknown;
use crate::storage::Storage;

const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// A disk's content.
pub trait Source {
    /// Its size in bytes, a multiple of [`SECTOR`](super::super::SECTOR).
    fn size(&self) -> u64;

    /// Whether what is at `offset` is zeroes as far as that is known without reading it, and for how many of the `len` bytes from there
    /// on that holds; at least one.
    ///
    /// # Errors
    /// If it is damaged, or the host fails.
    fn extent(&mut self, offset: u64, len: u64) -> io::Result<(bool, u64)>;

    /// Fill `data` with what is at `offset`.
    ///
    /// # Errors
    /// If it is damaged, `data` does not lie in it, or the host fails.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()>;
}

/// What a raw or qcow2 file holds, with all that it lies on.
#[derive(Debug)]
pub struct Content(Layers);

impl Content {
    /// Open a file and all that it lies on.
    ///
    /// # Errors
    /// If one of them cannot be used; each names it.
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<Self, DiskError> {
        Ok(Self(chain::open_readonly(storage, path)?))
    }

    /// Open a qcow2 file by itself. No other file is opened, whatever it says.
    ///
    /// # Errors
    /// If it cannot be used, or lies on another one.
    pub fn open_alone(storage: &dyn Storage, path: &Path) -> Result<Self, DiskError> {
        let image = chain::open_image(storage, path, false)?;
        if image.header.backing.is_some() {
            let source = Malformed::Unsupported("a backing file, which is not opened for it");
            return Err(DiskError::Image { path: path.to_owned(), source });
        }
        Ok(Self(chain::alone(image)))
    }
}

impl Source for Content {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn extent(&mut self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        let (place, found) = self.0.find(offset, len)?;
        Ok((matches!(place, Place::Absent | Place::Zero), found.max(1)))
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, data)
    }
}

/// Make at `out` one qcow2 file, on nothing, of what `source` holds; what is zeroes takes no room. `progress` is told how many bytes of the
/// disk are done, and of how many.
///
/// # Errors
/// If the source cannot be read, or the host fails; then nothing stays at `out`.
pub fn pack(
    storage: &dyn Storage,
    source: &mut dyn Source,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> Result<(), DiskError> {
    create(storage, out, None, source.size())?;
    let packed = chain::open_image(storage, out, true).and_then(|image| {
        let top = Top::new(image).map_err(chain::malformed(out))?;
        let packed = pack_clusters(&top, source, progress);
        let packed = packed.and_then(|()| top.close()).and_then(|()| top.image.file.sync());
        packed.map_err(|source| DiskError::Copy { path: out.to_owned(), source })
    });
    if packed.is_err() {
        // The first error is the one that matters.
        let _ = storage.remove_file(out);
    }
    packed
}

fn pack_clusters(
    top: &Top,
    source: &mut dyn Source,
    progress: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let size = top.size();
    let mut buffer = vec![0; CLUSTER as usize];
    let mut at = 0;
    while at < size {
        let (zero, found) = source.extent(at, size - at)?;
        let whole = if found >= size - at { size - at } else { found - found % CLUSTER };
        if zero && whole > 0 {
            at += whole;
        } else {
            let data = buffer.get_mut(..CLUSTER.min(size - at) as usize).unwrap_or_default();
            source.read(at, data)?;
            if data.iter().any(|byte| *byte != 0) {
                top.write(&Unknown, at, data)?;
            }
            at += data.len() as u64;
        }
        progress(at, size)?;
    }
    Ok(())
}
