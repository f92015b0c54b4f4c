//! What is counted of a VM, kept beside its host resources so that it survives reboots of the guest.

use std::sync::{Arc, Mutex, PoisonError};

use devices::counters::Counters;
use devices::virtio::device::DeviceKind;

use crate::stats::DeviceStats;

/// The counters of a VM's virtio devices, in the order in which they were first asked for: that of the board.
///
/// The lock is held for the look-up alone.
#[derive(Default)]
pub(crate) struct DeviceCounters(Mutex<Vec<Entry>>);

struct Entry {
    id: String,
    kind: DeviceKind,
    counters: Arc<Counters>,
}

impl DeviceCounters {
    /// Those of device `id`: the same ones at every boot of the guest.
    pub(crate) fn of(&self, id: &str, kind: DeviceKind) -> Arc<Counters> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.iter().find(|entry| entry.id == id) {
            return Arc::clone(&entry.counters);
        }
        let counters = Arc::<Counters>::default();
        entries.push(Entry { id: id.to_owned(), kind, counters: Arc::clone(&counters) });
        counters
    }

    /// What they say now.
    pub(crate) fn stats(&self) -> Vec<DeviceStats> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(Entry::stats).collect()
    }
}

impl Entry {
    fn stats(&self) -> DeviceStats {
        let Self { id, kind, counters } = self;
        DeviceStats {
            id: id.clone(),
            kind: name(*kind).to_owned(),
            requests: counters.requests.get(),
            to_guest: counters.to_guest.get(),
            from_guest: counters.from_guest.get(),
            errors: counters.errors.get(),
            throttled: counters.throttled.get(),
        }
    }
}

/// How statistics name a kind of device.
fn name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Net => "net",
        DeviceKind::Block => "block",
        DeviceKind::Console => "console",
        DeviceKind::Rng => "rng",
        DeviceKind::Balloon => "balloon",
        DeviceKind::Vsock => "vsock",
        DeviceKind::Fs => "fs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_counts_on_after_a_reboot() {
        let all = DeviceCounters::default();
        all.of("disk0", DeviceKind::Block).requests.add(3);
        all.of("rng0", DeviceKind::Rng).to_guest.add(7);
        all.of("disk0", DeviceKind::Block).requests.add(2);
        let stats = all.stats();
        let seen: Vec<_> =
            stats.iter().map(|s| (s.id.as_str(), s.kind.as_str(), s.requests, s.to_guest)).collect();
        assert_eq!(seen, [("disk0", "block", 5, 0), ("rng0", "rng", 0, 7)]);
    }
}
