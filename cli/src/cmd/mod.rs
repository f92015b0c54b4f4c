//! The verbs: one module each, some of them in groups.

use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{ArgMatches, Command};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::exit::SUCCESS;
use crate::flags::{self, Described, Operand};

mod agent;
mod clone;
mod completions;
mod cp;
mod doctor;
mod events;
mod exec;
mod image;
mod logs;
mod man;
pub mod many;
mod point;
mod power;
mod ps;
mod resize;
mod rm;
mod rollback;
mod run;
mod snapshot;
mod start;
mod stats;
mod system;
mod table;
mod test;

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

/// Verbs that have a word in common, before their own: `skiff GROUP VERB`.
pub struct Group {
    /// That word.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// Its whole help; empty if the line says it all.
    pub long: &'static str,
    /// In the order of the help.
    pub verbs: &'static [Verb],
}

impl Group {
    fn command(&self) -> Command {
        let command =
            Command::new(self.name).about(self.about).subcommands(self.verbs.iter().map(Verb::command));
        let command =
            command.subcommand_required(true).arg_required_else_help(true).disable_help_subcommand(true);
        if self.long.is_empty() { command } else { command.long_about(self.long) }
    }
}

/// What can stand first on the command line.
pub enum Word {
    /// A verb.
    Verb(Verb),
    /// The first of two words.
    Group(Group),
}

impl Word {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Verb(verb) => verb.name,
            Self::Group(group) => group.name,
        }
    }

    /// One line of help.
    pub fn about(&self) -> &'static str {
        match self {
            Self::Verb(verb) => verb.about,
            Self::Group(group) => group.about,
        }
    }

    /// Its command line.
    pub fn command(&self) -> Command {
        match self {
            Self::Verb(verb) => verb.command(),
            Self::Group(group) => group.command(),
        }
    }

    /// The verbs that it leads to.
    pub fn verbs(&self) -> &[Verb] {
        match self {
            Self::Verb(verb) => std::slice::from_ref(verb),
            Self::Group(group) => group.verbs,
        }
    }

    /// One of its verbs by its whole name, with `between` between the words.
    pub fn path(&self, verb: &Verb, between: &str) -> String {
        match self {
            Self::Verb(verb) => verb.name.to_owned(),
            Self::Group(group) => format!("{}{between}{}", group.name, verb.name),
        }
    }
}

/// The verb that was asked for, and what was said to it.
pub fn chosen(matches: &ArgMatches) -> Option<(&'static Verb, &ArgMatches)> {
    let (name, matches) = matches.subcommand()?;
    match WORDS.iter().find(|word| word.name() == name)? {
        Word::Verb(verb) => Some((verb, matches)),
        Word::Group(group) => {
            let (name, matches) = matches.subcommand()?;
            Some((group.verbs.iter().find(|verb| verb.name == name)?, matches))
        }
    }
}

/// Print `text`. A reader that has read enough is no error.
pub fn print(text: impl AsRef<[u8]>) -> Result<u8> {
    print_more(text).map(|_| SUCCESS)
}

/// Print `value` for programs.
pub fn print_json(value: &impl Serialize) -> Result<u8> {
    print(json(value)?)
}

/// `value` for programs, with a newline at its end.
pub fn json(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).context("this cannot be written as JSON")? + "\n")
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
pub const WORDS: &[Word] = &[
    Word::Verb(run::VERB),
    Word::Verb(ps::PS),
    Word::Verb(start::START),
    Word::Verb(power::STOP),
    Word::Verb(power::KILL),
    Word::Verb(power::PAUSE),
    Word::Verb(power::RESUME),
    Word::Verb(exec::EXEC),
    Word::Verb(exec::SHELL),
    Word::Verb(cp::VERB),
    Word::Verb(start::ATTACH),
    Word::Verb(logs::VERB),
    Word::Verb(power::WAIT),
    Word::Verb(test::VERB),
    Word::Group(image::GROUP),
    Word::Group(snapshot::GROUP),
    Word::Verb(rollback::VERB),
    Word::Verb(clone::VERB),
    Word::Verb(ps::INSPECT),
    Word::Verb(stats::VERB),
    Word::Verb(events::VERB),
    Word::Verb(resize::VERB),
    Word::Verb(rm::RENAME),
    Word::Verb(rm::RM),
    Word::Verb(agent::VERB),
    Word::Group(system::GROUP),
    Word::Verb(doctor::VERB),
    Word::Verb(completions::VERB),
    Word::Verb(man::VERB),
];
