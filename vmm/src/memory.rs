//! The guest's RAM: reserved lazily, shown to KVM. Nothing is touched before the guest or its loader does.

use std::fs;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use arch::layout;
use arch::memory::{GuestRam, SharedRam};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::spec::Memory;

/// The guest's memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has less.
    #[error("{asked} of memory are more than this host has ({}): ask for less with --memory", Memory(*.host))]
    MoreThanHost {
        /// What was asked for.
        asked: Memory,
        /// All of the host's RAM, in bytes.
        host: u64,
    },
    /// It cannot be reserved.
    #[error("cannot reserve {asked} of memory for the guest: ask for less with --memory, or raise ulimit -v")]
    Reserve {
        /// What was asked for.
        asked: Memory,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// The regions do not fit together: a defect of skiff.
    #[error("the guest's memory regions overlap")]
    Layout(#[source] vm_memory::region::GuestRegionCollectionError),
    /// KVM does not take it.
    #[error("KVM does not take the guest's memory")]
    Register(#[source] io::Error),
}

/// Refuse more memory than the host has in all.
///
/// # Errors
/// If `memory` is more.
pub fn check(memory: Memory) -> Result<(), MemoryError> {
    let host = host_memory();
    // Rounded down to whole MiB so that the message can be read.
    let host = host & !((1 << 20) - 1);
    if host != 0 && memory.0 > host {
        return Err(MemoryError::MoreThanHost { asked: memory, host });
    }
    Ok(())
}

/// All of the host's RAM in bytes, or 0 where it does not say.
fn host_memory() -> u64 {
    // SAFETY: sysconf reads no memory of ours.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).unwrap_or(0).saturating_mul(u64::try_from(size).unwrap_or(0))
}

/// Reserve the guest's RAM, split around the 32-bit hole.
///
/// # Errors
/// If the host refuses.
pub fn reserve(memory: Memory) -> Result<SharedRam, MemoryError> {
    let mut ranges = Vec::new();
    for (start, len) in layout::ram_regions(memory.0) {
        // skiff is for 64-bit hosts alone: a length fits a usize.
        ranges.push((GuestAddress(start), len as usize));
    }
    let mut regions = Vec::new();
    for (start, len) in ranges {
        let region = with_aligned_place(len, || GuestRegionMmap::from_range(start, len, None));
        let region =
            region.map_err(|error| MemoryError::Reserve { asked: memory, source: host_reason(error) })?;
        prefer_huge_pages(&region);
        regions.push(region);
    }
    let ram = GuestRam::from_regions(regions).map_err(MemoryError::Layout)?;
    Ok(Arc::new(ram))
}

/// The host's own words, without those of the library that asked it.
fn host_reason(error: FromRangesError) -> io::Error {
    match error {
        FromRangesError::MmapRegion(MmapRegionError::Mmap(error)) => error,
        other => io::Error::other(other),
    }
}

/// What a page table's second level maps at once.
const HUGE_PAGE: usize = 2 << 20;

/// Run `map`, which maps `len` bytes anywhere, so that they are likely to start at a multiple of [`HUGE_PAGE`].
///
/// Linux before 6.7 does not align anonymous memory, and KVM maps huge pages only where host and guest addresses agree
/// below 2 MiB. Linux takes the highest hole that is large enough, so one of just the right length and place is
/// made for as long as it takes. If the mapping goes elsewhere, memory is slower and nothing else.
fn with_aligned_place<T>(len: usize, map: impl FnOnce() -> T) -> T {
    let hole = Hole::make(len);
    let mapped = map();
    drop(hole);
    mapped
}

/// A hole in the address space at a multiple of [`HUGE_PAGE`], kept open by what is reserved on both sides of it.
struct Hole {
    below: (usize, usize),
    above: (usize, usize),
}

impl Hole {
    fn make(len: usize) -> Option<Self> {
        let whole = len.checked_add(HUGE_PAGE)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let start = start as usize;
        let hole = start.next_multiple_of(HUGE_PAGE);
        unmap(hole, len);
        let above = hole + len;
        Some(Self { below: (start, hole - start), above: (above, start + whole - above) })
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        for (start, len) in [self.below, self.above] {
            unmap(start, len);
        }
    }
}

/// Give back a part of what [`Hole::make`] reserved.
fn unmap(start: usize, len: usize) {
    if len > 0 {
        // SAFETY: a part of a mapping that is ours alone, that nothing points into, and that is unmapped once.
        unsafe { libc::munmap(start as *mut libc::c_void, len) };
    }
}

/// Fewer, larger pages: a guest touches most of its memory soon, and every first touch leaves the guest.
fn prefer_huge_pages(region: &GuestRegionMmap<()>) {
    // SAFETY: the range is the region's own mapping; the advice changes how it is backed, not what it holds.
    let refused = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) } != 0;
    if refused {
        log::debug!("no transparent huge pages: {}", io::Error::last_os_error());
    }
}

