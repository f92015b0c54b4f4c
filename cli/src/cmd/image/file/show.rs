//! [`Screen`]: how far a build is, on standard error.
//!
//! ```text
//! [1/3] packages nginx … cached
//! [2/3] run make
//!     cc -o app app.c
//! [2/3] run make … 3.2 s
//! ```
//! What commands print is shown line by line, dimly on a terminal, and without the characters that would drive it.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::terminal;

/// The longest line of a command that is shown, in bytes.
const LONGEST: usize = 2000;
/// How many lines of a command that failed are shown if none was before.
const LAST_LINES: usize = 40;
/// How often the amount that is done changes.
const PERIOD: Duration = Duration::from_millis(100);

/// See the module's documentation.
pub struct Screen {
    quiet: bool,
    terminal: bool,
    total: usize,
    /// What is being done, since when.
    now: Option<(String, Instant)>,
    /// The line of what is being done has no end yet.
    open: bool,
    /// What a command has printed since its last line ended.
    line: Vec<u8>,
    /// The last lines, if they are not shown.
    last: VecDeque<String>,
    next: Instant,
}

impl Screen {
    /// For a build of so many steps. If it is quiet, nothing is shown but what a command that fails has printed.
    pub fn new(quiet: bool, total: usize) -> Self {
        Self {
            quiet,
            terminal: io::stderr().is_terminal(),
            total,
            now: None,
            open: false,
            line: Vec::new(),
            last: VecDeque::new(),
            next: Instant::now(),
        }
    }

    /// The step of this number begins.
    pub fn step(&mut self, number: usize, title: &str) {
        self.begin(format!("[{number}/{}] {title}", self.total));
    }

    /// Something else begins.
    pub fn begin(&mut self, what: String) {
        let what = plain(&what);
        self.last.clear();
        self.write(&what);
        self.open = true;
        self.now = Some((what, Instant::now()));
    }

    /// So much of it is done, of so much.
    pub fn advance(&mut self, done: u64, total: u64) {
        let Some((what, _)) = self.now.as_ref().filter(|_| self.terminal && self.open) else { return };
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + PERIOD;
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100).min(100);
        let text = format!("\r{what} … {percent} %\x1b[K");
        self.write(&text);
    }

    /// It is done.
    pub fn done(&mut self) {
        let Some((_, begun)) = &self.now else { return };
        let time = time(begun.elapsed());
        self.end(&time);
    }

    /// It is done, with this to say of it.
    pub fn end(&mut self, how: &str) {
        self.end_line();
        let Some((what, _)) = self.now.take() else { return };
        let text = match (self.open, self.terminal) {
            (true, true) => format!("\r{what} … {how}\x1b[K\n"),
            (true, false) => format!(" … {how}\n"),
            (false, _) => format!("{what} … {how}\n"),
        };
        self.write(&text);
        self.open = false;
    }

    /// It has failed: what is said next begins a line.
    pub fn fail(&mut self) {
        self.end_line();
        if std::mem::take(&mut self.open) {
            self.write("\n");
        }
        self.now = None;
        for line in std::mem::take(&mut self.last) {
            // There is nobody left to tell when stderr is gone.
            let _ = writeln!(io::stderr(), "    {line}");
        }
    }

    /// Something that its user should know.
    pub fn note(&mut self, text: &str) {
        if !self.quiet {
            if std::mem::take(&mut self.open) {
                self.write("\n");
            }
            terminal::note(&format!("skiff: {text}"));
        }
    }

    /// A command has printed this.
    pub fn output(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                // Progress bars begin their line again.
                b'\n' | b'\r' => self.end_line(),
                _ => {
                    if self.line.len() >= LONGEST {
                        self.end_line();
                    }
                    self.line.push(*byte);
                }
            }
        }
    }

    fn end_line(&mut self) {
        if self.line.is_empty() {
            return;
        }
        let line = plain(&String::from_utf8_lossy(&self.line));
        self.line.clear();
        if self.quiet {
            if self.last.len() >= LAST_LINES {
                self.last.pop_front();
            }
            self.last.push_back(line);
            return;
        }
        if std::mem::take(&mut self.open) {
            self.write("\n");
        }
        let text =
            if self.terminal { format!("    \x1b[2m{line}\x1b[0m\n") } else { format!("    {line}\n") };
        self.write(&text);
    }

    fn write(&self, text: &str) {
        if !self.quiet {
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }
}

/// `text` without what would drive a terminal: escape sequences go whole.
pub fn plain(text: &str) -> String {
    let (mut out, mut letters) = (String::with_capacity(text.len()), text.chars().peekable());
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' if letters.next_if_eq(&'[').is_some() => {
                // ECMA-48, 5.4: parameters and intermediate bytes up to a final one.
                while letters.next_if(|letter| matches!(letter, ' '..='?')).is_some() {}
                letters.next();
            }
            '\t' => out.push_str("    "),
            letter if letter.is_control() => {}
            letter => out.push(letter),
        }
    }
    out
}

/// `3.2 s`, `12 ms`, `4 min 7 s`.
pub fn time(time: Duration) -> String {
    match time.as_secs() {
        0 if time.as_millis() < 100 => format!("{} ms", time.as_millis()),
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_prints_drives_no_terminal() {
        assert_eq!(plain("a\u{1b}[1;31mred\u{1b}[0m\u{7}\tb\u{1b}]0;x"), "ared    b]0;x");
        assert_eq!(plain("\u{1b}["), "");
        assert_eq!(plain("\u{1b}"), "");
    }

    #[test]
    fn times_are_as_long_as_they_are_of_interest() {
        for (ms, shown) in [(12, "12 ms"), (3240, "3.2 s"), (247_000, "4 min 7 s")] {
            assert_eq!(time(Duration::from_millis(ms)), shown);
        }
    }

    #[test]
    fn the_last_lines_of_a_quiet_build_are_kept_and_no_more() {
        let mut screen = Screen::new(true, 1);
        screen.step(1, "run x");
        for number in 0..100 {
            screen.output(format!("line {number}\n").as_bytes());
        }
        assert_eq!(screen.last.len(), LAST_LINES);
        assert_eq!(screen.last.back().map(String::as_str), Some("line 99"));
    }
}
