//! [`Content`]: a file's data, by its extents or its list of blocks.

use std::io::{self, Read};

use super::inode::EXTENTS;
use super::{Inode, ReadError, Reader, damaged, u16_at, u32_at};

/// What every node of a tree of extents begins with.
const MAGIC: u16 = 0xf30a;
/// The deepest tree of extents.
const DEPTH: u16 = 5;
/// The most runs of blocks that a file may be in: it is kept in memory.
const RUNS: usize = 1 << 20;
/// How many of a file's blocks an inode names itself.
const DIRECT: usize = 12;

/// Blocks in a row, of a file and on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Of the file.
    first: u64,
    /// Of the disk.
    at: u64,
    count: u64,
}

/// A file's data, from its start to its end; holes are zeroes.
pub struct Content<'r, 'a> {
    reader: &'r mut Reader<'a>,
    runs: Vec<Run>,
    /// The run that was read last, or the first one behind it.
    run: usize,
    at: u64,
    size: u64,
}

/// The runs of a file as they are found, in the order of the file.
struct Found {
    runs: Vec<Run>,
    /// Behind the last run, in blocks of the file.
    end: u64,
    /// Of the file, in blocks.
    size: u64,
}

impl<'a> Reader<'a> {
    /// A file's data, or that of anything else that has blocks.
    ///
    /// # Errors
    /// If its blocks cannot be told.
    pub fn content<'r>(&'r mut self, inode: &Inode) -> Result<Content<'r, 'a>, ReadError> {
        let mut found = Found { runs: Vec::new(), end: 0, size: inode.size.div_ceil(self.shape.block) };
        if inode.flags & EXTENTS != 0 {
            self.extents(&inode.map, None, &mut found)?;
        } else {
            self.listed(&inode.map, &mut found)?;
        }
        Ok(Content { reader: self, runs: found.runs, run: 0, at: 0, size: inode.size })
    }

    /// The extents below a node, which has this depth if it is not the inode's own.
    fn extents(&mut self, node: &[u8], depth: Option<u16>, found: &mut Found) -> Result<(), ReadError> {
        let wrong = || damaged("a tree of extents");
        let (count, own) = (usize::from(u16_at(node, 2)?), u16_at(node, 6)?);
        if u16_at(node, 0)? != MAGIC || own > DEPTH || depth.is_some_and(|depth| depth != own) {
            return Err(wrong());
        }
        let entries = node.get(12..).unwrap_or_default().chunks_exact(12).take(count);
        if entries.len() != count {
            return Err(wrong());
        }
        let mut last = None;
        for entry in entries {
            let first = u64::from(u32_at(entry, 0)?);
            // Each node comes once: there is no way around in a circle.
            if last.is_some_and(|last| first <= last) || first < found.end {
                return Err(wrong());
            }
            last = Some(first);
            if own > 0 {
                let block = u64::from(u32_at(entry, 4)?) | u64::from(u16_at(entry, 8)?) << 32;
                self.spend(self.shape.block)?;
                let below = self.block(block)?;
                self.extents(&below, own.checked_sub(1), found)?;
                continue;
            }
            let len = u64::from(u16_at(entry, 4)?);
            let at = u64::from(u32_at(entry, 8)?) | u64::from(u16_at(entry, 6)?) << 32;
            // Longer than any can be: there is room for data, but none yet.
            let (written, len) = if len > 0x8000 { (false, len - 0x8000) } else { (true, len) };
            found.run(first, at, len, written)?;
        }
        Ok(())
    }

    /// The blocks that an inode lists, as before ext4: twelve, a list, a list of lists, and one of those.
    fn listed(&mut self, map: &[u8], found: &mut Found) -> Result<(), ReadError> {
        let mut next = 0;
        for (place, entry) in map.chunks_exact(4).enumerate() {
            let level = place.saturating_sub(DIRECT - 1);
            self.list(u32_at(entry, 0)?, level, &mut next, found)?;
        }
        if next < found.size { Err(damaged("a file is longer than any can be")) } else { Ok(()) }
    }

    /// One block of a list: data, or a list of that level. `next` is the block of the file that comes next.
    fn list(&mut self, block: u32, level: usize, next: &mut u64, found: &mut Found) -> Result<(), ReadError> {
        if *next >= found.size {
            return Ok(());
        }
        let each = self.shape.block / 4;
        // Blocks have at most 2^14 numbers, and there are three levels.
        let count = each.saturating_pow(u32::try_from(level).unwrap_or_default());
        if block == 0 || level == 0 {
            if block != 0 {
                found.run(*next, block.into(), 1, true)?;
            }
            *next = next.saturating_add(count);
            return Ok(());
        }
        self.spend(self.shape.block)?;
        let list = self.block(block.into())?;
        for entry in list.chunks_exact(4) {
            self.list(u32_at(entry, 0)?, level.saturating_sub(1), next, found)?;
        }
        Ok(())
    }
}

