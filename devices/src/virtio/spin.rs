//! Whether to look for more work before going to sleep.
//!
//! Sleeping and waking cost more than many a request, so a worker that runs out of work first looks again for a
//! while. Where that was in vain it looks less and less often, so that a slow disk or a guest with little to do costs
//! next to nothing; one success brings it back. How long it slept tells nothing: that is mostly the time it
//! takes to wake.
//!
//! ```text
//!  look each time ◄──── work came while looking ────┐
//!       │ in vain                                   │
//!       ▼                                           │
//!  sleep 1, 3, 7, 15 times at once   ──► look again ─┘
//! ```

use std::time::{Duration, Instant};

/// The longest time to look.
const LOOK: Duration = Duration::from_micros(50);
/// `2^MAX_DOUBLINGS - 1` is the most times to sleep at once between two looks.
const MAX_DOUBLINGS: u32 = 4;

/// One worker's habit for one kind of wait.
#[derive(Debug)]
pub(crate) struct Spin {
    look: Duration,
    /// When the work ran out.
    idle_since: Option<Instant>,
    /// How often in a row looking was in vain, up to [`MAX_DOUBLINGS`].
    vain: u32,
    /// How many more times to sleep at once.
    skip: u32,
}

impl Spin {
    /// On a host with one CPU nothing happens while a thread only looks.
    pub(crate) fn new(cpus: usize) -> Self {
        let look = if cpus > 1 { LOOK } else { Duration::ZERO };
        Self { look, idle_since: None, vain: 0, skip: 0 }
    }

    /// There was work.
    pub(crate) fn busy(&mut self) {
        if self.idle_since.take().is_some() && self.skip == 0 {
            self.vain = 0;
        }
    }

    /// There is no work at `now`: whether to look again instead of sleeping.
    pub(crate) fn again(&mut self, now: Instant) -> bool {
        if self.skip > 0 {
            return false;
        }
        let since = *self.idle_since.get_or_insert(now);
        now.saturating_duration_since(since) < self.look
    }

    /// The worker slept.
    pub(crate) fn slept(&mut self) {
        if self.skip > 0 {
            self.skip -= 1;
        } else {
            self.vain = MAX_DOUBLINGS.min(self.vain + 1);
            self.skip = (1 << self.vain) - 1;
        }
        self.idle_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wait of so long: whether the worker had to sleep, and how long it looked.
    fn wait(spin: &mut Spin, micros: u64) -> (bool, u64) {
        let start = Instant::now();
        for at in 0..micros {
            if !spin.again(start + Duration::from_micros(at)) {
                spin.slept();
                return (true, at);
            }
        }
        spin.busy();
        (false, micros)
    }

    #[test]
    fn a_quick_guest_is_never_slept_on() {
        let mut spin = Spin::new(2);
        for _ in 0..100 {
            assert_eq!(wait(&mut spin, 40), (false, 40));
        }
    }

    #[test]
    fn a_slow_one_is_looked_for_less_and_less() {
        let mut spin = Spin::new(2);
        let looks = |spin: &mut Spin, waits| (0..waits).map(|_| wait(spin, 1000).1).sum::<u64>();
        assert_eq!(looks(&mut spin, 1), 50);
        assert_eq!(looks(&mut spin, 1), 0);
        assert_eq!(looks(&mut spin, 29), 4 * 50, "3, 7 and 15 waits between");
        assert!(looks(&mut spin, 1600) <= 100 * 50, "at most one in 16");
    }

    #[test]
    fn it_recovers_soon_after_the_guest_is_quick_again() {
        let mut spin = Spin::new(2);
        for _ in 0..1000 {
            wait(&mut spin, 1000);
        }
        let slept = (0..100).filter(|_| wait(&mut spin, 5).0).count();
        assert!(slept <= 16, "{slept}");
        assert_eq!(wait(&mut spin, 5), (false, 5));
        assert_eq!(wait(&mut spin, 1000), (true, 50), "one long pause is nothing");
        assert_eq!(wait(&mut spin, 5), (true, 0));
        assert_eq!(wait(&mut spin, 5), (false, 5));
    }

    #[test]
    fn nothing_is_looked_for_on_one_cpu() {
        let mut spin = Spin::new(1);
        for _ in 0..10 {
            assert_eq!(wait(&mut spin, 5), (true, 0));
        }
    }
}
