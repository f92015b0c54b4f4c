//! How the program ends: exit codes, and errors said once.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

/// The guest switched itself off, or the user left.
pub const SUCCESS: u8 = 0;
/// Something that was named cannot be used, or the host or the VM failed.
pub const FAILURE: u8 = 1;
/// A wrong flag, file key or value: nothing was tried.
pub const USAGE: u8 = 2;
/// The guest's kernel panicked.
pub const GUEST_PANIC: u8 = 3;
/// The VM was killed, by somebody else: as if SIGKILL had ended it.
pub const KILLED: u8 = SIGNAL + 9;
/// skiff itself failed where the exit code is that of a command in a guest.
pub const NOT_THE_COMMANDS: u8 = 125;
/// A command in a guest cannot be run.
pub const NOT_EXECUTABLE: u8 = 126;
/// There is no such command in the guest.
pub const NOT_FOUND: u8 = 127;
/// Ended by a signal: this and the signal's number, as shells count.
pub const SIGNAL: u8 = 128;

/// The exit codes as the help shows them.
pub const HELP: &str = "\
Exit codes:
  0      the guest switched itself off, or you left with Ctrl-] q or Ctrl-] d
  1      an error: something named cannot be used, or the host or the VM failed
  2      a wrong flag, or a wrong key or value in a file; nothing was tried
  3      the guest's kernel panicked; its last lines are on stderr
  128+N  ended by signal N (130: Ctrl-C, 143: SIGTERM); 137: the VM was killed by somebody else
With a CMD, those of the command; and 125: skiff itself failed, 126: the command cannot be run, 127: there is none";

/// An error of the one who typed: it ends the program with [`USAGE`].
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Print `error` and its causes on one line, and choose the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    say(error);
    ExitCode::from(if error.is::<Usage>() { USAGE } else { FAILURE })
}

/// Print `error` and its causes on one line.
pub fn say(error: &anyhow::Error) {
    // There is nobody left to tell when stderr is gone.
    let _ = writeln!(std::io::stderr(), "skiff: error: {}", plain(&format!("{error:#}")));
}

/// A text in which names may be that somebody else has chosen, without what a terminal would obey.
fn plain(text: &str) -> String {
    let is_order = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
    text.chars().map(|letter| if is_order(letter) { '\u{fffd}' } else { letter }).collect()
}

/// Print what clap has to say: help and version on stdout, mistakes on stderr.
pub fn report_clap(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").map(|rest| format!("skiff: error: {rest}")).unwrap_or(text);
        let _ = std::io::stderr().write_all(text.as_bytes());
    } else {
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { USAGE } else { SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_in_an_error_is_an_order_to_the_terminal() {
        assert_eq!(
            plain("no image '\x1b]0;x\x07\u{9b}2J'\r\n\tsecond"),
            "no image '\u{fffd}]0;x\u{fffd}\u{fffd}2J'\u{fffd}\n\tsecond"
        );
    }
}
