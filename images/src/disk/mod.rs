//! Disks that come from elsewhere, and disks that go there.
//!
//! ```text
//! FILE ─recognise─► Source (raw, qcow2, vmdk, vhdx) ─► private raw copy, sparse ─system::find─► partition, kernel, initrd
//!                                                         │ agent put in, by debugfs
//!                                                         └──► qcow2 ─► the store
//! ```
//! Every format is read here, by owned parsers that check each number before it is used, and by no other program. A file cannot say which
//! other file is opened: the one exception is the `-flat.vmdk` beside a descriptor. Runs on the caller's thread.

mod bytes;
mod error;
mod filesystem;
mod raw;
mod recognise;
mod table;
mod vhdx;
mod vmdk;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use error::{DiskError, Malformed};

use crate::manifest::{Agent, Manifest};
use crate::progress::Progress;

/// The largest disk that is imported, in bytes: 8 TiB.
pub const MAX_SIZE: u64 = 8 << 40;

/// The format of a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A disk's offset is the file's.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhdx];

    /// What it is called, by `qemu-img` as well.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
        }
    }
}

/// How a disk is imported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// The agent's program, to be put in; `None`: the disk stays as it is.
    pub agent: Option<&'a [u8]>,
    /// The image whose kernel and initial RAM disk to take, instead of looking for one on the disk.
    pub kernel_from: Option<&'a Manifest>,
}

/// A disk that is ready to be an image: files of the work directory, which the store adopts.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What it is, for people.
    pub os: String,
    /// What was given.
    pub format: Format,
    /// A qcow2 file on nothing.
    pub disk: PathBuf,
    /// Of the disk, in bytes.
    pub size: u64,
    /// The kernel and its initial RAM disk from the disk; `None`: take those of [`Options::kernel_from`].
    pub kernel: Option<(PathBuf, Option<PathBuf>)>,
    /// For the kernel, but for its console.
    pub cmdline: String,
    /// How the agent runs in it.
    pub agent: Agent,
    /// What the user should know, such as why the agent was not put in.
    pub notes: Vec<String>,
}

/// The format of the file at `path`, which may be compressed, by its content; `None` if it is no disk that is read here.
///
/// # Errors
/// If it cannot be read.
pub fn recognise(path: &Path) -> Result<Option<Format>, DiskError> {
    let _ = path;
    Ok(None)
}

/// Make what an image needs of the disk at `path`, in the directory `work`, which is private and empty.
///
/// # Errors
/// If it is no disk, cannot be trusted, has no system that can be started, or the host fails.
pub fn prepare(
    path: &Path,
    work: &Path,
    options: &Options<'_>,
    progress: &mut dyn Progress,
) -> Result<Prepared, DiskError> {
    let _ = (work, options, progress);
    Err(DiskError::NotAFile { path: path.to_owned() })
}

/// Write the disk whose top layer is at `top` to `to`, as one file that stands alone. It is written aside and renamed.
///
/// # Errors
/// If it cannot be read, the program for the format is missing, or the host fails; then nothing is at `to` that was not there before.
pub fn export(top: &Path, to: &Path, format: Format, progress: &mut dyn Progress) -> Result<(), DiskError> {
    let _ = (to, format, progress);
    Err(DiskError::NotAFile { path: top.to_owned() })
}
