//! How far something is that takes longer than a moment, on standard error: bars on a terminal, elsewhere a line a step.
//!
//! A spinner has a thread that turns it. It ends with the spinner: nothing of it is there when a VM's process is split off, if whoever has it drops it
//! before. What is half done when a signal ends the program is taken away first.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use images::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::interrupt::Interrupt;

/// What is done sooner is not worth a word.
const MOMENT: Duration = Duration::from_millis(300);
/// How often a spinner turns.
const TURN: Duration = Duration::from_millis(120);

/// While the amount is not known.
const SPINNER: &str = "{spinner} {msg}  {bytes}  {bytes_per_sec}";
/// While nothing is known but that it goes on.
const WAITING: &str = "{spinner} {msg}  {elapsed}";
/// With the amount.
const BAR: &str = "{msg}  {bar:24} {percent:>3} %  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
/// The same of a thing that is not counted in bytes.
const SHARE: &str = "{msg}  {bar:24} {percent:>3} %  {eta}";

/// A bar for one thing, whose amount is known. Gone when dropped; nothing where there is no terminal.
pub struct Bar {
    what: String,
    since: Instant,
    terminal: bool,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Nothing is shown yet.
    pub fn new(what: String) -> Self {
        Self { what, since: Instant::now(), terminal: io::stderr().is_terminal(), bar: None }
    }

    /// So much is done, of so much.
    pub fn show(&mut self, done: u64, total: u64) {
        self.say(SHARE, |bar| {
            bar.set_length(total);
            bar.set_position(done.min(total));
        });
    }

    /// It goes on, and nobody knows how much there is.
    pub fn tick(&mut self) {
        self.say(WAITING, ProgressBar::tick);
    }

    /// So many bytes have gone, and nobody knows how many there are.
    pub fn count(&mut self, bytes: u64) {
        self.say(SPINNER, |bar| bar.set_position(bytes));
    }

    fn say(&mut self, style: &str, how_far: impl FnOnce(&ProgressBar)) {
        if !self.terminal || self.since.elapsed() < MOMENT {
            return;
        }
        how_far(self.bar.get_or_insert_with(|| shown(&self.what, style)));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The steps of something long. What is on the terminal is gone when dropped.
pub struct Steps {
    terminal: bool,
    quiet: bool,
    step: String,
    bar: Option<(ProgressBar, &'static str)>,
    /// Last: nothing is on the terminal any more when it goes.
    _interrupt: Option<Interrupt>,
}

impl Steps {
    /// Nothing is shown yet. One that is `quiet` never shows anything.
    pub fn new(quiet: bool) -> Self {
        let interrupt = Interrupt::new(images::unfinished::abandon);
        let terminal = io::stderr().is_terminal();
        Self { terminal, quiet, step: String::new(), bar: None, _interrupt: interrupt }
    }

    fn clear(&mut self) {
        if let Some((bar, _)) = self.bar.take() {
            // Waits for the end of its thread.
            bar.disable_steady_tick();
            bar.finish_and_clear();
        }
    }

    /// The bar of this step, in this style.
    fn styled(&mut self, wanted: &'static str) -> Option<&ProgressBar> {
        let (bar, style) = self.bar.as_mut()?;
        if *style != wanted {
            bar.set_style(style_of(wanted));
            *style = wanted;
        }
        Some(bar)
    }
}

impl Progress for Steps {
    fn step(&mut self, what: &str) {
        self.clear();
        self.step = what.to_owned();
        if self.quiet {
            return;
        }
        if !self.terminal {
            // There is nobody left to tell when stderr is gone.
            let _ = writeln!(io::stderr(), "skiff: {what}");
            return;
        }
        let bar = shown(what, WAITING);
        bar.enable_steady_tick(TURN);
        self.bar = Some((bar, WAITING));
    }

    fn advance(&mut self, done: u64, total: Option<u64>) {
        match total {
            Some(total) => {
                if let Some(bar) = self.styled(BAR) {
                    bar.set_length(total);
                    bar.set_position(done.min(total));
                }
            }
            None => {
                if let Some(bar) = self.styled(SPINNER) {
                    bar.set_position(done);
                }
            }
        }
    }

    fn share(&mut self, done: u64, total: u64) {
        if let Some(bar) = self.styled(SHARE) {
            bar.set_length(total);
            bar.set_position(done.min(total));
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Take from the terminal what a bar has left there, as the program ends without any of its own.
pub fn wipe() {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[2K");
    }
}

fn shown(what: &str, style: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style_of(style));
    bar.set_message(what.to_owned());
    bar
}

fn style_of(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    style.progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_style_is_one() {
        for style in [SPINNER, WAITING, BAR, SHARE] {
            assert!(ProgressStyle::with_template(style).is_ok(), "{style}");
        }
    }

    #[test]
    fn what_ends_leaves_no_thread_behind() {
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let _alone = crate::interrupt::ALONE.lock();
        let before = threads();
        let mut steps = Steps::new(false);
        steps.terminal = true;
        steps.step("one");
        assert!(threads() > before);
        steps.advance(1, None);
        steps.advance(7, Some(3));
        drop(steps);
        assert_eq!(threads(), before);
    }
}
