//! Refcounts: how often each cluster of the file is used, and the end of the file, where new clusters come from.
//!
//! A block of refcounts counts itself. It is durable before the refcount table points at it.

use std::io;

use super::cache::{Class, Pages};
use super::entry::OFFSET;
use super::header::Header;
use crate::storage::StoredFile;

/// The file is made longer by this much at a time, in bytes.
const STEP: u64 = 2 << 20;

/// Where the refcounts of an image are, and where it ends.
#[derive(Debug)]
pub(super) struct Refcounts {
    cluster_bits: u32,
    order: u32,
    pub table: u64,
    pub table_clusters: u64,
    /// The first cluster behind all that are used.
    pub next: u64,
    /// The file's length in bytes.
    pub file_len: u64,
}

impl Refcounts {
    pub(super) fn new(header: &Header, next: u64, file_len: u64) -> Self {
        Self {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            table: header.refcount_offset,
            table_clusters: header.refcount_clusters.into(),
            next,
            file_len,
        }
    }

    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many clusters a block counts.
    pub(super) fn per_block(&self) -> u64 {
        (self.cluster() * 8) >> self.order
    }

    /// How many blocks the table can hold.
    pub(super) fn blocks(&self) -> u64 {
        self.table_clusters * self.cluster() / 8
    }

    /// The block that counts `cluster`; `None` if there is none.
    ///
    /// # Errors
    /// If the host fails, or the table is damaged.
    pub(super) fn block(
        &self,
        pages: &mut Pages,
        file: &dyn StoredFile,
        cluster: u64,
    ) -> io::Result<Option<u64>> {
        let index = cluster / self.per_block();
        if index >= self.blocks() {
            return Ok(None);
        }
        let entry = pages.get(file, self.table + index * 8, Class::Refcount)? & OFFSET;
        if !entry.is_multiple_of(self.cluster()) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((entry != 0).then_some(entry))
    }

    /// The count of `cluster`, in memory, becomes `count`. Its block must be there.
    ///
    /// # Errors
    /// If the host fails.
    pub(super) fn set(
        &self,
        pages: &mut Pages,
        file: &dyn StoredFile,
        cluster: u64,
        count: u64,
    ) -> io::Result<()> {
        let block = self.block(pages, file, cluster)?.ok_or(io::ErrorKind::InvalidData)?;
        let (offset, within) = self.place(block, cluster);
        let order = self.order;
        pages.change(file, offset, Class::Refcount, |bytes| put(bytes, order, within, count))
    }

    /// The count of `cluster`; 0 without a block.
    ///
    /// # Errors
    /// If the host fails.
    pub(super) fn get(&self, pages: &mut Pages, file: &dyn StoredFile, cluster: u64) -> io::Result<u64> {
        let Some(block) = self.block(pages, file, cluster)? else { return Ok(0) };
        let (offset, within) = self.place(block, cluster);
        let order = self.order;
        pages.look(file, offset, Class::Refcount, |bytes| pick(bytes, order, within))
    }

    /// The byte of the file where a count starts, and which one of those in that byte it is.
    fn place(&self, block: u64, cluster: u64) -> (u64, u32) {
        let bit = (cluster % self.per_block()) << self.order;
        (block + bit / 8, (bit % 8) as u32)
    }

    /// Take `count` clusters at the end of the file, one behind the other. The table must have room for them. The file reads as
    /// zeroes there.
    ///
    /// # Errors
    /// If the host fails; then none are taken.
    pub(super) fn take(&mut self, pages: &mut Pages, file: &dyn StoredFile, count: u64) -> io::Result<u64> {
        let mut first = self.next;
        let mut at = first;
        while at < first + count {
            let counted = self.count_one(pages, file, at, at == first);
            match counted {
                Ok(true) => at += 1,
                Ok(false) => {
                    // A block took this cluster's place: start again behind it, and leave what was before it unused.
                    self.release(pages, file, first, at)?;
                    first = at + 1;
                    at = first;
                    self.next = first;
                }
                Err(error) => {
                    // Best effort: what stays counted is a leak that the next opening repairs.
                    let _ = self.release(pages, file, first, at);
                    return Err(error);
                }
            }
        }
        self.lengthen(file, at << self.cluster_bits)?;
        self.next = at;
        Ok(first << self.cluster_bits)
    }

