//! How long to look for more work before going to sleep.
//!
//! Sleeping and waking cost more than many a request, so a worker that is kept busy looks again for a while. The
//! time is learnt from how long the last waits were: none for a guest that is idle or a disk that is slow.
//!
//! ```text
//!  none ──wait ended soon──► MAX ──waited in vain──► half ──► … ──► none
//! ```

use std::time::{Duration, Instant};

/// The longest time to look, and the longest wait that it is worth looking for.
const MAX: Duration = Duration::from_micros(50);
/// Shorter times are not worth it.
const MIN: Duration = Duration::from_micros(10);

/// The time that one worker looks before it sleeps.
#[derive(Debug)]
pub(super) struct Spin {
    max: Duration,
    budget: Duration,
    idle_since: Option<Instant>,
}

impl Spin {
    /// On a host with one CPU nothing happens while a thread only looks.
    pub(super) fn new(cpus: usize) -> Self {
        let max = if cpus > 1 { MAX } else { Duration::ZERO };
        Self { max, budget: Duration::ZERO, idle_since: None }
    }

    /// There was work.
    pub(super) fn busy(&mut self) {
        self.idle_since = None;
    }

    /// There was no work at `now`: whether to look again instead of sleeping.
    pub(super) fn again(&mut self, now: Instant) -> bool {
        let since = *self.idle_since.get_or_insert(now);
        now.saturating_duration_since(since) < self.budget
    }

    /// The worker slept, and woke at `now`.
    pub(super) fn woke(&mut self, now: Instant) {
        let Some(since) = self.idle_since.take() else { return };
        if now.saturating_duration_since(since) <= self.max {
            self.budget = self.max;
        } else {
            self.budget /= 2;
            if self.budget < MIN {
                self.budget = Duration::ZERO;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(spin: &mut Spin, micros: u64) {
        let start = Instant::now();
        spin.again(start);
        spin.woke(start + Duration::from_micros(micros));
    }

    /// Whether it would still look after so long without work.
    fn looks(spin: &mut Spin, micros: u64) -> bool {
        let start = Instant::now();
        spin.busy();
        spin.again(start);
        let looks = spin.again(start + Duration::from_micros(micros));
        spin.busy();
        looks
    }

    #[test]
    fn a_quick_guest_is_looked_for_and_an_idle_one_is_not() {
        let mut spin = Spin::new(2);
        assert!(!looks(&mut spin, 0));
        wait(&mut spin, 20);
        assert!(looks(&mut spin, 49));
        assert!(!looks(&mut spin, 51));
        for _ in 0..3 {
            wait(&mut spin, 1000);
        }
        assert!(!looks(&mut spin, 0));
    }

    #[test]
    fn one_long_pause_does_not_end_it() {
        let mut spin = Spin::new(2);
        wait(&mut spin, 20);
        wait(&mut spin, 1000);
        assert!(looks(&mut spin, 20));
    }

    #[test]
    fn nothing_is_looked_for_on_one_cpu() {
        let mut spin = Spin::new(1);
        wait(&mut spin, 0);
        wait(&mut spin, 1);
        assert!(!looks(&mut spin, 0));
    }
}
