//! The verbs: one module each.

use std::io::{ErrorKind, Write as _};

use anyhow::{Context, Result};
use clap::{ArgMatches, Command};

use crate::exit::SUCCESS;
use crate::flags::{self, Described, Operand};

mod completions;
mod doctor;
mod man;
mod run;

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

/// All of them, in the order of the help.
pub const VERBS: &[Verb] = &[run::VERB, doctor::VERB, completions::VERB, man::VERB];

/// Write `text` to standard output, and say the exit code.
fn print(text: &[u8]) -> Result<u8> {
    match std::io::stdout().write_all(text) {
        // Whoever read it has read enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(SUCCESS),
        result => result.map(|()| SUCCESS).context("cannot write to standard output"),
    }
}
