//! How much of a guest's RAM the host has given memory for.

use std::fs;
use std::ops::Range;

use arch::memory::GuestRam;
use vm_memory::{GuestMemory, GuestMemoryRegion};

/// How much of a guest's RAM is in the host's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// This VM's own: what the guest has written to, and huge pages.
    pub private: u64,
    /// Pages of a snapshot that the guest has only read: in the host's page cache once, for all VMs, and dropped when
    /// memory is short.
    pub shared: u64,
}

/// How much of `ram` the host has in memory; 0 where it does not tell.
pub fn resident(ram: &GuestRam) -> Resident {
    let regions: Vec<_> = ram
        .iter()
        .map(|region| {
            let start = region.as_ptr() as u64;
            start..start.saturating_add(region.len())
        })
        .collect();
    match fs::read_to_string("/proc/self/smaps") {
        Ok(smaps) => resident_in(&smaps, &regions),
        Err(error) => {
            log::debug!("how much memory is resident is not known: {error}");
            Resident::default()
        }
    }
}

/// What `smaps` (proc_pid_smaps(5)) says of the mappings that overlap `regions`.
fn resident_in(smaps: &str, regions: &[Range<u64>]) -> Resident {
    let mut ours = false;
    let (mut all, mut private): (u64, u64) = (0, 0);
    for line in smaps.lines() {
        if let Some(mapping) = mapping(line) {
            ours = regions.iter().any(|region| mapping.start < region.end && region.start < mapping.end);
        } else if ours && let Some((name, value)) = line.split_once(':') {
            let value = value.trim().strip_suffix(" kB").and_then(|value| value.parse().ok());
            let bytes = value.map_or(0, |kib: u64| kib.saturating_mul(1 << 10));
            match name {
                "Rss" => all = all.saturating_add(bytes),
                "Anonymous" => private = private.saturating_add(bytes),
                // Huge pages of hugetlbfs are part of neither.
                "Private_Hugetlb" | "Shared_Hugetlb" => {
                    all = all.saturating_add(bytes);
                    private = private.saturating_add(bytes);
                }
                _ => {}
            }
        }
    }
    Resident { private, shared: all.saturating_sub(private) }
}

/// The range of the mapping that `line` begins with, if it does: `7f0000000000-7f0040000000 rw-p …`.
pub(crate) fn mapping(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_own_mappings_count_huge_pages_too_and_pages_of_files_apart() {
        let smaps = "\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0 \nRss:                  12 kB\nAnonymous:            12 kB
7f0000200000-7f0000400000 rw-p 00000000 00:0f 1 /anon_hugepage (deleted)\nRss:  0 kB\nPrivate_Hugetlb:    2048 kB
7f0000400000-7f0000401000 rw-p 00000000 00:0f 1 /memory\nRss:  8 kB\nAnonymous:  4 kB\nVmFlags: rd ex mr mw me\n";
        let base = 0x7f00_0000_0000;
        let of = |start, len| resident_in(smaps, std::slice::from_ref(&(start..start + len)));
        assert_eq!(of(base, 0x40_0000), Resident { private: (12 << 10) + (2 << 20), shared: 0 });
        assert_eq!(of(base + 0x40_0800, 1), Resident { private: 4 << 10, shared: 4 << 10 });
        assert_eq!(of(0, base), Resident::default());
    }
}
