//! What is done before an image is written: its tables are walked, and refcounts that a crash has left behind are put right.
//!
//! A crash leaves at most clusters that are counted and not used. Their counts go back to zero and the end of the file is cut off.

use std::collections::HashMap;

use super::entry::{COPIED, Mapping};
use super::error::Malformed;
use super::header::{CORRUPT, DIRTY};
use super::image::{Image, decode};
use super::refcount::{Refcounts, most, pick, put};

/// The most clusters of a file that are counted.
const MAX_CLUSTERS: u64 = 1 << 27;
const CHUNK: u64 = 4096;

/// How often each cluster is used, in chunks that are made when one of theirs is.
#[derive(Default)]
struct Counts {
    chunks: HashMap<u64, Box<[u16; CHUNK as usize]>>,
    /// One behind the last cluster that is used.
    end: u64,
}

impl Counts {
    fn slot(&mut self, cluster: u64) -> Option<&mut u16> {
        let chunk = self.chunks.entry(cluster / CHUNK).or_insert_with(|| Box::new([0; CHUNK as usize]));
        self.end = self.end.max(cluster + 1);
        chunk.get_mut((cluster % CHUNK) as usize)
    }

    /// Count a use of something that nothing else may use.
    fn claim(&mut self, first: u64, clusters: u64, cluster_bits: u32) -> Result<(), Malformed> {
        for cluster in first..first.saturating_add(clusters) {
            match self.slot(cluster) {
                Some(count @ 0) => *count = 1,
                _ => {
                    let offset = cluster << cluster_bits;
                    return Err(Malformed::Damaged { what: "a cluster that is used twice", offset });
                }
            }
        }
        Ok(())
    }

    /// Count one more use of what packed clusters share.
    fn share(&mut self, cluster: u64, most: u64) -> bool {
        match self.slot(cluster) {
            Some(count) if u64::from(*count) < most.min(u64::from(u16::MAX)) => {
                *count += 1;
                true
            }
            _ => false,
        }
    }

    fn of(&self, cluster: u64) -> u64 {
        let chunk = self.chunks.get(&(cluster / CHUNK));
        chunk.and_then(|chunk| chunk.get((cluster % CHUNK) as usize)).copied().unwrap_or(0).into()
    }
}

/// What was found, and put right.
#[derive(Debug)]
pub(super) struct Checked {
    /// Where new clusters come from.
    pub refcounts: Refcounts,
    /// How many counts and flags were wrong.
    pub repaired: u64,
    /// How many counts were too low, which no crash leaves of what is written here.
    pub too_low: u64,
}

/// Walk the tables of `image`, which is open for writing, and repair what may be repaired.
///
/// # Errors
/// If it must not be written, is damaged in a way that no crash of a sound program leaves, or the host fails.
pub(super) fn prepare(image: &Image) -> Result<Checked, Malformed> {
    let header = &image.header;
    if let Some(what) = header.keeps {
        return Err(Malformed::NotWritable(what));
    }
    if header.incompatible & CORRUPT != 0 {
        return Err(Malformed::Damaged { what: "it is marked as damaged", offset: 72 });
    }
    if image.len >> header.cluster_bits >= MAX_CLUSTERS {
        return Err(Malformed::TooLarge { cluster: header.cluster() });
    }
    let mut walk = Walk { image, counts: Counts::default(), repaired: 0, too_low: 0 };
    let blocks = walk.metadata()?;
    walk.mappings()?;
    walk.compare(&blocks)?;
    walk.finish()
}

struct Walk<'a> {
    image: &'a Image,
    counts: Counts,
    repaired: u64,
    too_low: u64,
}

