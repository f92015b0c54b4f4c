//! Pages that the guest names, in two ways, and how the host has them back.

use std::io;
use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryRegion, MemoryRegionAddress};

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

/// What a page may hold when the guest touches it again after it was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Anything: it is in the balloon, and undefined until the driver has it back (5.5.6).
    Anything,
    /// Zeros, or it stays as it is: it was reported as free (5.5.6.7).
    Zeros,
}

/// Give the memory behind `range` back to the host, as far as it can be taken. Returns how many bytes that were.
///
/// At once (`MADV_DONTNEED`) and not when the host is short of it (`MADV_FREE`): the latter still counts as resident, for
/// whoever watches the VM and for the host's own accounting of it, and is taken only after other memory was reclaimed. It
/// would also leave it to chance whether the guest finds what was there.
///
/// RAM that came from a snapshot is a private mapping of its file, and shows that again. Where there must be zeros, new memory is
/// mapped in its place; the file is never touched.
pub(super) fn discard(ram: &GuestRam, range: &Range<u64>, left: Left) -> io::Result<u64> {
    let mut given: u64 = 0;
    for region in ram.iter() {
        let first = region.start_addr().0;
        let (start, end) = (range.start.max(first), range.end.min(first.saturating_add(region.len())));
        let zeros = left == Left::Zeros && region.file_offset().is_some();
        let (start, end) = if zeros { (up(start), end - end % LARGE) } else { (start, end) };
        let Some(bytes) = end.checked_sub(start).filter(|bytes| *bytes > 0) else { continue };
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        let slice = region.get_slice(MemoryRegionAddress(start - first), len).map_err(io::Error::other)?;
        let host = slice.ptr_guard_mut().as_ptr().cast();
        if zeros { map_zeros(host, len) } else { forget(host, len) }?;
        given = given.saturating_add(bytes);
    }
    Ok(given)
}

/// The least that gets a mapping of its own: there can only be so many. Linux reports no less.
const LARGE: u64 = 2 << 20;

fn up(address: u64) -> u64 {
    address.checked_next_multiple_of(LARGE).unwrap_or(u64::MAX)
}

fn forget(host: *mut libc::c_void, len: usize) -> io::Result<()> {
    // SAFETY: the range lies in a mapping of guest RAM that its owner keeps meanwhile; nothing in this process has a Rust reference
    // into it or relies on what it holds, which the guest may change at any time.
    if unsafe { libc::madvise(host, len, libc::MADV_DONTNEED) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn map_zeros(host: *mut libc::c_void, len: usize) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: as in `forget`; the new mapping takes the place of the old one at once, for whoever is at work in it, and is unmapped
    // with the rest of the region.
    let mapped = unsafe { libc::mmap(host, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
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

    /// RAM at 2 MiB, privately of a file that is full of sevens.
    fn of_a_file() -> (GuestRam, std::fs::File) {
        use std::os::unix::fs::FileExt;
        use vm_memory::{FileOffset, GuestRegionMmap, MmapRegion};
        const LEN: usize = 8 << 20;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; LEN], 0).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let region = MmapRegion::build(Some(offset), LEN, prot, libc::MAP_PRIVATE).unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(LARGE)).unwrap();
        (GuestRam::from_regions(vec![region]).unwrap(), file)
    }

    #[test]
    fn pages_of_a_snapshot_are_zero_where_they_must_be_and_its_file_stays() {
        use std::os::unix::fs::FileExt;
        use vm_memory::Bytes;
        let (ram, file) = of_a_file();
        ram.write_slice(&vec![9; 8 << 20], GuestAddress(LARGE)).unwrap();
        // In the balloon: what was written is gone.
        assert_eq!(discard(&ram, &(LARGE..LARGE + 4 * PAGE), Left::Anything).unwrap(), 4 * PAGE);
        // Reported: the whole pieces in it are zero, and what is too little stays.
        let reported = 2 * LARGE - PAGE..4 * LARGE + PAGE;
        assert_eq!(discard(&ram, &reported, Left::Zeros).unwrap(), 2 * LARGE);
        assert_eq!(discard(&ram, &(LARGE + 8 * PAGE..LARGE + 9 * PAGE), Left::Zeros).unwrap(), 0);
        let at = |address| ram.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!([LARGE, LARGE + 4 * PAGE, LARGE + 8 * PAGE, 2 * LARGE - 1].map(at), [7, 9, 9, 9]);
        assert_eq!([2 * LARGE, 3 * LARGE, 4 * LARGE - 1, 4 * LARGE].map(at), [0, 0, 0, 9]);
        let mut all = vec![0; 8 << 20];
        file.read_exact_at(&mut all, 0).unwrap();
        assert!(all.iter().all(|byte| *byte == 7));
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
