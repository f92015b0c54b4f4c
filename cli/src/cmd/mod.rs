//! The verbs: one module each.

use anyhow::Result;
use clap::{ArgMatches, Command};

mod run;

/// Something that the program can be asked to do.
pub struct Verb {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its flags and help.
    pub command: fn() -> Command,
    /// Does it, and says the exit code.
    pub run: fn(&ArgMatches) -> Result<u8>,
}

/// All of them, in the order of the help.
pub const VERBS: &[Verb] = &[run::VERB];
