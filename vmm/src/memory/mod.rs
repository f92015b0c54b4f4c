//! The guest's RAM: reserved lazily, so that nothing is touched before the guest or its loader does, or of huge pages, all
//! taken at once; and shown to KVM.

mod align;
mod extent;
mod resident;

use std::fs::{self, File};
use std::io;
use std::sync::Arc;

use arch::layout;
use arch::memory::{GuestRam, SharedRam};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemory, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::spec::{Memory, MemorySpec};

pub(crate) use extent::{Extent, extents};
pub(crate) use resident::{Resident, mapping, resident};

use align::{HUGE_PAGE, with_aligned_place};

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
    in_regions(memory, |start, len, _| match memory.hugepages {
        true => claim_huge_pages(memory.size, start, len),
        false => reserve_lazily(memory.size, start, len),
    })
}

/// Guest RAM that is `file` until it is written to, the regions packed one after the other in it. The file is as long as RAM,
/// and stays so.
///
/// A region with a file ([`GuestRegionMmap`]'s `file_offset`) is one whose pages are not zero again when they are given back to the host.
///
/// # Errors
/// If the host refuses.
pub(crate) fn map_file(memory: &MemorySpec, file: &Arc<File>) -> Result<SharedRam, MemoryError> {
    let asked = memory.size;
    in_regions(memory, |start, len, offset| {
        let failed = |source| MemoryError::Reserve { asked, source };
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let file = FileOffset::from_arc(Arc::clone(file), offset);
        let region = with_aligned_place(len, || {
            MmapRegion::build(Some(file), len, libc::PROT_READ | libc::PROT_WRITE, flags)
        });
        let region = region.map_err(|error| failed(host_reason(FromRangesError::MmapRegion(error))))?;
        Region::new(region, start).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))
    })
}

/// Make each region of RAM by `make`, from its start in the guest, its length, and the length of those before it.
fn in_regions(
    memory: &MemorySpec,
    make: impl Fn(GuestAddress, usize, u64) -> Result<Region, MemoryError>,
) -> Result<SharedRam, MemoryError> {
    let mut regions = Vec::new();
    let mut before = 0;
    for (start, len) in layout::ram_regions(memory.size.0) {
        // skiff is for 64-bit hosts alone: a length fits a usize.
        regions.push(make(GuestAddress(start), len as usize, before)?);
        before += len;
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
                assert_eq!(resident(&ram).private, 64 << 20);
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
        assert_eq!(resident(&ram), Resident::default());
        ram.write_slice(&[1], GuestAddress(20 << 20)).unwrap();
        let touched = resident(&ram).private;
        assert!((4096..=HUGE_PAGE as u64).contains(&touched), "{touched}");
    }

    /// Other tests map and unmap memory meanwhile, which may spoil a try; not all of them.
    #[test]
    fn huge_pages_fit_whatever_the_length() {
        for mib in [64, 65, 255, 4097] {
            let aligned = (0..500).any(|_| {
                let ram = reserve(&plain(mib << 20)).unwrap();
                let fits = ram.iter().all(|region| (region.as_ptr() as usize).is_multiple_of(HUGE_PAGE));
                if !fits {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
                fits
            });
            assert!(aligned, "{mib} MiB");
        }
    }
}
