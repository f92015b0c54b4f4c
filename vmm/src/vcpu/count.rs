//! What one vCPU has done and cost, over all boots of its guest.

use std::collections::BTreeMap;
use std::os::unix::thread::RawPthread;

use devices::counters::Counter;

use crate::stats::VcpuStats;

/// Why a vCPU left the guest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reason {
    IoIn,
    IoOut,
    MmioRead,
    MmioWrite,
    Hlt,
    Interrupted,
    Other,
}

/// As statistics name them, in the order of [`Reason`].
const NAMES: [&str; 7] = ["io_in", "io_out", "mmio_read", "mmio_write", "hlt", "interrupted", "other"];

/// Written by the vCPU's thread, read by any.
#[derive(Default)]
pub(crate) struct VcpuCounters {
    exits: [Counter; NAMES.len()],
    /// Processor time of its threads that have ended, in nanoseconds.
    past_ns: Counter,
}

impl VcpuCounters {
    /// The vCPU left the guest.
    pub(super) fn exit(&self, reason: Reason) {
        if let Some(counter) = self.exits.get(reason as usize) {
            counter.add(1);
        }
    }

    /// The calling thread ends.
    pub(super) fn thread_ends(&self) {
        self.past_ns.add(time_of(libc::CLOCK_THREAD_CPUTIME_ID));
    }

    /// The figures of vCPU `index`, whose thread has used `live_ns` so far.
    pub(super) fn stats(&self, index: u32, live_ns: u64) -> VcpuStats {
        let exits = NAMES.iter().zip(&self.exits).map(|(name, counter)| ((*name).to_owned(), counter.get()));
        let time_ns = self.past_ns.get().saturating_add(live_ns);
        VcpuStats { index, time_ns, exits: exits.collect::<BTreeMap<_, _>>() }
    }
}

/// Processor time that a thread has used, in nanoseconds. It has not been joined.
pub(super) fn thread_time(thread: RawPthread) -> u64 {
    let mut clock = 0;
    // SAFETY: the thread has not been joined, so its handle is valid; the clock's ID is ours to write.
    let error = unsafe { libc::pthread_getcpuclockid(thread, &raw mut clock) };
    if error == 0 { time_of(clock) } else { 0 }
}

fn time_of(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours to write.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return 0;
    }
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(time.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::thread::JoinHandleExt as _;

    #[test]
    fn exits_are_counted_by_reason_and_time_over_all_threads() {
        let counters = VcpuCounters::default();
        for reason in [Reason::IoOut, Reason::IoOut, Reason::MmioRead, Reason::Other] {
            counters.exit(reason);
        }
        counters.past_ns.add(40);
        let stats = counters.stats(2, 2);
        assert_eq!((stats.index, stats.time_ns), (2, 42));
        let seen: Vec<_> = stats.exits.iter().filter(|(_, count)| **count > 0).collect();
        let (io, mmio, other) = ("io_out".to_owned(), "mmio_read".to_owned(), "other".to_owned());
        assert_eq!(seen, [(&io, &2), (&mmio, &1), (&other, &1)]);
        assert_eq!(stats.exits.len(), 7);
    }

    #[test]
    fn a_thread_that_works_uses_time() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread =
            std::thread::spawn(
                move || {
                    while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {}
                },
            );
        while thread_time(thread.as_pthread_t()) == 0 {
            std::thread::yield_now();
        }
        drop(stop);
        thread.join().unwrap();
    }
}
