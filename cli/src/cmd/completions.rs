//! `skiff completions`: the script by which a shell completes skiff's command lines.

use anyhow::{Context, Result};
use clap::ArgMatches;

use super::Verb;
use crate::completion::{SHELL_NAMES, SHELLS, VARIABLE};
use crate::flags::{Completes, Count, Operand};

pub const VERB: Verb = Verb {
    name: "completions",
    about: "Print a script that completes skiff's command lines in a shell",
    long: "Print a script that completes skiff's command lines in a shell: verbs, flags, their values, files and the names of \
           VMs. The script asks the skiff on PATH each time, so it need not be made again.",
    after: || EXAMPLES.to_owned(),
    flags: Vec::new,
    operands: &[SHELL],
    run,
};

const SHELL: Operand =
    Operand { name: "SHELL", count: Count::One, completes: Completes::Words(SHELL_NAMES), help: "The shell" };

const EXAMPLES: &str = "\
Examples:
  source <(skiff completions bash)                                  # in ~/.bashrc
  source <(skiff completions zsh)                                   # in ~/.zshrc, after compinit
  skiff completions fish > ~/.config/fish/completions/skiff.fish";

fn run(matches: &ArgMatches) -> Result<u8> {
    let name = SHELL.one(matches);
    let shell = SHELLS.iter().find(|shell| shell.name() == name).context("there is no such shell")?;
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "skiff", "skiff", "skiff", &mut script)?;
    super::print(&String::from_utf8(script)?)
}
