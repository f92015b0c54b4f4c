//! [`Map`]: which parts of a file an archive has.

use super::header::{BLOCK, number};
use super::pax::decimal;

/// How many parts a file may have: a map of so many takes 16 MiB.
const PARTS_LIMIT: usize = 1 << 20;

/// The parts of a file that are no holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// The length of the file in bytes.
    pub size: u64,
    /// Offsets and lengths.
    pub parts: Vec<(u64, u64)>,
}

impl Map {
    /// Whether the parts are in order, in the file, and `stored` bytes together.
    pub fn is_right(&self, stored: u64) -> bool {
        let (mut end, mut sum) = (0_u64, 0_u64);
        for (offset, length) in &self.parts {
            let Some(to) = offset.checked_add(*length).filter(|to| *offset >= end && *to <= self.size) else {
                return false;
            };
            end = to;
            // Parts do not overlap, so that their sum is below the size.
            sum = sum.saturating_add(*length);
        }
        sum == stored && self.parts.len() <= PARTS_LIMIT
    }

    /// From a header of GNU's, and whether more parts follow it.
    pub fn of_header(header: &[u8]) -> Option<(Self, bool)> {
        let mut map = Self { size: number(header.get(483..495)?)?, parts: Vec::new() };
        map.add(header.get(386..482)?)?;
        Some((map, *header.get(482)? != 0))
    }

    /// From a block behind it, and whether one more follows.
    pub fn extend(&mut self, block: &[u8]) -> Option<bool> {
        self.add(block.get(..504)?)?;
        Some(*block.get(504)? != 0)
    }

    /// Pairs of numbers of 12 bytes, up to one that is empty.
    fn add(&mut self, bytes: &[u8]) -> Option<()> {
        for pair in bytes.chunks_exact(24) {
            let (offset, length) = pair.split_at_checked(12)?;
            if length.first() == Some(&0) || offset.first() == Some(&0) {
                break;
            }
            self.parts.push((number(offset)?, number(length)?));
        }
        (self.parts.len() <= PARTS_LIMIT).then_some(())
    }
}

/// A map as lines of decimal numbers: how many parts there are, then the offset and length of each.
#[derive(Default)]
pub struct Lines {
    numbers: Vec<u64>,
    /// A line whose end is in the next block.
    line: Vec<u8>,
}

impl Lines {
    /// The next block of them.
    pub fn add(&mut self, block: &[u8; BLOCK]) -> Option<()> {
        for byte in block {
            if self.are_complete() {
                break;
            }
            match byte {
                b'\n' => self.numbers.push(decimal(&std::mem::take(&mut self.line))?),
                _ if self.line.len() < 20 => self.line.push(*byte),
                _ => return None,
            }
        }
        let count = self.numbers.first().copied().unwrap_or_default();
        usize::try_from(count).is_ok_and(|count| count <= PARTS_LIMIT).then_some(())
    }

    /// Whether all lines are there.
    pub fn are_complete(&self) -> bool {
        let count = self.numbers.first().and_then(|count| count.checked_mul(2)?.checked_add(1));
        count.is_some_and(|count| self.numbers.len() as u64 >= count)
    }

    /// The map of a file of `size` bytes.
    pub fn map(self, size: u64) -> Option<Map> {
        let parts = self.numbers.get(1..)?.chunks_exact(2);
        Some(Map { size, parts: parts.filter_map(|part| Some((*part.first()?, *part.get(1)?))).collect() })
    }
}
