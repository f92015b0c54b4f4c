//! Which format a file has, by its content.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::error::{DiskError, read_failed};
use super::filesystem::{self, FileSystem};
use super::{Format, vhdx, vmdk};
use crate::compress;

/// How much of a file is looked at, in bytes: up to behind btrfs' superblock.
const HEAD: usize = 68 << 10;

const CONVERT: &str = "convert it with `qemu-img convert -O qcow2 FILE NEW`";

/// Known, and not read: where, what, its name and what to do.
const OTHERS: [(usize, &[u8], &str, &str); 9] = [
    (0, b"QED\0", "a QED disk", CONVERT),
    (0, b"COWD", "a sparse disk of an old ESX host", CONVERT),
    (0, b"conectix", "a VHD disk", CONVERT),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VirtualBox disk (VDI)", CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels disk", CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels disk", CONVERT),
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)", "decrypt it first, with `qemu-img convert` or cryptsetup"),
    (
        0x8001,
        b"CD001",
        "an ISO image, a medium to install from",
        "get the distribution's disk for clouds, qcow2 or raw",
    ),
    (0, b"hsqs", "a squashfs file system", "import it as a tar archive, as `sqfs2tar` makes one"),
];

/// Open a regular file, and no link to a device or pipe: opening one could wait for ever.
pub(super) fn open(path: &Path) -> Result<File, DiskError> {
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
    let file = file.map_err(read_failed(path))?;
    if !file.metadata().map_err(read_failed(path))?.is_file() {
        return Err(DiskError::NotAFile { path: path.to_owned() });
    }
    Ok(file)
}

/// The format of a file that begins so, compressed or not; `None` if it is no disk as far as can be seen.
///
/// # Errors
/// If it is a disk of a format that is not read.
pub(super) fn format(head: &[u8], path: &Path) -> Result<Option<Format>, DiskError> {
    if compress::Format::of(head) == compress::Format::None {
        return plain(head, path);
    }
    let mut inside = Vec::new();
    if let Ok(reader) = compress::Reader::new(head) {
        // The head of a packed file ends somewhere: what could be unpacked until then is enough.
        let _ = reader.take(HEAD as u64).read_to_end(&mut inside);
    }
    plain(&inside, path)
}

fn plain(head: &[u8], path: &Path) -> Result<Option<Format>, DiskError> {
    let starts = |magic: &[u8]| head.starts_with(magic);
    if starts(b"QFI\xfb") {
        return Ok(Some(Format::Qcow2));
    }
    if starts(vmdk::MAGIC) || starts(vmdk::DESCRIPTOR) {
        return Ok(Some(Format::Vmdk));
    }
    if starts(vhdx::MAGIC) {
        return Ok(Some(Format::Vhdx));
    }
    for (at, magic, format, fix) in OTHERS {
        if head.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return Err(DiskError::Format { path: path.to_owned(), format, fix });
        }
    }
    let partitioned = head.get(510..512) == Some(&[0x55, 0xaa]);
    let bare = filesystem::of(head) != FileSystem::Unknown;
    Ok((partitioned || bare).then_some(Format::Raw))
}

/// How a file begins.
///
/// # Errors
/// If it cannot be read.
pub(super) fn head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD];
    let mut len = 0;
    while let Some(rest) = head.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, len as u64)? {
            0 => break,
            read => len += read,
        }
    }
    head.truncate(len);
    Ok(head)
}
