//! New, empty images.
//!
//! ```text
//! │ header │ refcount table │ refcount block │ L1 table │   (16-bit refcounts, version 3)
//! ```

use std::path::PathBuf;

use super::error::Malformed;
use super::header::{Format, Header, Packing};
use crate::storage::StoredFile;

/// Order of 16-bit refcounts.
const ORDER: u32 = 4;

/// Make `file`, which is empty, an image of `size` bytes that is all holes, and durable.
///
/// # Errors
/// If no image can be that large, the name is too long, or the host fails.
pub(in crate::disk) fn create(
    file: &dyn StoredFile,
    size: u64,
    backing: Option<(PathBuf, Format)>,
    cluster_bits: u32,
) -> Result<(), Malformed> {
    let cluster = 1_u64 << cluster_bits;
    // What one cluster of the refcount table covers: 16 TiB if they are 64 KiB.
    let covered = (cluster / 8) * (cluster / 2) * cluster;
    let (backing, backing_format) = backing.unzip();
    let mut header = Header {
        version: 3,
        cluster_bits,
        size,
        l1_size: 0,
        l1_offset: 0,
        refcount_offset: cluster,
        refcount_clusters: u32::try_from(size / covered + 1).unwrap_or(u32::MAX),
        refcount_order: ORDER,
        packing: Packing::Deflate,
        incompatible: 0,
        backing,
        backing_format,
        keeps: None,
    };
    header.l1_size = u32::try_from(header.l1_needed(size)).unwrap_or(u32::MAX);
    let block = cluster + u64::from(header.refcount_clusters) * cluster;
    header.l1_offset = block + cluster;
    let end = header.l1_offset + (u64::from(header.l1_size) * 8).next_multiple_of(cluster);
    let head = header.encode()?;
    // What cannot be read again must not be made: sizes that are too large among it.
    Header::parse(&head, end)?;
    file.set_len(end)?;
    file.write_all_at(&block.to_be_bytes(), header.refcount_offset)?;
    // A few hundred clusters at most, all in the first block.
    let counts: Vec<u8> = (0..end / cluster).flat_map(|_| 1_u16.to_be_bytes()).collect();
    file.write_all_at(&counts, block)?;
    file.write_all_at(&head, 0)?;
    file.sync()?;
    Ok(())
}
