//! Tables that move because they have become too small: rare, and durable step by step.
//!
//! ```text
//! new table ─► file ─► sync ─► header (one sector) ─► sync ─► the old one's clusters are free
//! ```

use std::io;

use super::error::Malformed;
use super::header::MAX_L1;
use super::refcount::put;
use super::top::{Meta, Top};

/// The largest refcount table, in bytes.
const MAX_TABLE: u64 = 8 << 20;

/// Blocks of refcounts that may be missing when a table grows, in order of the table.
#[derive(Debug)]
struct Missing {
    first: u64,
    count: u64,
}

impl Top {
    /// Make the disk `size` bytes large, which is more than it is.
    ///
    /// # Errors
    /// If no image can be that large, or the host fails; the disk is then as it was.
    pub(in crate::disk) fn resize(&self, size: u64) -> Result<(), Malformed> {
        let _places = self.lock_places();
        let header = &self.image.header;
        let needed = header.l1_needed(size);
        if needed * 8 > MAX_L1 {
            return Err(Malformed::Value { what: "new size", value: size });
        }
        let (old_offset, old_size) = {
            let meta = self.meta();
            (meta.l1_offset, meta.l1_size)
        };
        let (mut offset, mut entries) = (old_offset, old_size);
        if needed > old_size {
            (offset, entries) = (self.move_l1(needed)?, needed);
        }
        // Size, no encryption, L1's length and place lie side by side.
        let mut fields = [0; 24];
        let (head, tail) = fields.split_at_mut(12);
        head[..8].copy_from_slice(&size.to_be_bytes());
        // At most MAX_L1 / 8.
        tail[..4].copy_from_slice(&(entries as u32).to_be_bytes());
        tail[4..].copy_from_slice(&offset.to_be_bytes());
        self.image.file.write_all_at(&fields, 24)?;
        self.image.file.sync()?;
        let meta = &mut *self.meta();
        (meta.l1_offset, meta.l1_size) = (offset, entries);
        self.set_size(size);
        if offset != old_offset {
            let first = old_offset >> header.cluster_bits;
            let end = first + (old_size * 8).div_ceil(header.cluster());
            meta.refcounts.release(&mut meta.pages, &*self.image.file, first, end)?;
        }
        Ok(())
    }

    /// Copy the L1 table to a place with room for `entries`, durably.
    fn move_l1(&self, entries: u64) -> io::Result<u64> {
        let cluster = self.image.header.cluster();
        let clusters = (entries * 8).div_ceil(cluster);
        self.write_back(true)?;
        self.grow_refcounts(clusters)?;
        let file = &*self.image.file;
        let place = {
            let meta = &mut *self.meta();
            let place = meta.refcounts.take(&mut meta.pages, file, clusters)?;
            let mut table = vec![0; (clusters * cluster) as usize];
            // It was smaller, and the file is what memory is.
            let old = table.get_mut(..meta.l1_size as usize * 8).unwrap_or_default();
            file.read_exact_at(old, meta.l1_offset)?;
            file.write_all_at(&table, place)?;
            place
        };
        self.write_back(true)?;
        Ok(place)
    }

    /// See to it that the refcount table has room for `clusters` more and the blocks and tables they may need.
    ///
    /// # Errors
    /// If no image can be that large, or the host fails.
    pub(super) fn grow_refcounts(&self, clusters: u64) -> io::Result<()> {
        let enough = {
            let meta = self.meta();
            let refcounts = &meta.refcounts;
            (refcounts.next + clusters + 4) / refcounts.per_block() + 1 < refcounts.blocks()
        };
        if enough {
            return Ok(());
        }
        // From here on the file is what memory is, but for what this function does.
        self.write_back(true)?;
        let (old, new) = self.write_larger_table(&mut self.meta())?;
        self.write_back(true)?;
        let mut fields = [0; 12];
        fields[..8].copy_from_slice(&new.0.to_be_bytes());
        // At most MAX_TABLE / 512.
        fields[8..].copy_from_slice(&(new.1 as u32).to_be_bytes());
        self.image.file.write_all_at(&fields, 48)?;
        self.image.file.sync()?;
        let meta = &mut *self.meta();
        (meta.refcounts.table, meta.refcounts.table_clusters) = new;
        let first = old.0 >> self.image.header.cluster_bits;
        meta.refcounts.release(&mut meta.pages, &*self.image.file, first, first + old.1)
    }

    /// Write a table of twice the length, with the blocks that count it, to the end of the file. Returns where the old and the new
    /// one are, and of how many clusters.
    fn write_larger_table(&self, meta: &mut Meta) -> io::Result<((u64, u64), (u64, u64))> {
        let (file, header) = (&*self.image.file, &self.image.header);
        let (cluster, per_block) = (header.cluster(), meta.refcounts.per_block());
        let old = (meta.refcounts.table, meta.refcounts.table_clusters);
        let clusters = old.1 * 2;
        if clusters * cluster > MAX_TABLE {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the image's refcount table is full"));
        }
        let first = meta.refcounts.next;
        let mut missing = Missing { first: 0, count: 0 };
        // The blocks need room too, which may need another block.
        loop {
            let last = (first + clusters + missing.count) / per_block;
            let mut index = first / per_block;
            while index <= last && meta.refcounts.block(&mut meta.pages, file, index * per_block)?.is_some() {
                index += 1;
            }
            let count = (last + 1).saturating_sub(index);
            if count == missing.count && index == missing.first {
                break;
            }
            missing = Missing { first: index, count };
        }
        let end = first + clusters + missing.count;
        let mut table = vec![0; (clusters * cluster) as usize];
        file.read_exact_at(table.get_mut(..(old.1 * cluster) as usize).unwrap_or_default(), old.0)?;
        file.set_len(end << header.cluster_bits)?;
        for number in 0..missing.count {
            let (index, place) = (missing.first + number, (first + clusters + number) << header.cluster_bits);
            let mut block = vec![0; cluster as usize];
            for at in first.max(index * per_block)..end.min((index + 1) * per_block) {
                let bit = (at % per_block) << header.refcount_order;
                let bytes = block.get_mut((bit / 8) as usize..).unwrap_or_default();
                put(bytes, header.refcount_order, (bit % 8) as u32, 1);
            }
            file.write_all_at(&block, place)?;
            if let Some(entry) = table.get_mut(index as usize * 8..).and_then(|rest| rest.get_mut(..8)) {
                entry.copy_from_slice(&place.to_be_bytes());
            }
        }
        let place = first << header.cluster_bits;
        file.write_all_at(&table, place)?;
        for at in first..end.min(missing.first * per_block) {
            meta.refcounts.set(&mut meta.pages, file, at, 1)?;
        }
        meta.refcounts.next = end;
        meta.refcounts.file_len = end << header.cluster_bits;
        Ok((old, (place, clusters)))
    }
}
