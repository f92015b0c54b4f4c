//! [`Event`]: what a process that runs one test, or makes what tests start from, tells the one that runs them all, a line of JSON each.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::report::Ran;

/// The longest line of a command that is told, in letters. The log has it whole.
pub const LONGEST_LINE: usize = 2000;
/// The longest line of JSON, in bytes: a letter is six of them at most, and a result has a few lines.
const LONGEST: usize = 1 << 20;

/// Something that is to be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// This begins.
    Phase(Phase),
    /// The command has printed this line; without what would drive a terminal.
    Line(String),
    /// The guest is about to be kept, as a VM of this name.
    Keeps(String),
    /// What tests start from is there, or cannot be made for this reason: the last word.
    Made(Option<String>),
    /// It is over: the last word.
    Ended(Box<Ran>),
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The guest starts.
    Start,
    /// The command runs.
    Run,
    /// The guest that failed is kept.
    Keep,
    /// Artifacts are fetched.
    Fetch,
}

impl Phase {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "starting",
            Self::Run => "running",
            Self::Keep => "keeping the guest",
            Self::Fetch => "fetching artifacts",
        }
    }
}

impl Event {
    /// Tell it.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line)
    }
}

/// What has come, and is not a whole line yet.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// The events that are complete with these bytes. What makes no sense is passed over.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                events.extend(serde_json::from_slice(&self.0));
                self.0.clear();
            } else if self.0.len() < LONGEST {
                self.0.push(*byte);
            }
        }
        events
    }
}

/// Cuts what a command prints into lines for people.
#[derive(Debug, Default)]
pub struct Cutter(Vec<u8>);

impl Cutter {
    /// The lines that are complete with these bytes. Progress bars begin their line again.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in bytes {
            if matches!(byte, b'\n' | b'\r') || self.0.len() >= LONGEST_LINE {
                lines.extend(self.end());
            }
            if !matches!(byte, b'\n' | b'\r') {
                self.0.push(*byte);
            }
        }
        lines
    }

    /// What is left at the end.
    pub fn end(&mut self) -> Option<String> {
        let line = self.begun();
        self.0.clear();
        (!line.is_empty()).then_some(line)
    }

    /// The line that is not complete yet.
    pub fn begun(&self) -> String {
        crate::cmd::image::file::show::plain(&String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cmd::test::outcome::Verdict;

    #[test]
    fn events_come_as_they_were_told_however_they_are_cut() {
        let all = [
            Event::Phase(Phase::Run),
            Event::Line("a \"quoted\" line".to_owned()),
            Event::Keeps("failed-a-1".to_owned()),
            Event::Made(Some("no room".to_owned())),
            Event::Ended(Box::new(Ran::without(Verdict::TimedOut, "slow"))),
        ];
        let mut bytes = b"nonsense\n{}\n".to_vec();
        all.iter().for_each(|event| event.write(&mut bytes).unwrap());
        for size in [1, 2, 7, bytes.len()] {
            let mut lines = Lines::default();
            let events: Vec<Event> = bytes.chunks(size).flat_map(|chunk| lines.take(chunk)).collect();
            assert_eq!(events, all);
        }
    }

    #[test]
    fn lines_are_cut_and_drive_no_terminal() {
        let mut cutter = Cutter::default();
        assert_eq!(cutter.take(b"one\n\x1b[31mtwo\x1b[0m\r10 %\r\n\nrest"), ["one", "two", "10 %"]);
        assert_eq!(cutter.end().as_deref(), Some("rest"));
        assert_eq!(cutter.end(), None);
        let long = vec![b'x'; LONGEST_LINE * 2 + 1];
        assert_eq!(cutter.take(&long).len(), 2);
    }

    proptest! {
        #[test]
        fn no_guest_makes_it_keep_more_than_a_line(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let (mut lines, mut cutter) = (Lines::default(), Cutter::default());
            for chunk in chunks {
                prop_assert!(lines.take(&chunk).is_empty());
                let cut = cutter.take(&chunk);
                prop_assert!(cut.iter().all(|line| !line.chars().any(char::is_control)));
                prop_assert!(cutter.0.len() <= LONGEST_LINE);
            }
        }
    }
}