    /// Count the use of a cluster that is new; false if the block that is to count it took its place.
    fn count_one(
        &self,
        pages: &mut Pages,
        file: &dyn StoredFile,
        cluster: u64,
        first: bool,
    ) -> io::Result<bool> {
        let maybe_missing = first || cluster.is_multiple_of(self.per_block());
        if maybe_missing && self.block(pages, file, cluster)?.is_none() {
            self.make_block(pages, file, cluster)?;
            return Ok(false);
        }
        self.set(pages, file, cluster, 1)?;
        Ok(true)
    }

    /// Make the file at least `end` bytes long: what lies behind what is written reads as zeroes.
    fn lengthen(&mut self, file: &dyn StoredFile, end: u64) -> io::Result<()> {
        if end > self.file_len {
            let len = end.next_multiple_of(STEP.max(self.cluster()));
            file.set_len(len)?;
            self.file_len = len;
        }
        Ok(())
    }

    /// Count the clusters from `first` to `end` as unused.
    pub(super) fn release(
        &self,
        pages: &mut Pages,
        file: &dyn StoredFile,
        first: u64,
        end: u64,
    ) -> io::Result<()> {
        (first..end).try_for_each(|cluster| self.set(pages, file, cluster, 0))
    }

    /// Put the block for `cluster` and those after it in that very cluster.
    fn make_block(&self, pages: &mut Pages, file: &dyn StoredFile, cluster: u64) -> io::Result<()> {
        let index = cluster / self.per_block();
        if index >= self.blocks() {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the image's refcount table is full"));
        }
        let block = cluster << self.cluster_bits;
        let mut bytes = vec![0; self.cluster() as usize];
        let (offset, within) = self.place(0, cluster);
        put(bytes.get_mut(offset as usize..).unwrap_or_default(), self.order, within, 1);
        file.write_all_at(&bytes, block)?;
        file.sync()?;
        pages.set(file, self.table + index * 8, Class::Refcount, block)
    }
}

/// Put a count of `1 << order` bits at the start of `bytes`; smaller ones start at bit `within` (the lowest is 0).
pub(super) fn put(bytes: &mut [u8], order: u32, within: u32, count: u64) {
    if order >= 3 {
        let len = 1 << (order - 3);
        if let (Some(place), Some(value)) = (bytes.get_mut(..len), count.to_be_bytes().get(8 - len..)) {
            place.copy_from_slice(value);
        }
    } else if let Some(byte) = bytes.first_mut() {
        let mask = ((1_u8 << (1 << order)) - 1) << within;
        *byte = *byte & !mask | (count as u8) << within & mask;
    }
}

/// The count of `1 << order` bits at the start of `bytes`.
pub(super) fn pick(bytes: &[u8], order: u32, within: u32) -> u64 {
    if order >= 3 {
        let len = 1 << (order - 3);
        bytes.get(..len).unwrap_or_default().iter().fold(0, |count, byte| count << 8 | u64::from(*byte))
    } else {
        let mask = (1_u8 << (1 << order)) - 1;
        u64::from(bytes.first().copied().unwrap_or(0) >> within & mask)
    }
}

/// The largest count of `1 << order` bits.
pub(super) fn most(order: u32) -> u64 {
    u64::MAX >> (64 - (1 << order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_are_read_as_written() {
        for order in 0..=6 {
            let mut bytes = [0xff; 8];
            let within = if order < 3 { 1 << order } else { 0 };
            for count in [0, 1, most(order)] {
                put(&mut bytes, order, within, count);
                assert_eq!(pick(&bytes, order, within), count, "order {order}");
            }
            put(&mut bytes, order, within, 0);
            let len = 1_usize << order.saturating_sub(3);
            assert!(bytes[len..].iter().all(|byte| *byte == 0xff), "the rest is left alone");
        }
    }
}
