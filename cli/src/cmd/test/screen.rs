//! [`Screen`]: how far the tests are, on standard error.
//!
//! On a terminal each guest that runs has a line, which changes: a spinner, the test, what it does, how long, and the last line that its command has
//! printed. Elsewhere each line of a command is a line with the test before it. Grouped, what a command has printed is shown whole at its end.
//! What tests start from has lines as well, with the image before them. On a terminal what a setup prints is shown if it fails.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::event::{Cutter, Phase};
use super::report::Ran;
use super::schedule::{Task, Turn};
use crate::cmd::image::file::show::time;

/// A guest's line.
const STYLE: &str = "{spinner} {prefix:.bold}  {elapsed:>4}  {wide_msg:.dim}";

/// Before what a setup prints.
const INDENT: &str = "    ";
/// How many lines of a setup that failed are shown.
const LAST_LINES: usize = 40;

/// How what commands print is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Show {
    /// Live lines on a terminal, and the test before each line elsewhere.
    #[default]
    Usual,
    /// The test before each line.
    Prefixed,
    /// All of it at a test's end.
    Grouped,
}

/// See the module's documentation.
pub struct Screen {
    show: Show,
    live: Option<Live>,
}

struct Live {
    all: MultiProgress,
    bars: BTreeMap<Task, ProgressBar>,
    /// What setups have printed last.
    printed: BTreeMap<Task, VecDeque<String>>,
}

impl Screen {
    /// For tests that are to be shown so.
    pub fn new(show: Show) -> Self {
        let live = show != Show::Prefixed && io::stderr().is_terminal();
        let draw = || MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self {
            show,
            live: live.then(|| Live { all: draw(), bars: BTreeMap::new(), printed: BTreeMap::new() }),
        }
    }

    /// Whether it is to be asked to [tick](Screen::tick).
    pub fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Something begins that is called so.
    pub fn begin(&mut self, task: Task, name: &str) {
        if let Some(live) = &mut self.live {
            let bar = live.all.add(ProgressBar::new_spinner());
            bar.set_style(
                ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.set_prefix(name.to_owned());
            bar.set_message(Phase::Start.word());
            live.bars.insert(task, bar);
        }
    }

    /// It does this now.
    pub fn phase(&mut self, task: Task, phase: Phase) {
        self.begins(task, phase.word());
    }

    /// This of it is not over yet.
    pub fn begins(&mut self, task: Task, what: &str) {
        if let Some(bar) = self.bar(task).filter(|_| !what.is_empty()) {
            bar.set_message(what.to_owned());
        }
    }

    fn bar(&self, task: Task) -> Option<&ProgressBar> {
        self.live.as_ref()?.bars.get(&task)
    }

    /// Who makes what tests start from has said this. What is indented the setup has printed.
    pub fn said(&mut self, task: Task, called: &str, line: &str) {
        match self.live.as_mut().filter(|_| line.starts_with(INDENT)) {
            Some(live) => {
                let printed = live.printed.entry(task).or_default();
                if printed.len() >= LAST_LINES {
                    printed.pop_front();
                }
                printed.push_back(line.to_owned());
                self.begins(task, line.trim_start());
            }
            None => self.say(&format!("[{called}] {line}")),
        }
    }

    /// That is over.
    pub fn made(&mut self, task: Task, called: &str, failed: bool) {
        let Some(live) = &mut self.live else { return };
        if let Some(bar) = live.bars.remove(&task) {
            bar.finish_and_clear();
        }
        let printed = live.printed.remove(&task).filter(|_| failed);
        for line in printed.into_iter().flatten() {
            self.say(&format!("[{called}] {line}"));
        }
    }

    /// Its command has printed this.
    pub fn line(&mut self, turn: Turn, name: &str, line: &str) {
        match self.live {
            Some(_) => self.begins(Task::Run(turn), line),
            None if self.show != Show::Grouped => self.say(&format!("[{name}] {line}")),
            None => {}
        }
    }

    /// It is over. Its output is in `log`.
    pub fn end(&mut self, turn: Turn, name: &str, ran: &Ran, log: impl FnOnce() -> io::Result<File>) {
        let task = Task::Run(turn);
        if let Some(bar) = self.live.as_mut().and_then(|live| live.bars.remove(&task)) {
            bar.finish_and_clear();
        }
        if self.show == Show::Grouped {
            self.group(name, log());
        }
        let took = time(Duration::from_millis(ran.duration_ms));
        let reason = if ran.reason.is_empty() { String::new() } else { format!(": {}", ran.reason) };
        let tried = match turn.attempt {
            0 => String::new(),
            attempt => format!(" (retry {attempt})"),
        };
        self.say(&format!("[{name}]{tried} {} in {took}{reason}", ran.verdict.word()));
    }

    /// Time goes on.
    pub fn tick(&self) {
        let bars = self.live.iter().flat_map(|live| live.bars.values());
        bars.for_each(ProgressBar::tick);
    }

    /// Take away the lines that change: nothing follows.
    pub fn clear(&self) {
        // There is nobody left to tell when stderr is gone.
        let _ = self.live.as_ref().map(|live| live.all.clear());
    }

    /// Say something between.
    pub fn say(&self, line: &str) {
        match &self.live {
            // There is nobody left to tell when stderr is gone.
            Some(live) => _ = live.all.println(line),
            None => _ = writeln!(io::stderr(), "{line}"),
        }
    }

    fn group(&self, name: &str, log: io::Result<File>) {
        self.say(&format!("── {name}"));
        let Ok(mut file) = log else { return };
        let (mut cutter, mut buffer) = (Cutter::default(), vec![0; 64 << 10]);
        while let Ok(len @ 1..) = file.read(&mut buffer) {
            cutter.take(buffer.get(..len).unwrap_or_default()).iter().for_each(|line| self.say(line));
        }
        if let Some(line) = cutter.end() {
            self.say(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_style_is_one() {
        assert!(ProgressStyle::with_template(STYLE).is_ok());
    }
}
