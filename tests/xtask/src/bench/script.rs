//! Shell scripts that run where Linux guests run: straight on this machine or in kvmbox.

use std::ffi::{OsStr, OsString};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::kvmbox::{self, Io, Options};
use crate::place::Place;
use crate::tool;

/// A script in a box: the longest takes half of it.
const BOX_TIME: Duration = Duration::from_secs(1200);

/// Where to run.
pub enum Where {
    /// As whole-machine tests do.
    Anywhere,
    /// In a box whose clock counts instructions.
    Icount,
}

/// Runs `script` by `sh` and returns what it printed. A box that hangs, which the emulator's sometimes do, is tried once more.
///
/// # Errors
/// When it fails.
pub fn run(place: Where, script: &str) -> Result<String> {
    run_within(place, script, BOX_TIME)
}

/// As [`run`], in a box that has `time`.
///
/// # Errors
/// When it fails.
pub fn run_within(place: Where, script: &str, time: Duration) -> Result<String> {
    let icount = matches!(place, Where::Icount);
    if !icount && matches!(Place::of_machine(), Place::Host(_)) {
        return tool::capture(Command::new("sh").args(["-c", script]));
    }
    let options = Options { icount, timeout: time, ..Options::default() };
    let words = ["sh", "-c", script].map(OsString::from);
    let run = || kvmbox::run(&options, Io { input: false, show: false, keep: true }, &words);
    let mut outcome = run()?;
    if outcome.code == kvmbox::TIMED_OUT {
        eprintln!("  the box hangs: once more in another");
        outcome = run()?;
    }
    let output = String::from_utf8_lossy(&outcome.output).into_owned();
    if outcome.code != 0 {
        bail!("the script in the box ended with {}:\n{output}", outcome.code);
    }
    Ok(output)
}

/// A command as the shell reads it.
///
/// # Errors
/// When a word is not UTF-8.
pub fn quote<W: AsRef<OsStr>>(words: &[W]) -> Result<String> {
    let quoted = words.iter().map(|word| {
        let word = word.as_ref().to_str().context("a path is not UTF-8")?;
        Ok(format!("'{}'", word.replace('\'', r"'\''")))
    });
    Ok(quoted.collect::<Result<Vec<_>>>()?.join(" "))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_shell_gets_the_words_back() {
        assert_eq!(super::quote(&["a b", "it's"]).unwrap(), r"'a b' 'it'\''s'");
    }
}
