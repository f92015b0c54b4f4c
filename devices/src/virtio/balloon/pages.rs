//! Pages that the guest names, in two ways, and how the host has them back.

use std::io;
use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use arch::memory::GuestRam;

use crate::ratelog;
use crate::virtio::chain::{Chain, Segment};

/// A balloon's page, in bytes, whatever the guest's own are (virtio 1.2, 5.5.6).
pub(super) const PAGE: u64 = 4096;

/// How many page numbers of one request are looked at. Linux lists 256 at a time; a request of more is a driver's way
/// to keep the host busy, and pages that stay are no harm.
const MOST: usize = 4096;

/// Guest-physical memory, page-aligned, in order and without overlaps: a page that is named often is given back once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pages(Vec<Range<u64>>);

impl Pages {
    /// Those that the readable part of a request lists: little-endian page numbers of 32 bits (5.5.6).
    pub(super) fn listed(chain: &Chain, ram: &GuestRam) -> Self {
        let len = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX).min(4 * MOST);
        let mut bytes = vec![0; len];
        let read = chain.read(ram, 0, &mut bytes);
        bytes.truncate(read);
        let mut pages = Vec::new();
        for number in bytes.as_chunks::<4>().0 {
            let start = u64::from(u32::from_le_bytes(*number)) * PAGE;
            // RAM begins and ends at whole pages.
            if ram.address_in_range(GuestAddress(start)) {
                pages.push(start..start + PAGE);
            } else {
                ratelog::warn(format_args!("the balloon's page at {start:#x} is not memory"));
            }
        }
        Self::merge(pages)
    }

    /// The whole pages of `segments`, which lie in RAM.
    pub(super) fn inside(segments: &[Segment]) -> Self {
        let whole = |segment: &Segment| {
            let start = segment.addr.0.checked_next_multiple_of(PAGE)?;
            let end = segment.addr.0.checked_add(segment.len.into())?;
            Some(start..end - end % PAGE).filter(|range| !range.is_empty())
        };
        Self::merge(segments.iter().filter_map(whole).collect())
    }

    fn merge(mut all: Vec<Range<u64>>) -> Self {
        all.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in all {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self(merged)
    }

    pub(super) fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// In bytes.
    pub(super) fn len(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }
}

/// Give the memory behind `range` back to the host. When the guest touches it again it is zero.
///
/// At once (`MADV_DONTNEED`) and not when the host is short of it (`MADV_FREE`): the latter still counts as resident, for
/// whoever watches the VM and for the host's own accounting of it, and is taken only after other memory was reclaimed. It
/// would also leave it to chance whether the guest finds what was there.
pub(super) fn discard(ram: &GuestRam, range: &Range<u64>) -> io::Result<()> {
    let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    for slice in ram.get_slices(GuestAddress(range.start), len) {
        let slice = slice.map_err(io::Error::other)?;
        let start = slice.ptr_guard_mut().as_ptr();
        // SAFETY: the range lies in a mapping of guest RAM that `ram` keeps; nothing in this process has a Rust reference into
        // it or relies on what it holds, which the guest may change at any time.
        if unsafe { libc::madvise(start.cast(), slice.len(), libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(addr: u64, len: u32) -> Segment {
        Segment { addr: GuestAddress(addr), len }
    }

    #[test]
    fn only_whole_pages_of_a_buffer_are_meant() {
        let of = |segments: &[Segment]| Pages::inside(segments).0;
        assert_eq!(of(&[segment(0x1000, 0x2000), segment(0x7001, 0x2000)]), [0x1000..0x3000, 0x8000..0x9000]);
        assert!(of(&[segment(0x1001, 0x1ffe), segment(0x5000, 0xfff), segment(u64::MAX - 1, 9)]).is_empty());
        assert!(of(&[segment(0x1001, 0x10)]).is_empty());
    }

    #[test]
    fn pages_are_put_together_however_they_come() {
        let segments =
            [(0x5000, 0x1000), (0x1000, 0x1000), (0x2000, 0x1000), (0x1000, 0x3000), (0x1000, 0x1000)];
        let pages = Pages::inside(&segments.map(|(addr, len)| segment(addr, len)));
        assert_eq!(pages.ranges(), [0x1000..0x4000, 0x5000..0x6000]);
        assert_eq!(pages.len(), 0x4000);
    }
}
