//! VMware's disks (Virtual Disk Format 5.0): one sparse file with its descriptor in it, packed or not, or a descriptor with one flat file
//! beside it.
//!
//! ```text
//! header ─► grain directory ─► grain tables ─► grains (or nothing, or zeroes)
//! ```
//! In a stream-optimized file each grain is packed behind a marker, and the directory's place may be in a second header at the end.

mod descriptor;
mod sparse;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::path::Path;

use devices::disk::SECTOR;
use devices::disk::layer::Source;
use rustix::fs::{Mode, OFlags};

use self::descriptor::{Descriptor, Kind};
use super::bytes::Stored;
use super::error::Malformed;
use super::raw::Raw;

/// The first bytes of a sparse file.
pub(super) const MAGIC: &[u8] = b"KDMV";
/// The first bytes of a descriptor that is a file of its own.
pub(super) const DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";
/// The longest descriptor, in bytes.
const MAX_DESCRIPTOR: u64 = 1 << 20;

/// What the file at `path`, open as `file`, holds.
///
/// # Errors
/// If it needs other files, is damaged, or the host fails.
pub(super) fn open(file: File, path: &Path) -> io::Result<Box<dyn Source>> {
    let mut head = [0; 4];
    file.fill(&mut head, 0)?;
    if head == *MAGIC {
        return Ok(Box::new(sparse::Sparse::open(file)?));
    }
    let len = file.length()?;
    if len > MAX_DESCRIPTOR {
        return Err(Malformed::Value { what: "descriptor's length", value: len }.into());
    }
    let text = file.bytes(0, len as usize, "the descriptor")?;
    flat(&Descriptor::parse(&text)?, path)
}

/// The one flat file beside a descriptor. Nothing else is ever opened, and no link is followed: a descriptor from elsewhere must not bring
/// the user's own files into a guest.
fn flat(descriptor: &Descriptor, path: &Path) -> io::Result<Box<dyn Source>> {
    let (extent, name) = match &descriptor.kind {
        Kind::Flat { extent, name } => (extent, name),
        Kind::Sparse { name, .. } => return Err(Malformed::NeedsFile(name.clone()).into()),
    };
    let plain = !name.contains(['/', '\0']) && name.len() > ".vmdk".len() && name.len() < 256;
    let own = path.file_name().is_some_and(|own| own == name.as_str());
    if !plain || own || !name.ends_with(".vmdk") {
        return Err(Malformed::NeedsFile(name.clone()).into());
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = File::open(dir)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let beside = |error: io::Error| {
        let text = format!("the file {name:?} beside it, which holds its content, cannot be opened: {error}");
        io::Error::new(error.kind(), text)
    };
    let opened = rustix::fs::openat(&dir, name.as_str(), flags, Mode::empty());
    let file = File::from(opened.map_err(|error| beside(error.into()))?);
    if !file.metadata()?.is_file() {
        return Err(Malformed::NeedsFile(name.clone()).into());
    }
    let bytes = |sectors: u64| {
        sectors.checked_mul(SECTOR).ok_or(Malformed::Value { what: "extent's length", value: sectors })
    };
    Ok(Box::new(Raw::part(file, bytes(extent.offset)?, bytes(extent.sectors)?)?))
}
