//! Who may have how many of the files that the process can have open (RLIMIT_NOFILE).
//!
//! The guest decides how many connections and shared files it opens, and each costs a descriptor. However many that are, some
//! are left for the VM itself: disks, events, consoles, and whoever asks something of it.
//!
//! ```text
//!   limit = kept (a quarter, 512 at most) + connections (a quarter, 2 × 1024 at most) + shared files (the rest)
//! ```

use rustix::process::{Resource, getrlimit};

/// The most that are kept for the VM itself.
const KEPT: u64 = 512;
/// The most connections that either side can have opened.
const MOST_CONNECTIONS: u64 = 1024;

/// How many connections each side can open.
pub(crate) fn connections() -> usize {
    connections_of(getrlimit(Resource::Nofile).current)
}

/// How many descriptors all shared folders have together.
pub(crate) fn shared_files() -> u64 {
    shared_files_of(getrlimit(Resource::Nofile).current)
}

/// The least limit under which shared folders have `wanted` descriptors together.
pub(crate) fn limit_for(wanted: u64) -> u64 {
    // Where the rest is larger than half, this is more than it takes.
    wanted.saturating_mul(2).next_multiple_of(8)
}

fn connections_of(limit: Option<u64>) -> usize {
    let most = limit.unwrap_or(u64::MAX) / 8;
    usize::try_from(most.clamp(1, MOST_CONNECTIONS)).unwrap_or(1)
}

fn shared_files_of(limit: Option<u64>) -> u64 {
    let connections = 2 * connections_of(limit) as u64;
    let limit = limit.unwrap_or(u64::MAX);
    limit.saturating_sub(connections).saturating_sub(KEPT.min(limit / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_are_no_more_than_there_are() {
        for limit in [0, 2, 3, 64, 1000, 1024, 4096, 1 << 19, 1 << 30] {
            let guest = 2 * connections_of(Some(limit)) as u64 + shared_files_of(Some(limit));
            assert!(limit < 8 || guest + KEPT.min(limit / 4) <= limit, "{limit}");
        }
        assert_eq!(connections_of(Some(1024)), 128);
        assert_eq!(connections_of(None), 1024);
        assert_eq!(connections_of(Some(0)), 1, "never none");
        assert_eq!(shared_files_of(Some(1024)), 512);
    }

    #[test]
    fn the_limit_that_is_asked_for_is_enough() {
        for wanted in [1, 16, 288, 544, 5000, 1 << 20] {
            assert!(shared_files_of(Some(limit_for(wanted))) >= wanted, "{wanted}");
        }
    }
}