impl Walk<'_> {
    fn claim(&mut self, offset: u64, len: u64) -> Result<(), Malformed> {
        let header = &self.image.header;
        let clusters = len.div_ceil(header.cluster());
        self.counts.claim(offset >> header.cluster_bits, clusters, header.cluster_bits)
    }

    /// Read `len` bytes as numbers, a part at a time.
    fn numbers(
        &mut self,
        offset: u64,
        len: u64,
        mut each: impl FnMut(&mut Self, u64, u64) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let (mut bytes, mut numbers) = ([0; 4096], [0; 512]);
        let mut at = 0;
        while at < len {
            let part = (len - at).min(4096) as usize;
            let bytes = bytes.get_mut(..part).unwrap_or_default();
            self.image.file.read_exact_at(bytes, offset + at)?;
            decode(bytes, &mut numbers);
            for (index, number) in numbers.iter().take(part / 8).enumerate() {
                if *number != 0 {
                    each(self, at / 8 + index as u64, *number)?;
                }
            }
            at += part as u64;
        }
        Ok(())
    }

    /// The header, the tables of refcounts, and L1. Returns the blocks with their places in the table.
    fn metadata(&mut self) -> Result<Vec<(u64, u64)>, Malformed> {
        let header = self.image.header.clone();
        self.claim(0, header.cluster())?;
        let table_len = u64::from(header.refcount_clusters) * header.cluster();
        self.claim(header.refcount_offset, table_len)?;
        self.claim(header.l1_offset, u64::from(header.l1_size) * 8)?;
        let mut blocks = Vec::new();
        self.numbers(header.refcount_offset, table_len, |walk, index, block| {
            if !block.is_multiple_of(header.cluster()) {
                return Err(Malformed::Damaged {
                    what: "a refcount block that is not aligned",
                    offset: block,
                });
            }
            if block.checked_add(header.cluster()).is_none_or(|end| end > walk.image.len) {
                return Err(Malformed::Outside { what: "a refcount block", offset: block });
            }
            walk.claim(block, 1)?;
            blocks.push((index, block));
            Ok(())
        })?;
        Ok(blocks)
    }

    fn mappings(&mut self) -> Result<(), Malformed> {
        let header = self.image.header.clone();
        let l1_len = u64::from(header.l1_size) * 8;
        self.numbers(header.l1_offset, l1_len, |walk, index, entry| {
            let Some(table) = walk.image.table(entry, walk.image.len)? else { return Ok(()) };
            walk.claim(table, 1)?;
            if entry & COPIED == 0 {
                walk.rewrite(header.l1_offset + index * 8, entry | COPIED)?;
            }
            walk.numbers(table, header.cluster(), |walk, index, entry| walk.mapping(table + index * 8, entry))
        })
    }

    /// One L2 entry, which is at `place`.
    fn mapping(&mut self, place: u64, entry: u64) -> Result<(), Malformed> {
        let header = &self.image.header;
        match self.image.mapping(entry, self.image.len)? {
            Mapping::Absent | Mapping::Zero(None) => Ok(()),
            Mapping::Data(offset) | Mapping::Zero(Some(offset)) => {
                if offset >= self.image.len {
                    return Err(Malformed::Outside { what: "a cluster", offset });
                }
                self.claim(offset, 1)?;
                if entry & COPIED == 0 { self.rewrite(place, entry | COPIED) } else { Ok(()) }
            }
            Mapping::Packed(offset, len) => {
                let (bits, most) = (header.cluster_bits, most(header.refcount_order));
                // By its form it is at most two clusters long; behind the end of the file there is nothing to count.
                let end = (offset + len).min(self.image.len.next_multiple_of(header.cluster()));
                for cluster in offset >> bits..=(end - 1) >> bits {
                    if !self.counts.share(cluster, most) {
                        return Err(Malformed::Damaged { what: "a packed cluster", offset });
                    }
                }
                Ok(())
            }
        }
    }

    fn rewrite(&mut self, place: u64, entry: u64) -> Result<(), Malformed> {
        self.repaired += 1;
        Ok(self.image.file.write_all_at(&entry.to_be_bytes(), place)?)
    }

    /// Put the counts in the file right where they differ from what is used.
    fn compare(&mut self, blocks: &[(u64, u64)]) -> Result<(), Malformed> {
        let header = &self.image.header;
        let per_block = Refcounts::new(header, 0, 0).per_block();
        let mut counted = 0;
        for (index, block) in blocks {
            let first = index * per_block;
            counted += self.compare_block(first, *block)?;
        }
        let used: u64 =
            self.counts.chunks.values().flat_map(|chunk| chunk.iter()).filter(|count| **count > 0).count()
                as u64;
        if counted < used {
            return Err(Malformed::Damaged {
                what: "a refcount block is missing",
                offset: header.refcount_offset,
            });
        }
        Ok(())
    }

    /// Returns how many clusters that are used the block counts.
    fn compare_block(&mut self, first: u64, block: u64) -> Result<u64, Malformed> {
        let header = &self.image.header;
        let order = header.refcount_order;
        let mut bytes = [0; 512];
        let (mut cluster, mut used) = (first, 0);
        for part in (0..header.cluster()).step_by(bytes.len()) {
            self.image.file.read_exact_at(&mut bytes, block + part)?;
            let (mut wrong, mut too_low) = (0, 0);
            for bit in (0..bytes.len() * 8).step_by(1 << order) {
                let place = bytes.get_mut(bit / 8..).unwrap_or_default();
                let within = (bit % 8) as u32;
                let (count, counted) = (self.counts.of(cluster), pick(place, order, within));
                if counted != count {
                    put(place, order, within, count);
                    wrong += 1;
                    too_low += u64::from(counted < count);
                }
                used += u64::from(count > 0);
                cluster += 1;
            }
            if wrong > 0 {
                self.image.file.write_all_at(&bytes, block + part)?;
                self.repaired += wrong;
                self.too_low += too_low;
            }
        }
        Ok(used)
    }

    /// Cut off what is not used, and take the marks away that are not true any more.
    fn finish(self) -> Result<Checked, Malformed> {
        let (image, header) = (self.image, &self.image.header);
        let len = self.counts.end << header.cluster_bits;
        if self.repaired > 0 || header.incompatible & DIRTY != 0 {
            image.file.sync()?;
        }
        if header.version == 3 {
            let clean = header.incompatible & !DIRTY;
            let mut marks = [0; 24];
            image.file.read_exact_at(&mut marks, 72)?;
            let wanted = [clean.to_be_bytes(), marks[8..16].try_into().unwrap_or_default(), [0; 8]].concat();
            if marks != *wanted {
                image.file.write_all_at(&wanted, 72)?;
            }
        }
        if image.len != len {
            image.file.set_len(len)?;
        }
        let refcounts = Refcounts::new(header, self.counts.end, len);
        Ok(Checked { refcounts, repaired: self.repaired, too_low: self.too_low })
    }
}

/// How much of an image was wrong that [`prepare`] has put right, and how many counts among it were too low.
#[cfg(test)]
pub(in crate::disk) fn problems(image: &Image) -> Result<(u64, u64), Malformed> {
    let len = image.file.len()?;
    let checked = prepare(image)?;
    Ok((checked.repaired + u64::from(checked.refcounts.file_len != len), checked.too_low))
}
