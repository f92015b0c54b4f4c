//! The guest's RAM: reserved lazily, shown to KVM. Nothing is touched before the guest or its loader does.

use std::io;
use std::sync::Arc;

use arch::layout;
use arch::memory::{GuestRam, SharedRam};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

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
        source: vm_memory::mmap::FromRangesError,
    },
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
    GuestRam::from_ranges(&ranges)
        .map(Arc::new)
        .map_err(|source| MemoryError::Reserve { asked: memory, source })
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
}
