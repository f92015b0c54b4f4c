//! The guest's RAM: reserved lazily, so that nothing is touched before the guest or its loader does, or of huge pages, all
//! taken at once; and shown to KVM.

use std::fs;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use arch::layout;
use arch::memory::{GuestRam, SharedRam};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::spec::{Memory, MemorySpec};

type Region = GuestRegionMmap<()>;

/// The guest's memory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host has less.
    #[error(
        "{asked} of memory are more than this host has ({}): ask for less with --memory, or say --memory {asked},overcommit=on",
        Memory(*.host)
    )]
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
    /// Huge pages come whole.
    #[error("{asked} of memory are no whole number of huge pages of 2M: {} would do", Memory(.asked.0 - .asked.0 % HUGE_PAGE as u64))]
    NotWhole {
        /// What was asked for.
        asked: Memory,
    },
    /// The host has not reserved so many huge pages, or others have them.
    #[error(
        "{asked} of memory are {pages} huge pages of 2M, of which {free} are free: sudo sysctl vm.nr_hugepages={enough}, or leave hugepages=on out"
    )]
    HugePages {
        /// What was asked for.
        asked: Memory,
        /// In pages.
        pages: u64,
        /// Those that nobody has or has been promised.
        free: u64,
        /// How many the host would have to reserve in all.
        enough: u64,
    },
    /// The host has them, and yet not for this process.
    #[error("cannot have {asked} of huge pages: check the limits of this cgroup (hugetlb, cpuset)")]
    Claim {
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

/// Refuse memory that the host cannot have, as far as can be told before it is reserved: more than its RAM, unless that is
/// asked for, or more huge pages than are free.
///
/// More than is available at the moment is allowed, with a warning: few guests use all they have, and the host makes room by
/// dropping caches and by swapping.
///
/// # Errors
/// If `memory` is refused.
pub fn check(memory: &MemorySpec) -> Result<(), MemoryError> {
    let asked = memory.size;
    if memory.hugepages {
        return check_huge_pages(asked);
    }
    let (total, free) = host_memory();
    // Rounded down to whole MiB so that the message can be read.
    let host = total & !((1 << 20) - 1);
    if memory.overcommit || host == 0 || asked.0 <= free {
        return Ok(());
    }
    if asked.0 > host {
        return Err(MemoryError::MoreThanHost { asked, host });
    }
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let Some(available) = available(&meminfo).filter(|available| asked.0 > *available) {
        let available = Memory(available & !((1 << 20) - 1));
        log::warn!("the guest is given {asked} of memory, of which the host has {available} available now");
    }
    Ok(())
}

/// What the host could give without swapping, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// All of the host's RAM and what of it nobody uses, in bytes, or 0 where it does not say.
fn host_memory() -> (u64, u64) {
    let mut info = std::mem::MaybeUninit::<libc::sysinfo>::zeroed();
    // SAFETY: the structure is ours to write.
    if unsafe { libc::sysinfo(info.as_mut_ptr()) } != 0 {
        return (0, 0);
    }
    // SAFETY: zeroed, and then written by the call.
    let info = unsafe { info.assume_init() };
    let bytes = |units: u64| units.saturating_mul(info.mem_unit.into());
    (bytes(info.totalram), bytes(info.freeram))
}

fn check_huge_pages(asked: Memory) -> Result<(), MemoryError> {
    if !asked.0.is_multiple_of(HUGE_PAGE as u64) {
        return Err(MemoryError::NotWhole { asked });
    }
    match lacking(
        asked,
        huge_pages("free_hugepages"),
        huge_pages("resv_hugepages"),
        huge_pages("nr_hugepages"),
    ) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// What is wrong with `asked` where `free` huge pages are unused, `promised` of those to somebody, of `all`.
fn lacking(asked: Memory, free: u64, promised: u64, all: u64) -> Option<MemoryError> {
    let pages = asked.0 / HUGE_PAGE as u64;
    let free = free.saturating_sub(promised);
    let missing = pages.checked_sub(free).filter(|missing| *missing > 0)?;
    Some(MemoryError::HugePages { asked, pages, free, enough: all.saturating_add(missing) })
}

/// A figure of the host's pool of huge pages of 2 MiB; 0 where there is none.
fn huge_pages(figure: &str) -> u64 {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{figure}");
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Reserve the guest's RAM, split around the 32-bit hole. Huge pages are all taken at once.
///
/// # Errors
/// If the host refuses.
pub fn reserve(memory: &MemorySpec) -> Result<SharedRam, MemoryError> {
    let mut regions = Vec::new();
    for (start, len) in layout::ram_regions(memory.size.0) {
        // skiff is for 64-bit hosts alone: a length fits a usize.
        let (start, len) = (GuestAddress(start), len as usize);
        regions.push(match memory.hugepages {
            true => claim_huge_pages(memory.size, start, len)?,
            false => reserve_lazily(memory.size, start, len)?,
        });
    }
    let ram = GuestRam::from_regions(regions).map_err(MemoryError::Layout)?;
    Ok(Arc::new(ram))
}

fn reserve_lazily(asked: Memory, start: GuestAddress, len: usize) -> Result<Region, MemoryError> {
    let region = with_aligned_place(len, || Region::from_range(start, len, None));
    let region = region.map_err(|error| MemoryError::Reserve { asked, source: host_reason(error) })?;
    prefer_huge_pages(&region);
    Ok(region)
}

/// Map huge pages and touch them all: what cannot be had is an error now, and not a signal that ends the VM when the guest
/// first touches it. A promise of the pool's is not enough for that: limits of a cgroup count when a page is touched.
fn claim_huge_pages(asked: Memory, start: GuestAddress, len: usize) -> Result<Region, MemoryError> {
    check_huge_pages(asked)?;
    let failed = |source| MemoryError::Claim { asked, source };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    let region = MmapRegion::build(None, len, libc::PROT_READ | libc::PROT_WRITE, flags);
    let region = region.map_err(|error| failed(host_reason(FromRangesError::MmapRegion(error))))?;
    // SAFETY: the range is the region's own mapping, which nobody uses yet.
    if unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) } != 0 {
        let error = io::Error::last_os_error();
        // Before Linux 5.14 there is only the promise.
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(failed(error));
        }
    }
    Region::new(region, start).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))
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
fn prefer_huge_pages(region: &Region) {
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
    let range = |region: &Region| {
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

    fn plain(size: u64) -> MemorySpec {
        MemorySpec { size: Memory(size), hugepages: false, overcommit: false }
    }

    #[test]
    fn more_memory_than_the_host_has_is_refused_with_both_figures() {
        let mut asked = plain(1 << 60);
        let text = check(&asked).unwrap_err().to_string();
        assert!(text.starts_with("1073741824G of memory are more than this host has ("), "{text}");
        check(&plain(64 << 20)).unwrap();
        asked.overcommit = true;
        check(&asked).unwrap();
    }

    #[test]
    fn what_is_available_is_read() {
        assert_eq!(available("MemFree:  1 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemFree:  1 kB\n"), None);
    }

    #[test]
    fn a_lack_of_huge_pages_is_told_with_how_many_there_must_be() {
        let asked = Memory(64 << 20);
        assert!(lacking(asked, 40, 8, 100).is_none());
        let text = lacking(asked, 40, 20, 100).unwrap().to_string();
        let expected =
            "64M of memory are 32 huge pages of 2M, of which 20 are free: sudo sysctl vm.nr_hugepages=112";
        assert!(text.starts_with(expected), "{text}");
        let text = check_huge_pages(Memory(65 << 20)).unwrap_err().to_string();
        assert_eq!(text, "65M of memory are no whole number of huge pages of 2M: 64M would do");
    }

    /// Where the host has some; it cannot be made to.
    #[test]
    fn huge_pages_are_all_taken_at_once() {
        let asked = MemorySpec { hugepages: true, ..plain(64 << 20) };
        match reserve(&asked) {
            Ok(ram) => {
                assert_eq!(resident(&ram), 64 << 20);
                ram.write_slice(&[1], GuestAddress(20 << 20)).unwrap();
            }
            Err(MemoryError::HugePages { pages: 32, .. }) => eprintln!("skipped: no huge pages"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn ram_is_split_around_the_hole_and_not_touched() {
        let ram = reserve(&plain(6 << 30)).unwrap();
        let regions: Vec<_> = ram.iter().map(|r| (r.start_addr().0, r.len())).collect();
        assert_eq!(regions, [(0, 3 << 30), (4 << 30, 3 << 30)]);
    }

    #[test]
    fn what_is_touched_is_resident() {
        let ram = reserve(&plain(64 << 20)).unwrap();
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
                let ram = reserve(&plain(mib << 20)).unwrap();
                ram.iter().all(|region| (region.as_ptr() as usize).is_multiple_of(HUGE_PAGE))
            });
            assert!(aligned, "{mib} MiB");
        }
    }
}
