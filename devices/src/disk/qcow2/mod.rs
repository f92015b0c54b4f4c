//! qcow2 images (QEMU's docs/interop/qcow2.rst): read in full, written without lazy refcounts, internal snapshots or bitmaps.
//!
//! ```text
//! header ─► L1 table ─► L2 tables ─► data clusters (or zeroes, or packed ones, or: look in the backing file)
//!        └► refcount table ─► refcount blocks: how often each cluster of the file is used
//! ```
//! An [`Image`] is an open file of which every number was checked; it changes nothing and caches nothing, so any thread may use it.
//! A [`Top`] is one that is written. All that a file says is hostile: offsets must be aligned and inside the file, and nothing is
//! allocated by a number that was not bounded first.

mod cache;
mod check;
mod create;
mod entry;
mod error;
mod grow;
mod header;
mod image;
mod packed;
mod refcount;
#[cfg(test)]
mod tests;
mod top;

#[cfg(test)]
pub(super) use check::problems;
pub(super) use create::create;
pub(super) use entry::Mapping;
pub use error::Malformed;
pub use header::Format;
pub(super) use header::MAGIC;
pub(super) use image::Image;
pub(super) use top::{Below, Top};

/// The cluster size of the images that are made here: 64 KiB.
pub(super) const CLUSTER_BITS: u32 = 16;
