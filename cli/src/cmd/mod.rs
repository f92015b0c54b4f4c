//! The verbs: one module each.

use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{ArgMatches, Command};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::exit::SUCCESS;
use crate::flags::{self, Described, Operand};

mod completions;
mod doctor;
mod events;
mod logs;
mod man;
mod many;
mod power;
mod ps;
mod resize;
mod rm;
mod run;
mod start;
mod stats;
mod table;

/// Something that the program can be asked to do. Its command line, its help and what is generated from them come from this
/// record.
pub struct Verb {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// Its whole help; empty if the line says it all.
    pub long: &'static str,
    /// What stands below the flags in its help; may be empty.
    pub after: fn() -> String,
    /// Its flags.
    pub flags: fn() -> Vec<Described>,
    /// What it takes without a dash, in order.
    pub operands: &'static [Operand],
    /// Does it, and says the exit code.
    pub run: fn(&ArgMatches) -> Result<u8>,
}

impl Verb {
    /// Its command line.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.name).about(self.about);
        if !self.long.is_empty() {
            command = command.long_about(self.long);
        }
        let after = (self.after)();
        if !after.is_empty() {
            command = command.after_help(after);
        }
        flags::add(command, &(self.flags)(), self.operands)
    }
}

/// Print `text`. A reader that has read enough is no error.
pub fn print(text: impl AsRef<[u8]>) -> Result<u8> {
    print_more(text).map(|_| SUCCESS)
}

/// Print `text` now. Says whether somebody reads it.
pub fn print_more(text: impl AsRef<[u8]>) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("cannot write to standard output"),
    }
}

/// Wait for `period` while nothing is to be printed. Says whether somebody may still read: a reader that has left would be
/// noticed only by the next write, and that may be hours away.
fn linger(period: Duration) -> bool {
    let stdout = std::io::stdout();
    let mut files = [PollFd::new(&stdout, PollFlags::empty())];
    let period = Timespec::try_from(period).ok();
    match poll(&mut files, period.as_ref()) {
        Ok(ready) => ready == 0,
        // A signal that has a handler, such as that of a terminal's new size.
        Err(_) => true,
    }
}

/// All of them, in the order of the help.
pub const VERBS: &[Verb] = &[
    run::VERB,
    ps::PS,
    start::START,
    power::STOP,
    power::KILL,
    power::PAUSE,
    power::RESUME,
    start::ATTACH,
    logs::VERB,
    power::WAIT,
    ps::INSPECT,
    stats::VERB,
    events::VERB,
    resize::VERB,
    rm::RENAME,
    rm::RM,
    doctor::VERB,
    completions::VERB,
    man::VERB,
];
