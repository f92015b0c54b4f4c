//! Two layers made one, and a chain made a single file.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::super::chain;
use super::super::layers::{Layers, Place};
use super::super::member::{Body, Member};
use super::super::qcow2::{Below, CLUSTER_BITS, Image, Malformed, Top};
use super::{Base, DiskError, Format, create};
use crate::storage::Storage;

const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// Make at `out` one layer that holds what `upper` and `lower` hold together, on what `lower` lies on. `upper` must lie on `lower`; neither
/// is changed. `progress` is told how many bytes of the disk are done, and of how many.
///
/// # Errors
/// If a file cannot be used, or the host fails; then nothing stays at `out`.
pub fn merge(
    storage: &dyn Storage,
    upper: &Path,
    lower: &Path,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DiskError> {
    let (lower_image, upper_image) = (open(storage, lower)?, open(storage, upper)?);
    let below = &lower_image.header;
    let base = below
        .backing
        .clone()
        .map(|name| Base { name, format: below.backing_format.unwrap_or(Format::Qcow2) });
    let layers = stacked([lower_image, upper_image]);
    copy(storage, out, base.as_ref(), layers.size(), &layers, progress)
}

/// Make at `out` one layer that holds what the layers at `layers`, the lowest first, hold together without what that lies on, on `base`, which must
/// have the content of what that lies on.
///
/// # Errors
/// If a file cannot be used, or the host fails; then nothing stays at `out`.
pub fn gather(
    storage: &dyn Storage,
    layers: &[&Path],
    base: &Base,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DiskError> {
    let images: Vec<Image> = layers.iter().map(|path| open(storage, path)).collect::<Result<_, _>>()?;
    let layers = stacked(images);
    copy(storage, out, Some(base), layers.size(), &layers, progress)
}

/// A file that was made by [`create`].
fn open(storage: &dyn Storage, path: &Path) -> Result<Image, DiskError> {
    let image = chain::open_image(storage, path, false)?;
    if image.header.cluster() != CLUSTER {
        // Only layers are merged, and those are made here.
        let source = Malformed::Unsupported("another cluster size than 64 KiB, which no layer has");
        return Err(DiskError::Image { path: image.path.clone(), source });
    }
    Ok(image)
}

/// Layers on each other, the lowest first, and nothing below them.
fn stacked(images: impl IntoIterator<Item = Image>) -> Layers {
    let member = |image| Arc::new(Member::new(Body::Image(Box::new(image))));
    Layers::new(images.into_iter().map(member).collect())
}

/// Make at `out` one qcow2 file, on nothing, with the content of the disk whose top is at `path`.
///
/// # Errors
/// If a file cannot be used, or the host fails; then nothing stays at `out`.
pub fn flatten(
    storage: &dyn Storage,
    path: &Path,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DiskError> {
    let layers = chain::open_readonly(storage, path)?;
    copy(storage, out, None, layers.size(), &layers, progress)
}

/// Copy what `layers` have to a new layer at `out`.
fn copy(
    storage: &dyn Storage,
    out: &Path,
    base: Option<&Base>,
    size: u64,
    layers: &Layers,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), DiskError> {
    create(storage, out, base, size)?;
    let copied = chain::open_image(storage, out, true).and_then(|image| {
        let top = Top::new(image).map_err(chain::malformed(out))?;
        let copied = copy_clusters(&top, base.is_some(), layers, progress);
        let copied = copied.and_then(|()| top.close()).and_then(|()| top.image.file.sync());
        copied.map_err(|source| DiskError::Copy { path: out.to_owned(), source })
    });
    if copied.is_err() {
        // The first error is the one that matters.
        let _ = storage.remove_file(out);
    }
    copied
}

fn copy_clusters(
    top: &Top,
    has_base: bool,
    layers: &Layers,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<()> {
    let size = top.size();
    let mut buffer = vec![0; CLUSTER as usize];
    let mut at = 0;
    while at < size {
        let len = CLUSTER.min(size - at);
        let absent = matches!(layers.find(at, len)?, (Place::Absent, found) if found == len);
        if !absent {
            let data = buffer.get_mut(..len as usize).unwrap_or_default();
            let mut zero = layers.is_zero(at, len)?;
            if !zero {
                layers.read(at, data)?;
                zero = data.iter().all(|byte| *byte == 0);
            }
            match zero {
                true if has_base => top.erase(&Unknown, at..at + len, false)?,
                true => {}
                false => top.write(&Unknown, at, data)?,
            }
        }
        at += len;
        progress(at, size);
    }
    Ok(())
}

/// What lies below a copy: nothing that it may count on.
pub(super) struct Unknown;

impl Below for Unknown {
    /// Only of what lies behind the disk's end: clusters are copied whole.
    fn read(&self, _offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0);
        Ok(())
    }

    fn is_zero(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(false)
    }
}
