//! What a file has to say about itself before it is used as a disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags};

use super::error::DiskError;
use super::{Alignment, Backing, SECTOR};

/// Image formats that would be destroyed if a guest wrote to them as a raw disk, by their first bytes.
const FORMATS: [(&[u8], &str); 4] =
    [(b"vhdxfile", "VHDX"), (b"KDMV", "VMDK"), (b"# Disk DescriptorFile", "VMDK"), (b"QED\0", "QED")];

/// The largest block that is believed, in bytes.
const MAX_BLOCK: u32 = 64 * 1024;

/// Block sizes in bytes: powers of two, `physical >= logical >= SECTOR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub logical: u32,
    pub physical: u32,
}

/// Tell a file from a block device from all else, before it is opened: opening a pipe could wait for ever.
///
/// # Errors
/// If there is nothing, or no disk, at `path`.
pub(super) fn backing(path: &Path) -> Result<Backing, DiskError> {
    let metadata = std::fs::metadata(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => DiskError::Missing { path },
            io::ErrorKind::PermissionDenied => DiskError::Permission { path, need: "reach" },
            _ => DiskError::Open { path, source },
        }
    })?;
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(Backing::File)
    } else if kind.is_block_device() {
        Ok(Backing::BlockDevice)
    } else if kind.is_dir() {
        Err(DiskError::Directory { path: path.to_owned() })
    } else {
        Err(DiskError::NotADisk { path: path.to_owned() })
    }
}

/// The disk's size in bytes. Seeking to the end works for files and for block devices alike.
///
/// # Errors
/// If it is zero or no multiple of [`SECTOR`].
pub(super) fn size(mut file: &File, path: &Path) -> Result<u64, DiskError> {
    let path = path.to_owned();
    match file.seek(SeekFrom::End(0)) {
        Ok(0) => Err(DiskError::Empty { path }),
        Ok(size) if size.is_multiple_of(SECTOR) => Ok(size),
        Ok(size) => Err(DiskError::Size { path, size }),
        Err(source) => Err(DiskError::Read { path, source }),
    }
}

/// Refuse images of formats that are known and not supported, by their first bytes.
///
/// # Errors
/// If the disk is such an image.
pub(super) fn check_known(head: &[u8], path: &Path) -> Result<(), DiskError> {
    match FORMATS.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, format)) => Err(DiskError::Format { path: path.to_owned(), format }),
        None => Ok(()),
    }
}

/// The block sizes of a device, or of the file system under a file. A host that does not say gets the usual ones.
pub(super) fn blocks(file: &File, backing: Backing) -> Blocks {
    let usual = SECTOR as u32;
    let (logical, physical) = match backing {
        Backing::File => {
            let preferred = file.metadata().map_or(0, |metadata| metadata.blksize());
            // Network file systems prefer transfers far larger than anything that they would call a block.
            (usual, u32::try_from(preferred).unwrap_or(usual).min(4096))
        }
        Backing::BlockDevice => (block_ioctl(file, libc::BLKSSZGET), block_ioctl(file, libc::BLKPBSZGET)),
    };
    let logical = sane(logical).unwrap_or(usual);
    Blocks { logical, physical: sane(physical).unwrap_or(logical).max(logical) }
}

/// What direct I/O on `file` asks for: `statx` knows since Linux 6.1, before that it is the logical block size
/// of the device below, for which a page is a safe guess.
pub(super) fn alignment(file: &File, logical: u32) -> Alignment {
    let told = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let told = told.filter(|stat| stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    let offset = told.and_then(|stat| sane(stat.stx_dio_offset_align)).unwrap_or(logical);
    let memory = told.map(|stat| stat.stx_dio_mem_align).filter(|align| align.is_power_of_two());
    Alignment { memory: memory.filter(|align| *align <= MAX_BLOCK).unwrap_or(offset), offset }
}

fn sane(block: u32) -> Option<u32> {
    (block.is_power_of_two() && (SECTOR as u32..=MAX_BLOCK).contains(&block)).then_some(block)
}

/// A block size as the kernel tells it; 0 if it does not.
fn block_ioctl(file: &File, request: libc::Ioctl) -> u32 {
    let mut value: libc::c_uint = 0;
    // SAFETY: both requests write one int, for which `value` has the room.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &mut value) };
    if result == 0 { value } else { 0 }
}
