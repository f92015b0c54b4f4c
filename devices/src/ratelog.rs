//! Log lines that a guest can provoke at will, limited so that it cannot fill the host's disk with them.
//!
//! One budget for the whole process: a guest with many devices gets no more lines than one with a single one.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines within [`WINDOW`].
const BURST: u32 = 20;
/// After which the budget is full again.
const WINDOW: Duration = Duration::from_secs(10);

static BUDGET: Mutex<Budget> = Mutex::new(Budget::new());

/// What is left of a window.
struct Budget {
    since: Option<Instant>,
    used: u32,
    dropped: u64,
}

impl Budget {
    const fn new() -> Self {
        Self { since: None, used: 0, dropped: 0 }
    }

    /// Whether a line may be written at `now`, and if so how many were dropped before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= WINDOW) {
            self.since = Some(now);
            self.used = 0;
        }
        if self.used >= BURST {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// Warn about something that the guest did, unless it does so too often.
pub fn warn(message: fmt::Arguments<'_>) {
    if !log::log_enabled!(log::Level::Warn) {
        return;
    }
    let admitted = BUDGET.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
    match admitted {
        Some(0) => log::warn!("{message}"),
        Some(dropped) => {
            log::warn!("{message} ({dropped} warnings about the guest before this were dropped)")
        }
        None => {}
    }
}

/// Displays an error and what caused it, each said once: `a: b: c`.
pub struct Chained<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for Chained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted_and_the_next_window_says_so() {
        let mut budget = Budget::new();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(budget.admit(start), Some(0));
        }
        for _ in 0..3 {
            assert_eq!(budget.admit(start + WINDOW / 2), None);
        }
        assert_eq!(budget.admit(start + WINDOW), Some(3));
        assert_eq!(budget.admit(start + WINDOW), Some(0));
    }

    #[test]
    fn a_chain_of_errors_is_shown_whole() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::num::ParseIntError);
        let outer = Outer("x".parse::<u8>().unwrap_err());
        assert_eq!(Chained(&outer).to_string(), "outer: invalid digit found in string");
    }
}
