//! What the kernel says of this process's own mappings: which pages are its own, and what is mapped where.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::index::PAGE;
use crate::memory::{Extent, mapping};

/// How many pages are asked for at once.
const ENTRIES: usize = 1 << 16;

/// A page's flags (Documentation/admin-guide/mm/pagemap.rst): it is in memory, or swapped out; it is a file's or shared.
const PRESENT_OR_SWAPPED: u64 = 3 << 62;
const OF_FILE: u64 = 1 << 61;

/// Add the pages of `extent` to `found` that are not a file's: written to, of whatever size, in memory or swapped out. The
/// kernel's one page of zeros may be among them.
pub(super) fn private(extent: &Extent, found: &mut Vec<Range<u32>>) -> io::Result<()> {
    let pagemap = File::open("/proc/self/pagemap")?;
    match scan(&pagemap, extent, found) {
        // Before Linux 6.7; what was found already does no harm.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            read(&pagemap, extent, found)
        }
        result => result,
    }
}

/// `PAGEMAP_SCAN` and what it takes and gives: `struct pm_scan_arg`, `struct page_region` (linux/fs.h).
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;

#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// Categories of pages.
mod category {
    pub(super) const FILE: u64 = 1 << 2;
    pub(super) const PRESENT: u64 = 1 << 3;
    pub(super) const SWAPPED: u64 = 1 << 4;
    /// The kernel's page of zeros.
    pub(super) const ZERO: u64 = 1 << 5;
}

/// Have the kernel look: what was never touched costs nothing.
fn scan(pagemap: &File, extent: &Extent, found: &mut Vec<Range<u32>>) -> io::Result<()> {
    let addresses = extent.addresses();
    let (mut start, end) = (addresses.start as u64, addresses.end as u64);
    let mut regions = vec![PageRegion::default(); 1 << 12];
    while start < end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            start,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_inverted: category::FILE | category::ZERO,
            category_mask: category::FILE | category::ZERO,
            category_anyof_mask: category::PRESENT | category::SWAPPED,
            return_mask: category::PRESENT,
            ..ScanArg::default()
        };
        // SAFETY: the argument is of the length it says, and so is the vector that it points to; both are ours to write.
        let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for region in regions.iter().take(count) {
            found.push(extent.pages_at(&(region.start as usize..region.end as usize)));
        }
        if arg.walk_end <= start {
            return Err(io::ErrorKind::InvalidData.into());
        }
        start = arg.walk_end;
    }
    Ok(())
}

/// Read what the kernel has on each page.
fn read(pagemap: &File, extent: &Extent, found: &mut Vec<Range<u32>>) -> io::Result<()> {
    let mut entries = vec![0; ENTRIES * 8];
    let mut first = extent.pages.start;
    while first < extent.pages.end {
        let count = (extent.pages.end - first).min(ENTRIES as u32);
        let (at, _) = extent.place(&(first..first + count)).ok_or(io::ErrorKind::InvalidInput)?;
        let entries = entries.get_mut(..count as usize * 8).ok_or(io::ErrorKind::InvalidInput)?;
        pagemap.read_exact_at(entries, at as u64 / PAGE * 8)?;
        runs_of(first, entries, found);
        first += count;
    }
    Ok(())
}

/// Add the private pages among `entries`, the first of which is the page `first`.
fn runs_of(first: u32, entries: &[u8], found: &mut Vec<Range<u32>>) {
    for (page, entry) in (first..).zip(entries.as_chunks::<8>().0) {
        let entry = u64::from_ne_bytes(*entry);
        if entry & PRESENT_OR_SWAPPED == 0 || entry & OF_FILE != 0 {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.end == page => last.end = page + 1,
            _ => found.push(page..page + 1),
        }
    }
}

/// What is mapped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) addresses: Range<usize>,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No file.
    Anonymous,
    /// Something of the kernel's that is no file of a file system: a vCPU, a ring.
    Kernel,
    /// A file.
    File,
}

/// All mappings of this process.
pub(super) fn mappings() -> io::Result<Vec<Mapping>> {
    Ok(fs::read_to_string("/proc/self/maps")?.lines().filter_map(mapping_of).collect())
}

/// A line of proc_pid_maps(5): `7f0000000000-7f0040000000 rw-p 00000000 00:0f 1234   /path`.
fn mapping_of(line: &str) -> Option<Mapping> {
    let range = mapping(line)?;
    let addresses = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
    let mut fields = line.split_ascii_whitespace().skip(4);
    let (inode, path) = (fields.next()?, fields.next().unwrap_or_default());
    let kind = match inode {
        _ if path.starts_with("anon_inode:") => Kind::Kernel,
        "0" => Kind::Anonymous,
        _ => Kind::File,
    };
    Some(Mapping { addresses, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_files_and_untouched_ones_are_not_private() {
        let (present, swapped) = (1 << 63, 1 << 62);
        let entries = [present, swapped, present | OF_FILE, 0, swapped | OF_FILE, present | 1];
        let bytes: Vec<u8> = entries.into_iter().flat_map(u64::to_ne_bytes).collect();
        let mut found = vec![1..2, 5..7];
        runs_of(7, &bytes, &mut found);
        assert_eq!(found, [1..2, 5..9, 12..13]);
    }

    /// On a kernel that has both ways.
    #[test]
    fn both_ways_to_ask_find_what_was_written_to_and_nothing_else() {
        const LEN: usize = 1 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new private mapping of a file of that length, at an address of the kernel's choice.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), LEN, prot, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let page = |at: usize| start.cast::<u8>().wrapping_add(at * PAGE as usize);
        for at in [3, 4, 200] {
            // SAFETY: the page lies in the mapping, which nothing else uses.
            unsafe { page(at).write_volatile(1) };
        }
        // SAFETY: as above.
        assert_eq!(unsafe { page(100).read_volatile() }, 0);
        let extent = Extent { pages: 1000..1256, start: start as usize };
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let (mut scanned, mut plain) = (Vec::new(), Vec::new());
        read(&pagemap, &extent, &mut plain).unwrap();
        assert_eq!(plain, [1003..1005, 1200..1201]);
        match scan(&pagemap, &extent, &mut scanned) {
            Ok(()) => assert_eq!(scanned, plain),
            Err(error) => eprintln!("skipped: {error}"),
        }
        // SAFETY: the mapping is this test's own.
        unsafe { libc::munmap(start, LEN) };
    }

    #[test]
    fn mappings_are_told_apart() {
        let kind = |line| mapping_of(line).map(|mapping| mapping.kind);
        assert_eq!(kind("7f00-7f10 rw-p 00000000 00:00 0 "), Some(Kind::Anonymous));
        assert_eq!(kind("7f00-7f10 rw-p 00001000 fd:00 17    /tmp/a b"), Some(Kind::File));
        assert_eq!(kind("7f00-7f10 rw-p 00000000 00:10 1035  anon_inode:kvm-vcpu:0"), Some(Kind::Kernel));
        assert_eq!(kind("7f00-7f10 rw-s 00000000 00:10 1035  anon_inode:[io_uring]"), Some(Kind::Kernel));
        assert_eq!(kind("7f00-7f10"), None);
        assert!(mappings().unwrap().iter().any(|mapping| mapping.kind == Kind::File));
    }
}
