//! Huge pages that a copy-on-write child has broken up, made whole again.
//!
//! While a child has the guest's memory too, each first write to a page copies 4 KiB of it, and the huge page around it is mapped as
//! 512 small ones from then on. The guest is slower with those, and the next fork too: it copies a table entry for each (1 GiB: 0.5 ms
//! in huge pages, 8 to 20 ms in small ones). The kernel's own khugepaged takes minutes for 1 GiB.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use arch::memory::GuestRam;

use super::index::PAGE;
use crate::memory::extents;
use crate::spec;

/// `MADV_COLLAPSE`, of Linux 6.1.
const COLLAPSE: libc::c_int = 25;
const HUGE_PAGE: usize = spec::HUGE_PAGE as usize;
const ENTRIES: usize = HUGE_PAGE / PAGE as usize * 8;
/// A page's flags (Documentation/admin-guide/mm/pagemap.rst): it is in memory; it is a file's or shared.
const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;

/// How long the guest is left alone after each huge page: to make one keeps it from touching new memory, for up to 0.5 ms. One that
/// was whole already takes less than [`WORK`].
const PAUSE: Duration = Duration::from_micros(500);
const WORK: Duration = Duration::from_micros(100);

/// Make huge pages of what `ram` has in small ones, where all of a huge page's memory is the guest's own already, for as long as
/// `go_on` says so. Returns how many are whole at the end.
///
/// Nothing is lost where that fails: before Linux 6.1, over a snapshot's file, or with too little memory in one piece.
pub fn rejoin(ram: &GuestRam, mut go_on: impl FnMut() -> bool) -> u64 {
    let Ok(pagemap) = File::open("/proc/self/pagemap") else { return 0 };
    let mut whole = 0;
    for extent in extents(ram) {
        let Range { start, end } = extent.addresses();
        for at in (start.next_multiple_of(HUGE_PAGE)..end).step_by(HUGE_PAGE) {
            if end - at < HUGE_PAGE || !is_full(&pagemap, at) {
                continue;
            }
            if !go_on() {
                return whole;
            }
            let started = Instant::now();
            // SAFETY: the range is a part of the region's own mapping; how it is backed changes, not what it holds.
            if unsafe { libc::madvise(at as *mut libc::c_void, HUGE_PAGE, COLLAPSE) } == 0 {
                whole += 1;
                if started.elapsed() > WORK {
                    thread::sleep(PAUSE);
                }
            }
        }
    }
    whole
}

/// Whether all pages of the huge page at this address are in memory, and this process's own.
fn is_full(pagemap: &File, at: usize) -> bool {
    let mut entries = [0; ENTRIES];
    if pagemap.read_exact_at(&mut entries, at as u64 / PAGE * 8).is_err() {
        return false;
    }
    let own = |entry: &[u8; 8]| u64::from_ne_bytes(*entry) & (PRESENT | OF_FILE) == PRESENT;
    entries.as_chunks().0.iter().all(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{reserve, resident};
    use crate::spec::{Memory, MemorySpec};
    use vm_memory::{Bytes, GuestAddress, GuestMemory};

    #[test]
    fn only_what_is_full_is_joined_and_nothing_changes_in_it() {
        let spec = MemorySpec { size: Memory(64 << 20), hugepages: false, overcommit: false };
        let ram = reserve(&spec).unwrap();
        let region = ram.iter().next().unwrap();
        // SAFETY: the region's own mapping, which nothing points into.
        let small = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_NOHUGEPAGE) };
        assert_eq!(small, 0);
        let full: Vec<u8> = (0..8 << 20).map(|at| (at / 4096) as u8).collect();
        ram.write_slice(&full, GuestAddress(0)).unwrap();
        ram.write_slice(&[1; 4096], GuestAddress(32 << 20)).unwrap();
        let before = resident(&ram);
        // SAFETY: as above.
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) };
        assert_eq!(rejoin(&ram, || false), 0);
        let whole = rejoin(&ram, || true);
        // Where the host has none to give, nothing happens.
        assert!(whole <= 4, "{whole}");
        assert_eq!(resident(&ram), before);
        let mut read = vec![0; full.len()];
        ram.read_slice(&mut read, GuestAddress(0)).unwrap();
        assert!(read == full);
    }
}
