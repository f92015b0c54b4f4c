//! [`make`] and [`check`].

use std::fs::File;
use std::path::Path;

use super::run::{command, run, said, with_file};
use super::{Error, io};

/// What Debian 11's kernel (5.10) and e2fsck know. Later defaults, such as `orphan_file`, are left out.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// Bytes of a block.
const BLOCK: u64 = 4096;
/// How far it can grow while it is mounted, in blocks, by tables that are kept free for that: 4 TiB. Kernels find other ways beyond.
const GROWS_TO: u64 = (4 << 40) / BLOCK;
/// Bytes of disk for which there is an inode, unless there are more files than that.
const INODE_RATIO: u64 = 16 << 10;
/// Journal and other tables, in bytes.
const TABLES: u64 = 128 << 20;
const MIB: u64 = 1 << 20;

/// How a file system is made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Making {
    /// Its label, at most 16 bytes.
    pub label: String,
    /// Bytes that it has at least. It is sparse: what is not used takes no room.
    pub size: u64,
    /// Bytes of data that it has to hold, as [`crate::tree::Unpacked`] counts them.
    pub bytes: u64,
    /// Files, directories and links that it has to hold.
    pub entries: u64,
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Made {
    /// Its size in bytes.
    pub size: u64,
}

impl Making {
    /// Its size in bytes and that for which there is an inode.
    fn sizes(&self) -> (u64, u64) {
        // The last block of each file, an inode, and names.
        let each = self.entries.saturating_mul(BLOCK + 512);
        let need = self.bytes.saturating_add(each);
        let need = need.saturating_add(need / 16).saturating_add(TABLES);
        let size = need.max(self.size).checked_next_multiple_of(MIB).unwrap_or(u64::MAX / MIB * MIB);
        let inodes = self.entries.saturating_add(self.entries / 4).saturating_add(1000);
        (size, (size / inodes).clamp(1024, INODE_RATIO))
    }
}

/// Makes a sparse file `image` with an ext4 file system that holds `tree`, with its owners, modes, times, attributes and hard links as
/// the caller sees them. It can grow to 4 TiB while it is mounted. Nothing is reserved for root.
///
/// # Errors
/// [`Error`].
pub fn make(tree: &Path, image: &Path, making: &Making) -> Result<Made, Error> {
    const PROGRAM: &str = "mkfs.ext4";
    let (size, ratio) = making.sizes();
    let file = File::create_new(image).map_err(io("create", image))?;
    file.set_len(size).map_err(io("enlarge", image))?;
    drop(file);
    // What is behind a file that is new is zero already: neither this nor a guest has to write zeroes. Before e2fsprogs 1.47 that
    // could not be said.
    let mut said_of = String::new();
    for zeroed in [",assume_storage_prezeroed=1", ""] {
        let mut command = command(PROGRAM);
        command.args(["-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-J", "size=64", "-O", FEATURES]);
        command.args(["-i", &ratio.to_string(), "-L", &making.label]);
        command
            .args(["-E", &format!("resize={GROWS_TO},lazy_itable_init=0,root_owner=0:0,nodiscard{zeroed}")]);
        let output = run(PROGRAM, {
            command.arg("-d").arg(tree).arg(image);
            command
        })?;
        if output.success {
            return Ok(Made { size });
        }
        said_of = output.stderr;
        if !said_of.contains("assume_storage_prezeroed") {
            break;
        }
    }
    Err(Error::Failed { program: PROGRAM, said: said(&said_of) })
}

/// Checks the whole file system that begins `offset` bytes into the file `image`, and changes nothing.
///
/// # Errors
/// [`Error::Failed`] with what is wrong in it.
pub fn check(image: &Path, offset: u64) -> Result<(), Error> {
    const PROGRAM: &str = "e2fsck";
    let file = File::open(image).map_err(io("open", image))?;
    let mut command = command(PROGRAM);
    let device = with_file(&mut command, &file, offset)?;
    command.args(["-f", "-n", &device]);
    let output = run(PROGRAM, command)?;
    if !output.success {
        let text = [&String::from_utf8_lossy(&output.stdout), output.stderr.as_str()].concat();
        return Err(Error::Failed { program: PROGRAM, said: said(&text) });
    }
    Ok(())
}

/// Replays the journal of the file system that is the file `image`, and does nothing else. A change before that would be undone by the guest's own
/// replay. (e2fsck 1.47 does this only to a whole file: it forgets an offset when it opens the file again.)
///
/// # Errors
/// [`Error`].
pub fn replay(image: &Path) -> Result<(), Error> {
    const PROGRAM: &str = "e2fsck";
    let file = File::options().read(true).write(true).open(image).map_err(io("open", image))?;
    let mut command = command(PROGRAM);
    let device = with_file(&mut command, &file, 0)?;
    command.args(["-y", "-E", "journal_only", &device]);
    let output = run(PROGRAM, command)?;
    // 1: errors were corrected (e2fsck(8), "EXIT CODE").
    if !matches!(output.code, Some(0 | 1)) {
        let text = [&String::from_utf8_lossy(&output.stdout), output.stderr.as_str()].concat();
        return Err(Error::Failed { program: PROGRAM, said: said(&text) });
    }
    Ok(())
}