impl Found {
    /// The next run.
    fn run(&mut self, first: u64, at: u64, count: u64, written: bool) -> Result<(), ReadError> {
        if first < self.end || count == 0 {
            return Err(damaged("a tree of extents"));
        }
        self.end = first.saturating_add(count);
        if !written || first >= self.size {
            return Ok(());
        }
        let count = count.min(self.size.saturating_sub(first));
        if let Some(last) = self.runs.last_mut()
            && last.first.saturating_add(last.count) == first
            && last.at.saturating_add(last.count) == at
        {
            last.count = last.count.saturating_add(count);
            return Ok(());
        }
        if self.runs.len() >= RUNS {
            return Err(ReadError::Unsupported("a file in more than a million pieces"));
        }
        self.runs.push(Run { first, at, count });
        Ok(())
    }
}

impl Content<'_, '_> {
    /// How much of it is data and no hole, in bytes.
    #[must_use]
    pub fn data(&self) -> u64 {
        let blocks = self.runs.iter().fold(0_u64, |sum, run| sum.saturating_add(run.count));
        blocks.saturating_mul(self.reader.shape.block)
    }

    /// The next bytes: as many as there is room for.
    ///
    /// # Errors
    /// If there are fewer, or they cannot be read.
    pub fn fill(&mut self, mut into: &mut [u8]) -> Result<(), ReadError> {
        while !into.is_empty() {
            let got = self.next(into)?;
            if got == 0 {
                return Err(damaged("a file is shorter than it says"));
            }
            into = into.get_mut(got..).unwrap_or_default();
        }
        Ok(())
    }

    /// Some of the next bytes; 0: the end.
    fn next(&mut self, into: &mut [u8]) -> Result<usize, ReadError> {
        let block = self.reader.shape.block;
        let span = |run: &Run| (run.first.saturating_mul(block), run.count.saturating_mul(block));
        let left = self.size.saturating_sub(self.at);
        while self.runs.get(self.run).is_some_and(|run| span(run).0.saturating_add(span(run).1) <= self.at) {
            self.run = self.run.saturating_add(1);
        }
        let run = self.runs.get(self.run).copied();
        let (start, len) = run.as_ref().map_or((u64::MAX, 0), span);
        let within = self.at.checked_sub(start);
        let most = match within {
            Some(within) => len.saturating_sub(within),
            None => start.saturating_sub(self.at),
        };
        let most = usize::try_from(most.min(left)).unwrap_or(usize::MAX).min(into.len());
        let into = into.get_mut(..most).unwrap_or_default();
        match (run, within) {
            (Some(run), Some(within)) if !into.is_empty() => {
                let at = run.at.checked_mul(block).and_then(|at| at.checked_add(within));
                self.reader.spend(into.len() as u64)?;
                self.reader.read(at.ok_or_else(|| damaged("the number of a block"))?, into)?;
            }
            _ => into.fill(0),
        }
        self.at = self.at.saturating_add(into.len() as u64);
        Ok(into.len())
    }
}

/// Its errors are [`ReadError`]s.
impl Read for Content<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.next(into).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}
