//! A running VM's memory: how much the guest has, and how much of it it is to leave to the host.

use std::time::{Duration, Instant};

use arch::memory::GuestRam;

use crate::control::VmReply;
use crate::host::Host;
use crate::memory::{self, Resident};
use crate::spec::{MIN_MEMORY, Memory};
use crate::stats::MemoryStats;

/// How often the guest's driver is asked to count its memory, at most.
const PERIOD: Duration = Duration::from_secs(1);

/// Leave the guest `size` of its memory. That outlives a reboot.
pub(super) fn resize(host: &Host, size: Memory) -> VmReply {
    let total = host.spec.memory.size;
    let Some(control) = &host.balloon else {
        return refuse("the VM has no balloon: start it with --balloon on");
    };
    if host.spec.memory.hugepages {
        return refuse(
            "the VM's memory is of huge pages, which stay with it until it ends: start it with less --memory",
        );
    }
    if size.0 < MIN_MEMORY || size > total {
        let least = Memory(MIN_MEMORY);
        return VmReply::Refused(format!(
            "the guest's memory cannot be {size}: {least} to {total} are possible"
        ));
    }
    if !control.has_driver() {
        return refuse(
            "the guest has no balloon driver: wait until it has booted, or load it (Linux: modprobe virtio_balloon)",
        );
    }
    control.set_target(total.0 - size.0);
    VmReply::Done
}

fn refuse(reason: &str) -> VmReply {
    VmReply::Refused(reason.to_owned())
}

/// The figures. What the guest says of itself is its last answer.
pub(super) fn stats(host: &Host, ram: &GuestRam) -> MemoryStats {
    let total = host.spec.memory.size.0;
    let Resident { private, shared } = memory::resident(ram);
    let mut stats = MemoryStats { total, resident: private, shared, ..MemoryStats::default() };
    if let Some(control) = &host.balloon {
        // The guest's word, which cannot be more than all.
        stats.balloon = control.held().min(total);
        stats.reported_free = control.reported_free();
        stats.guest = control.guest().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    }
    stats
}

/// When the guest was asked last.
#[derive(Default)]
pub(super) struct Questions(Option<Instant>);

impl Questions {
    /// Ask the guest of its memory again, unless that was done just now. Does not wait for the answer.
    pub(super) fn ask(&mut self, host: &Host) {
        if let Some(control) = &host.balloon
            && self.0.is_none_or(|last| last.elapsed() >= PERIOD)
        {
            self.0 = Some(Instant::now());
            control.ask();
        }
    }
}