/// Show all of `ram` to KVM, one slot a region.
///
/// # Errors
/// If KVM refuses.
pub fn register(vm: &VmFd, ram: &GuestRam) -> Result<(), MemoryError> {
    for (slot, region) in (0..).zip(ram.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is the region's own, of that length, and outlives the VM: whoever holds the VM
        // holds the RAM beside it.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|error| MemoryError::Register(error.into()))?;
    }
    Ok(())
}

/// How much of `ram` the host has backed with memory of its own, in bytes; 0 where it does not tell.
pub fn resident(ram: &GuestRam) -> u64 {
    let range = |region: &GuestRegionMmap<()>| {
        let start = region.as_ptr() as u64;
        start..start + region.len()
    };
    let regions: Vec<_> = ram.iter().map(range).collect();
    match fs::read_to_string("/proc/self/smaps") {
        Ok(smaps) => resident_in(&smaps, &regions),
        Err(error) => {
            log::debug!("how much memory is resident is not known: {error}");
            0
        }
    }
}

/// What `smaps` (proc_pid_smaps(5)) says of the mappings that overlap `regions`.
fn resident_in(smaps: &str, regions: &[Range<u64>]) -> u64 {
    let mut ours = false;
    let mut kib = 0;
    for line in smaps.lines() {
        if let Some(mapping) = mapping(line) {
            ours = regions.iter().any(|region| mapping.start < region.end && region.start < mapping.end);
        } else if ours && let Some((name, value)) = line.split_once(':') {
            // Huge pages of hugetlbfs are not part of Rss.
            if matches!(name, "Rss" | "Private_Hugetlb" | "Shared_Hugetlb") {
                kib +=
                    value.trim().strip_suffix(" kB").and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
            }
        }
    }
    kib << 10
}

/// The range of the mapping that `line` begins with, if it does: `7f0000000000-7f0040000000 rw-p …`.
fn mapping(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn more_memory_than_the_host_has_is_refused_with_both_figures() {
        let error = check(Memory(1 << 60)).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("1073741824G of memory are more than this host has ("), "{text}");
        check(Memory(64 << 20)).unwrap();
    }

    #[test]
    fn ram_is_split_around_the_hole_and_not_touched() {
        let ram = reserve(Memory(6 << 30)).unwrap();
        let regions: Vec<_> = ram.iter().map(|r| (r.start_addr().0, r.len())).collect();
        assert_eq!(regions, [(0, 3 << 30), (4 << 30, 3 << 30)]);
    }

    #[test]
    fn what_is_touched_is_resident() {
        let ram = reserve(Memory(64 << 20)).unwrap();
        assert_eq!(resident(&ram), 0);
        ram.write_slice(&[1], GuestAddress(20 << 20)).unwrap();
        let touched = resident(&ram);
        assert!((4096..=HUGE_PAGE as u64).contains(&touched), "{touched}");
    }

    #[test]
    fn only_the_guests_own_mappings_count_huge_pages_too() {
        let smaps = "\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0 \nSize:               2048 kB\nRss:                  12 kB
7f0000200000-7f0000400000 rw-p 00000000 00:0f 1 /anon_hugepage (deleted)\nRss:  0 kB\nPrivate_Hugetlb:    2048 kB
7f0000400000-7f0000401000 r-xp 00000000 00:0f 1 /lib/x.so\nRss:  4 kB\nVmFlags: rd ex mr mw me\n";
        let base = 0x7f00_0000_0000;
        let of = |start, len| resident_in(smaps, std::slice::from_ref(&(start..start + len)));
        assert_eq!(of(base, 0x40_0000), (12 << 10) + (2 << 20));
        assert_eq!(of(base + 0x40_0800, 1), 4 << 10);
        assert_eq!(of(0, base), 0);
    }

    /// Other tests map and unmap memory meanwhile, which may spoil a try; not all of them.
    #[test]
    fn huge_pages_fit_whatever_the_length() {
        for mib in [64, 65, 255, 4097] {
            let aligned = (0..20).any(|_| {
                let ram = reserve(Memory(mib << 20)).unwrap();
                ram.iter().all(|region| (region.as_ptr() as usize).is_multiple_of(HUGE_PAGE))
            });
            assert!(aligned, "{mib} MiB");
        }
    }
}
