//! Where the pages of guest RAM lie in this process.

use std::ops::Range;

use arch::memory::GuestRam;
use vm_memory::{GuestMemory, GuestMemoryRegion};

/// A page, in bytes.
const PAGE: usize = 4096;

/// A region of RAM in this process. Its pages are counted over all regions, packed one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Its pages.
    pub(crate) pages: Range<u32>,
    /// The address of the first in this process.
    pub(crate) start: usize,
}

impl Extent {
    /// Where `pages` are, and their length in bytes; `None` if not all are here.
    pub(crate) fn place(&self, pages: &Range<u32>) -> Option<(*mut u8, usize)> {
        let count = pages.end.checked_sub(pages.start)?;
        let before = pages.start.checked_sub(self.pages.start).filter(|_| pages.end <= self.pages.end)?;
        let start = self.start.checked_add((before as usize).checked_mul(PAGE)?)?;
        Some((start as *mut u8, (count as usize).checked_mul(PAGE)?))
    }

    /// Those of `pages` that are here.
    pub(crate) fn part(&self, pages: &Range<u32>) -> Range<u32> {
        let (start, end) = (pages.start.max(self.pages.start), pages.end.min(self.pages.end));
        start..end.max(start)
    }

    /// The pages that lie wholly in `addresses`.
    pub(crate) fn pages_at(&self, addresses: &Range<usize>) -> Range<u32> {
        let own = self.addresses();
        let (start, end) = (addresses.start.max(own.start), addresses.end.min(own.end));
        if start >= end {
            return self.pages.start..self.pages.start;
        }
        let page = |address: usize| {
            self.pages.start.saturating_add((address.saturating_sub(own.start) / PAGE) as u32)
        };
        page(start)..page(end)
    }

    /// All of it, as addresses.
    pub(crate) fn addresses(&self) -> Range<usize> {
        let len = (self.pages.len()).saturating_mul(PAGE);
        self.start..self.start.saturating_add(len)
    }
}

/// The regions of `ram`.
pub(crate) fn extents(ram: &GuestRam) -> Vec<Extent> {
    let mut before: u32 = 0;
    let extent = |region: &vm_memory::GuestRegionMmap<()>| {
        let pages = u32::try_from(region.len() / PAGE as u64).unwrap_or(u32::MAX);
        let first = before;
        before = before.saturating_add(pages);
        Extent { pages: first..before, start: region.as_ptr() as usize }
    };
    ram.iter().map(extent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_found_in_their_extent_alone() {
        let extent = Extent { pages: 10..20, start: 0x1_0000 };
        assert_eq!(extent.place(&(11..13)), Some((0x1_1000 as *mut u8, 0x2000)));
        assert_eq!(extent.place(&(10..20)).map(|(_, len)| len), Some(0xa000));
        for outside in [9..11, 19..21, 20..21, 0..30] {
            assert_eq!(extent.place(&outside), None, "{outside:?}");
        }
        assert_eq!([extent.part(&(0..12)), extent.part(&(12..30))], [10..12, 12..20]);
        assert!(extent.part(&(30..40)).is_empty());
        assert_eq!(extent.addresses(), 0x1_0000..0x1_a000);
        assert_eq!(extent.pages_at(&(0x1_1000..0x1_3000)), 11..13);
        assert_eq!(extent.pages_at(&(0..0x8_0000)), 10..20);
        assert!(extent.pages_at(&(0..0x1_0000)).is_empty());
    }
}
