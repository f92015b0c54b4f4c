//! `skiff logs`: what a guest has printed.

use std::io::{ErrorKind, IsTerminal as _, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ArgMatches;

use super::Verb;
use super::many::VM;
use crate::exit::SUCCESS;
use crate::flags::{self, Example, Flag, Takes, utf8};
use crate::store::Store;
use crate::store::entry::{CONSOLE_LOG, Entry};
use crate::store::follow::Follower;

/// How often a growing log is looked at.
const PERIOD: Duration = Duration::from_millis(100);

/// `skiff logs`.
pub const VERB: Verb = Verb {
    name: "logs",
    about: "Show what a VM's guest has printed",
    long: "Show what a VM's guest has printed, as far as it is kept: up to 8 MiB, over all starts of the VM. What the VM's own \
           process has to say is in vm.log in its directory, which skiff inspect names.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[VM],
    run: logs,
};

#[derive(Default)]
struct Asked {
    follow: bool,
    tail: Option<usize>,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "follow",
        short: Some('f'),
        takes: Takes::Nothing,
        help: "Go on until the VM ends",
        long: "",
        example: Example { args: &["-f"], toml: "" },
        apply: |asked, _| {
            asked.follow = true;
            Ok(())
        },
    },
    Flag {
        name: "tail",
        short: Some('n'),
        takes: Takes::Text("N"),
        help: "Begin with the last N lines [default: all]",
        long: "",
        example: Example { args: &["--tail", "20"], toml: "" },
        apply: |asked, value| {
            let text = utf8(value)?;
            if text != "all" {
                let lines = text.parse().ok();
                asked.tail = Some(
                    lines.with_context(|| format!("'{text}' is no number of lines: write one, or all"))?,
                );
            }
            Ok(())
        },
    },
];

fn logs(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let name = VM.one(matches);
    let entry = Store::open()?.get(&name)?.entry;
    match show(&entry, &asked) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(SUCCESS),
        shown => shown.map(|()| SUCCESS).with_context(|| format!("cannot show what {name} has printed")),
    }
}

fn show(entry: &Entry, asked: &Asked) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let (mut past, mut follower) = Follower::from_start(&entry.file(CONSOLE_LOG))?;
    loop {
        let more = follower.read()?;
        if more.is_empty() {
            break;
        }
        past.extend(more);
    }
    if stdout.is_terminal() {
        past = vmm::without_queries(&past);
    }
    stdout.write_all(asked.tail.map_or(past.as_slice(), |lines| tail(&past, lines)))?;
    stdout.flush()?;
    if asked.follow { follow(entry, &mut follower, &mut stdout) } else { Ok(()) }
}

/// Show what comes until the VM has ended.
fn follow(entry: &Entry, follower: &mut Follower, to: &mut impl Write) -> std::io::Result<()> {
    loop {
        // Asked first: what it printed last is there when it is gone.
        let lives = matches!(entry.holder(), Ok(Some(_)));
        let more = follower.read()?;
        match (more.is_empty(), lives) {
            (true, false) => return Ok(()),
            (true, true) if !super::linger(PERIOD) => return Ok(()),
            (true, true) => {}
            (false, _) => to.write_all(&more).and_then(|()| to.flush())?,
        }
    }
}

/// The last `lines` lines of `text`, of which the last may not be finished.
fn tail(text: &[u8], lines: usize) -> &[u8] {
    let Some(nth) = lines.checked_sub(1) else { return &[] };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    let start = ends.map(|(at, _)| at.saturating_add(1)).nth(nth).unwrap_or(0);
    text.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_whole_lines_from_the_end() {
        for (text, lines, wanted) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 5, "a\nb\n"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
            ("\n\n", 1, "\n"),
        ] {
            assert_eq!(tail(text.as_bytes(), lines), wanted.as_bytes(), "{text:?} {lines}");
        }
    }
}
