//! A snapshot in one file that needs nothing else: for another machine, or for later.
//!
//! The file is a tar archive, compressed with zstd, so that any tool can look into it. First stands [`CONTENTS`], which says
//! what follows, in which order, and what each must be:
//!
//! | entry | what it is |
//! | --- | --- |
//! | `contents.json` | what the snapshot is ([`Contents`]) |
//! | `state` | devices, vCPUs, interrupt controllers, clock |
//! | `index` | which pages `memory` has |
//! | `memory` | the pages of the whole chain, one after the other without holes |
//! | `disk0.qcow2`, … | the whole chain of a disk, its base included |
//! | `kernel`, `initrd` | what the guest's next reboot needs |
//!
//! An archive is hostile until it is read to its end: every entry must be the one that is expected, a plain file of the length
//! that was announced, and lands in a file whose name is chosen here, if the host has room for it. Nothing that it says names a place on this host: what a
//! spec says of the host's files is replaced or dropped.

mod export;
mod import;
mod room;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::manifest::Sum;
use crate::spec::VmSpec;

pub use import::Import;

/// The name of the first entry.
const CONTENTS: &str = "contents.json";
/// The version of the format that this build writes; it reads this one and all before.
const FORMAT: u32 = 1;
/// The names of the entries.
const STATE: &str = "state";
const INDEX: &str = "index";
const MEMORY: &str = "memory";
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
/// How much is moved at once, in bytes.
const CHUNK: usize = 256 << 10;
const MIB: u64 = 1 << 20;

/// What an archive holds: its first entry, sealed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Contents {
    format: u32,
    arch: String,
    /// What the VM was called.
    vm: String,
    name: String,
    comment: String,
    created_ms: u64,
    pause_us: u64,
    /// The VM's spec as TOML.
    spec: String,
    /// The entries that follow, in their order.
    entries: Vec<EntrySum>,
    /// Of each disk, how large the guest sees it; in the order of the spec.
    disks: Vec<u64>,
}

/// What an entry must be.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct EntrySum {
    name: String,
    #[serde(flatten)]
    sum: Sum,
}

/// An archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The host fails.
    #[error("cannot {what}")]
    Io {
        /// Such as `write web.skiff`.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no archive, or not whole.
    #[error("{path} is no snapshot, or damaged: {why}; get it again, or export it again")]
    Damaged {
        /// The archive.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// It was written by a newer build.
    #[error("{path} has format {found}, written by a newer skiff; this one knows {FORMAT}: update skiff")]
    Newer {
        /// The archive.
        path: String,
        /// Its format.
        found: u64,
    },
    /// It is of another processor.
    #[error("{path} was exported on {found}, and this host is {here}: it can be imported on {found} only")]
    Arch {
        /// The archive.
        path: String,
        /// Its architecture.
        found: String,
        /// The host's.
        here: &'static str,
    },
    /// It would leave too little room on the host.
    #[error(
        "{path} does not fit: {} MiB more are needed, {} MiB are free on the file system of {}, and {} MiB of it must stay free; make room \
         (skiff system prune), or set XDG_DATA_HOME to a larger place",
        needed.div_ceil(MIB), free / MIB, dir.display(), keep.div_ceil(MIB)
    )]
    NoRoom {
        /// The archive.
        path: String,
        /// What is to be written, in bytes.
        needed: u64,
        /// Where.
        dir: PathBuf,
        /// What is free there, in bytes.
        free: u64,
        /// What must stay free, in bytes.
        keep: u64,
    },
    /// A kernel or an initrd is gone.
    #[error("the {what} {path} of the snapshot cannot be read, and belongs into the file")]
    Boot {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] super::StoreError),
}

impl ArchiveError {
    /// The host failed to do this.
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

fn disk_entry(disk: usize) -> String {
    format!("disk{disk}.qcow2")
}

/// The spec in a manifest or in an archive.
fn read_spec(text: &str) -> Result<VmSpec, String> {
    let spec: VmSpec = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    spec.validate().map_err(|error| error.to_string())?;
    Ok(spec)
}
