//! What the kernel says of this process's own mappings: which pages are its own, and what is mapped where.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::index::PAGE;
use crate::memory::{Extent, mapping};

/// How many pages are asked for at once.
const ENTRIES: usize = 1 << 16;

/// A page's flags (Documentation/admin-guide/mm/pagemap.rst): it is in memory, or swapped out; it is a file's or shared.
const PRESENT_OR_SWAPPED: u64 = 3 << 62;
const OF_FILE: u64 = 1 << 61;

/// Add the pages of `extent` to `found` that are not a file's: written to, of whatever size, in memory or swapped out. The
/// kernel's one page of zeros is among them.
pub(super) fn private(extent: &Extent, found: &mut Vec<Range<u32>>) -> io::Result<()> {
    let pagemap = File::open("/proc/self/pagemap")?;
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
        let mut found = vec![5..7];
        runs_of(7, &bytes, &mut found);
        assert_eq!(found, [5..9, 12..13]);
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
