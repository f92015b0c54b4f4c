//! What a device has done, counted as it goes.
//!
//! A [`Counters`] belongs to the VM: it survives reboots of the guest, whose devices are made anew around it.
//! Device threads write it, anyone may read it; each number is exact, the set of them is no snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

/// One device's counts since the VM started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests, packets or chunks that were finished, whether or not they succeeded.
    pub requests: Counter,
    /// Bytes of payload that the guest was given: read from a disk, received from a network.
    pub to_guest: Counter,
    /// Bytes of payload that the guest gave: written to a disk, sent to a network.
    pub from_guest: Counter,
    /// Requests that failed on the host, and packets that were dropped.
    pub errors: Counter,
    /// How often a rate limit made the guest wait.
    pub throttled: Counter,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Count `amount` more.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// What has been counted so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
