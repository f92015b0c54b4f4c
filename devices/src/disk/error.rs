//! Why a disk cannot be used. Each message names the file and what to do.

use std::io;
use std::path::PathBuf;

use super::SECTOR;
use super::chain::MAX_DEPTH;
use super::qcow2::Malformed;

/// A disk could not be opened or resized.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Nothing is there.
    #[error(
        "the disk {} does not exist: check the path, or make an empty disk with `truncate -s 10G {}`",
        path.display(), path.display()
    )]
    Missing {
        /// The disk.
        path: PathBuf,
    },
    /// The host forbids it.
    #[error("no permission to {need} the disk {}: change its owner or mode, or use readonly=on", path.display())]
    Permission {
        /// The disk.
        path: PathBuf,
        /// What was asked for.
        need: &'static str,
    },
    /// It lies on a file system that cannot be written.
    #[error("the disk {} is on a read-only file system: use readonly=on, or copy it elsewhere", path.display())]
    ReadOnlyFileSystem {
        /// The disk.
        path: PathBuf,
    },
    /// A directory.
    #[error("the disk {} is a directory: give an image file (raw or qcow2) or a block device", path.display())]
    Directory {
        /// The disk.
        path: PathBuf,
    },
    /// A pipe, socket or character device.
    #[error("the disk {} is neither a file nor a block device: give an image file (raw or qcow2) or a block device", path.display())]
    NotADisk {
        /// The disk.
        path: PathBuf,
    },
    /// It is in a format that is known, and neither raw nor qcow2.
    #[error(
        "the disk {} is a {format} image, which is not supported: convert it with \
         `qemu-img convert -O qcow2 {} disk.qcow2`",
        path.display(), path.display()
    )]
    Format {
        /// The disk.
        path: PathBuf,
        /// The format's name.
        format: &'static str,
    },
    /// Nothing is in it.
    #[error("the disk {} is empty: give it a size with `truncate -s 10G {}`", path.display(), path.display())]
    Empty {
        /// The disk.
        path: PathBuf,
    },
    /// Its last sector is cut off.
    #[error(
        "the disk {} is {size} bytes long, not a multiple of {SECTOR}: if it is a disk image, fill up its last \
         sector with `truncate -s %{SECTOR} {}`",
        path.display(), path.display()
    )]
    Size {
        /// The disk.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Locked by another VM, or another program that locks disks.
    #[error(
        "the disk {} is in use by another VM or program: stop that one first, use a copy, or let both open it \
         with readonly=on",
        path.display()
    )]
    InUse {
        /// The disk.
        path: PathBuf,
    },
    /// A block device that is mounted or otherwise claimed.
    #[error(
        "the disk {} is in use by the host (mounted, or part of another device): unmount it first, or use readonly=on",
        path.display()
    )]
    HostUses {
        /// The disk.
        path: PathBuf,
    },
    /// The file system knows no `O_DIRECT`.
    #[error("the file system of the disk {} cannot do direct I/O: use direct=off", path.display())]
    NoDirect {
        /// The disk.
        path: PathBuf,
    },
    /// Anything else that the host says on opening.
    #[error("cannot open the disk {}", path.display())]
    Open {
        /// The disk.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// Its size or first sector cannot be read.
    #[error("cannot read the disk {}", path.display())]
    Read {
        /// The disk.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The lock could not be asked for.
    #[error("cannot lock the disk {}", path.display())]
    Lock {
        /// The disk.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A size that no disk can have.
    #[error("the disk {} cannot be {size} bytes large: give a multiple of {SECTOR}", path.display())]
    OddSize {
        /// The disk.
        path: PathBuf,
        /// What was asked for, in bytes.
        size: u64,
    },
    /// It would lose what is at its end.
    #[error(
        "the disk {} is {now} bytes large and cannot be made {size}: what lies beyond would be lost; a disk only grows",
        path.display()
    )]
    Shrink {
        /// The disk.
        path: PathBuf,
        /// What was asked for, in bytes.
        size: u64,
        /// What it is.
        now: u64,
    },
    /// A block device grows by its own means.
    #[error(
        "the block device {} is {there} bytes large, not {size}: make it larger first (with `lvextend` or the like), then \
         ask again",
        path.display()
    )]
    DeviceTooSmall {
        /// The disk.
        path: PathBuf,
        /// What was asked for, in bytes.
        size: u64,
        /// What the host has.
        there: u64,
    },
    /// It was opened for reading.
    #[error(
        "the disk {} is readonly and cannot be made larger: do it with `truncate -s {size} {}`, then ask again",
        path.display(), path.display()
    )]
    ReadOnly {
        /// The disk.
        path: PathBuf,
        /// What was asked for, in bytes.
        size: u64,
    },
    /// The host says no.
    #[error(
        "cannot make the disk {} {size} bytes large: check what its file system allows, and ulimit -f",
        path.display()
    )]
    Grow {
        /// The disk.
        path: PathBuf,
        /// What was asked for, in bytes.
        size: u64,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A qcow2 file that cannot be used.
    #[error("cannot use the qcow2 image {}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// The file below is gone.
    #[error("the layer {} lies on {}, which does not exist: move it back there, or bring it back from a backup", path.display(), below.display())]
    NothingBelow {
        /// The layer.
        path: PathBuf,
        /// What it lies on.
        below: PathBuf,
    },
    /// Something is wrong with the file below.
    #[error("the layer {} lies on {}, which cannot be used", path.display(), below.display())]
    Below {
        /// The layer.
        path: PathBuf,
        /// What it lies on.
        below: PathBuf,
        /// What is wrong with that.
        #[source]
        source: Box<DiskError>,
    },
    /// The chain goes round.
    #[error("the layer {} lies on {}, which lies on it: rebase one of them with `qemu-img rebase`", path.display(), below.display())]
    Loop {
        /// The layer.
        path: PathBuf,
        /// What it lies on.
        below: PathBuf,
    },
    /// Too many layers.
    #[error(
        "the disk {} has more than {MAX_DEPTH} layers: remove snapshots, so that theirs are merged, or flatten it with \
         `qemu-img convert`",
        path.display()
    )]
    TooDeep {
        /// The disk.
        path: PathBuf,
    },
    /// It is written in place.
    #[error("the disk {} is written in place: it needs layers=on to be frozen", path.display())]
    NoLayers {
        /// The disk.
        path: PathBuf,
    },
    /// A new top that does not fit.
    #[error("the layer {} is not an empty one of the same size on the top of the disk {}", path.display(), disk.display())]
    NotOnTop {
        /// The layer.
        path: PathBuf,
        /// The disk.
        disk: PathBuf,
    },
    /// A file could not be made.
    #[error("cannot make the layer {}: check the room and the permissions there", path.display())]
    Make {
        /// The layer.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// What was written could not be made durable.
    #[error("cannot make the layer {} durable: check the room on its file system", path.display())]
    Flush {
        /// The layer.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// Layers could not be put together.
    #[error("cannot copy layers to {}: check the room on its file system", path.display())]
    Copy {
        /// The new file.
        path: PathBuf,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}
