//! Work that needs the rights of root over files: archives become the tree of a root file system, with its owners, and that becomes an
//! ext4 file system ([`run`]).
//!
//! As root it is done here. Otherwise this program starts itself again with [`VERB`] as its first argument, in a user namespace of its own in
//! which it is root: its own user is root there, and the IDs that /etc/subuid and /etc/subgid give the user are all others.
//! newuidmap and newgidmap (package uidmap) make that so. The program's `main` calls [`answer`] before it does anything else.
//!
//! ```text
//!   skiff ──── job.json, on its command line ───► skiff VERB
//!         ◄─── lines of JSON: Ready, then Step and Advance, at last Done or Failed
//!         ──── a byte, when the IDs are mapped ─►
//! ```

mod job;
mod namespace;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use namespace::answer;

use crate::digest::Digest;
use crate::kernel::Found;
use crate::progress::Progress;
use crate::{ext4, kernel, tree};

/// The first argument of a process that does a job.
pub const VERB: &str = "__unpack";
/// The file system of a finished job, in its directory.
pub const DISK: &str = "disk";

/// From archives to a file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Job {
    /// A directory that is private and has room for it all. The tree is made in it, and is gone at the end; what is made stays.
    pub work: PathBuf,
    /// What the tree is made of, from the first to the last.
    pub layers: Vec<Layer>,
    /// How much may come out of all of them.
    pub limits: tree::Limits,
    /// Copies the kernel to `kernel`, `initrd` and `modules` in the directory, if there is one ([`kernel::take`]).
    pub kernel: bool,
    /// Makes a file system in the file [`DISK`] in the directory.
    pub disk: Option<Disk>,
}

/// An archive of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Layer {
    /// A tar archive, compressed or not.
    pub archive: PathBuf,
    /// Whether names that begin with `.wh.` take away.
    pub whiteouts: bool,
    /// Of what it holds, uncompressed.
    pub digest: Option<Digest>,
    /// On which trees it is put.
    pub only: Only,
}

/// On which trees a layer is put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Only {
    /// All.
    #[default]
    Always,
    /// Those that can boot by themselves with systemd: they have it, and a kernel with an initial RAM disk.
    Boots,
    /// The others.
    BootsNot,
}

/// The file system to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Disk {
    /// Its label, at most 16 bytes.
    pub label: String,
    /// Bytes that it has at least.
    pub size: u64,
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// Of all archives together.
    pub unpacked: tree::Unpacked,
    /// What the guest calls itself, in its os-release.
    pub os: Option<String>,
    /// Whether it can boot by itself: [`Only::Boots`].
    pub boots: bool,
    /// The kernel that was found, if it was asked for.
    pub kernel: Option<Found>,
    /// The length of the file system in bytes, if it was asked for.
    pub disk: Option<u64>,
}

/// A job was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refuses.
    #[error("cannot {doing}")]
    Io {
        /// What was tried, with its object.
        doing: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// An archive is not the one that was meant.
    #[error("{} holds {found}, not {wanted}: fetch it again", .archive.display())]
    Digest {
        /// The archive.
        archive: PathBuf,
        /// What it should hold.
        wanted: Digest,
        /// What it does hold.
        found: Digest,
    },
    /// An archive cannot be unpacked.
    #[error("{} cannot be unpacked", .archive.display())]
    Unpack {
        /// The archive.
        archive: PathBuf,
        /// Why not.
        #[source]
        source: tree::Error,
    },
    /// The tree cannot be removed.
    #[error("the tree cannot be removed again")]
    Remove(#[source] tree::Error),
    /// The kernel cannot be taken out.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The file system cannot be made.
    #[error(transparent)]
    Ext4(#[from] ext4::Error),
    /// No user namespace is to be had.
    #[error(
        "files get their owners only with root's rights or in a user namespace, which this host refuses: {fix}"
    )]
    Namespace {
        /// What to do.
        fix: String,
        /// What was refused.
        #[source]
        source: std::io::Error,
    },
    /// There are no IDs for it.
    #[error(
        "{file} gives {user} no IDs, so that files cannot get their owners without root: add the line {user}:100000:65536 to it"
    )]
    NoIds {
        /// `/etc/subuid` or `/etc/subgid`.
        file: &'static str,
        /// The user's name or number.
        user: String,
    },
    /// A program for it is missing, or refuses.
    #[error("{program} maps no IDs into a user namespace: {said}")]
    Mapping {
        /// Its name.
        program: &'static str,
        /// Why not.
        said: String,
    },
    /// The process that does it has said what went wrong.
    #[error("{0}")]
    Failed(String),
}

/// Does a job, as root or in a user namespace.
///
/// # Errors
/// [`Error`]. The tree is gone as far as it can be; other files in the directory may be left.
pub fn run(job: &Job, progress: &mut dyn Progress) -> Result<Outcome, Error> {
    if rustix::process::geteuid().is_root() {
        job::work(job, progress)
    } else {
        namespace::run(job, progress)
    }
}

/// Whether this process can be given the IDs that files of images belong to, as far as files of the host say so.
///
/// # Errors
/// [`Error::NoIds`].
pub fn has_ids() -> Result<(), Error> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { namespace::has_ids() }
}

fn io(doing: &str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let doing = format!("{doing} {}", path.display());
    move |source| Error::Io { doing, source }
}
