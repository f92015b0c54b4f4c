//! What a balloon driver tells of its guest's memory (virtio 1.2, 5.5.6.3).

use arch::memory::GuestRam;

use crate::virtio::chain::Chain;

/// Figures by name. What they say is the guest's word.
pub type GuestStats = Vec<(&'static str, u64)>;

/// The names of tags, from 0 on: those of 5.5.6.4, and after them what Linux has added. Memory is in bytes.
const NAMES: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free",
    "total",
    "available",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kills",
    "alloc_stalls",
    "async_scans",
    "direct_scans",
    "async_reclaims",
    "direct_reclaims",
];

/// A tag of 16 bits and a value of 64, packed.
const ENTRY: usize = 10;
/// How many entries are looked at: no driver has more than one of each tag.
const MOST: usize = 64;

/// The figures in a driver's buffer. Tags that are not known are left out; of one that comes twice, the later counts.
pub(super) fn parse(chain: &Chain, ram: &GuestRam) -> GuestStats {
    let mut bytes = [0; ENTRY * MOST];
    let read = chain.read(ram, 0, &mut bytes);
    let mut stats = GuestStats::new();
    for entry in bytes.get(..read).unwrap_or_default().as_chunks::<ENTRY>().0 {
        let [t0, t1, value @ ..] = *entry;
        let Some(name) = NAMES.get(usize::from(u16::from_le_bytes([t0, t1]))) else { continue };
        stats.retain(|(known, _)| known != name);
        stats.push((name, u64::from_le_bytes(value)));
    }
    stats
}
