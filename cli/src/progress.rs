//! How far something is that takes longer than a moment, on a terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// What is done sooner is not worth a word.
const MOMENT: Duration = Duration::from_millis(300);
/// How often the line changes.
const PERIOD: Duration = Duration::from_millis(100);

/// A line on standard error that says how far something is. Gone when dropped; nothing where there is no terminal.
pub struct Bar {
    what: String,
    next: Instant,
    terminal: bool,
    shown: bool,
}

impl Bar {
    /// Nothing is shown yet.
    pub fn new(what: String) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { what, next: Instant::now() + MOMENT, terminal, shown: false }
    }

    /// So much is done, of so much.
    pub fn show(&mut self, done: u64, total: u64) {
        self.say(|| format!("{:3} %", percent(done, total)));
    }

    /// It has taken this long, and nobody knows how much there is.
    pub fn tick(&mut self, elapsed: Duration) {
        self.say(|| format!("{} s", elapsed.as_secs()));
    }

    /// So many bytes have gone, and nobody knows how many there are.
    pub fn count(&mut self, bytes: u64, elapsed: Duration) {
        self.say(|| {
            let mib = bytes as f64 / f64::from(1 << 20);
            format!("{mib:.1} MiB, {:.1} MiB/s", mib / elapsed.as_secs_f64().max(0.001))
        });
    }

    fn say(&mut self, how_far: impl FnOnce() -> String) {
        let now = Instant::now();
        if !self.terminal || now < self.next {
            return;
        }
        self.next = now + PERIOD;
        self.shown = true;
        let _ = write!(io::stderr(), "\r{}: {}\x1b[K", self.what, how_far());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn percent(done: u64, total: u64) -> u64 {
    let percent = u128::from(done).saturating_mul(100).checked_div(total.into()).unwrap_or(0);
    u64::try_from(percent.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_never_more_than_all_of_it() {
        for (done, total, shown) in [(0, 0, 0), (0, 7, 0), (1, 3, 33), (u64::MAX, u64::MAX, 100), (9, 3, 100)]
        {
            assert_eq!(percent(done, total), shown);
        }
    }
}
