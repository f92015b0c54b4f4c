//! `skiff exec` and `skiff shell`.

use std::ffi::OsStr;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::ArgMatches;

use super::Verb;
use super::many::RUNNING_VM;
use crate::exec::{self, Wish};
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::guest::Guest;
use crate::store::Store;
use crate::store::time::parse_span;

/// `skiff exec`.
pub const EXEC: Verb = Verb {
    name: "exec",
    about: "Run a command in a VM",
    long: "Run a command in a VM, by the agent in its guest, and end with its exit code. What it prints is printed here; standard input \
           is its own with -i. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2 and SIGALRM are handed on to it; the third of those that \
           would end this program does. If this program ends, so does the command, unless -d is there.",
    after: || format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    flags: || flags::describe(EXEC_FLAGS),
    operands: &[RUNNING_VM, COMMAND],
    run: run_exec,
};

/// `skiff shell`.
pub const SHELL: Verb = Verb {
    name: "shell",
    about: "Open a shell in a VM",
    long: "Open the login shell of a user in a VM, root by default: skiff exec -it with nothing to choose.",
    after: || EXIT_CODES.to_owned(),
    flags: || flags::describe(SHELL_FLAGS),
    operands: &[RUNNING_VM],
    run: run_shell,
};

const EXAMPLES: &str = "\
Examples:
  skiff exec web uname -r
  skiff exec -it web bash
  skiff exec -u www-data -w /srv -e LANG=C web ls -l
  tar c src | skiff exec -i web tar x -C /root";

const EXIT_CODES: &str = "\
Exit codes:
  those of the command; 128+N if signal N ended it
  125    skiff itself failed: there is no such VM, no agent answers, …
  126    the command cannot be run
  127    there is no such command in the guest
  129    you left with Ctrl-] q; 0: with Ctrl-] d

Keys, with -it and in skiff shell:
  Ctrl-] q       leave, and end the command
  Ctrl-] d       leave it running
  Ctrl-] Ctrl-]  type Ctrl-]";

const COMMAND: Operand = Operand {
    name: "CMD",
    count: Count::Rest,
    completes: Completes::Nothing,
    help: "The command and its arguments",
};

/// What flags can say of a command in a guest, whatever else they say.
pub trait Wishes {
    /// The command.
    fn wish(&mut self) -> &mut Wish;
}

#[derive(Default)]
struct Asked {
    wish: Wish,
    timeout: Option<Duration>,
}

impl Wishes for Asked {
    fn wish(&mut self) -> &mut Wish {
        &mut self.wish
    }
}

const EXEC_FLAGS: &[Flag<Asked>] = &[interactive(), tty(), DETACH, user(), workdir(), env(), TIMEOUT];
const SHELL_FLAGS: &[Flag<Asked>] = &[user(), workdir(), env(), TIMEOUT];

/// `--interactive`.
pub const fn interactive<T: Wishes>() -> Flag<T> {
    Flag {
        name: "interactive",
        short: Some('i'),
        takes: Takes::Nothing,
        help: "Let the command read standard input; otherwise it has none",
        long: "",
        example: Example { args: &["-i"], toml: "" },
        apply: |asked, _| {
            asked.wish().interactive = true;
            Ok(())
        },
    }
}

/// `--tty`.
pub const fn tty<T: Wishes>() -> Flag<T> {
    Flag {
        name: "tty",
        short: Some('t'),
        takes: Takes::Nothing,
        help: "Give the command a terminal of its own; with -i, this one's keys are its",
        long: "Its standard error is then the same as its standard output.",
        example: Example { args: &["-t"], toml: "" },
        apply: |asked, _| {
            asked.wish().terminal = true;
            Ok(())
        },
    }
}

const DETACH: Flag<Asked> = Flag {
    name: "detach",
    short: Some('d'),
    takes: Takes::Nothing,
    help: "Leave the command running and return; what it prints goes to the guest's console",
    long: "",
    example: Example { args: &["-d"], toml: "" },
    apply: |asked, _| {
        asked.wish.detach = true;
        Ok(())
    },
};

/// `--user`.
pub const fn user<T: Wishes>() -> Flag<T> {
    Flag {
        name: "user",
        short: Some('u'),
        takes: Takes::Text("USER[:GROUP]"),
        help: "Whose the command is, by name or number [default: as the image says, or root]",
        long: "",
        example: Example { args: &["-u", "www-data"], toml: "" },
        apply: |asked, value| {
            asked.wish().user = Some(word(value).context("the user has no name: write USER or USER:GROUP")?);
            Ok(())
        },
    }
}

/// A text with something in it.
fn word(value: &OsStr) -> Option<String> {
    value.to_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// `--workdir`.
pub const fn workdir<T: Wishes>() -> Flag<T> {
    Flag {
        name: "workdir",
        short: Some('w'),
        takes: Takes::Text("DIR"),
        help: "The directory in which the command starts [default: as the image says, or the user's home]",
        long: "",
        example: Example { args: &["-w", "/srv"], toml: "" },
        apply: |asked, value| {
            asked.wish().cwd =
                Some(word(value).context("the directory has no name: write its path in the guest")?);
            Ok(())
        },
    }
}

/// `--env`.
pub const fn env<T: Wishes>() -> Flag<T> {
    Flag {
        name: "env",
        short: Some('e'),
        takes: Takes::Texts("KEY=VALUE"),
        help: "Put this into the command's environment; KEY alone takes the value that it has here",
        long: "",
        example: Example { args: &["-e", "LANG=C", "-e", "HOME=/srv"], toml: "" },
        apply: |asked, value| {
            asked.wish().env.extend(variable(value)?);
            Ok(())
        },
    }
}

const TIMEOUT: Flag<Asked> = Flag {
    name: "timeout",
    short: None,
    takes: Takes::Text("SECONDS"),
    help: "How long a guest that boots may take until it is ready [default: 300; 3 if nothing is known of an agent in it]",
    long: "A number of seconds, or one with s, m or h behind it.",
    example: Example { args: &["--timeout", "30"], toml: "" },
    apply: |asked, value| {
        asked.timeout = Some(span(value)?);
        Ok(())
    },
};

/// A time that was given.
pub fn span(value: &OsStr) -> Result<Duration> {
    let text = utf8(value)?;
    parse_span(text).with_context(|| format!("'{text}' is no time: write seconds, such as 30, or 5m"))
}

/// What one `-e` puts into the environment: nothing, if it names a variable that is not there.
pub fn variable(value: &OsStr) -> Result<Option<String>> {
    let text = utf8(value)?;
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(Some(text.to_owned())),
        None if !text.is_empty() => Ok(std::env::var(text).ok().map(|value| format!("{text}={value}"))),
        _ => bail!("'{text}' names no variable: write KEY=VALUE"),
    }
}

fn run_exec(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(EXEC_FLAGS, matches, &mut asked)?;
    asked.wish.argv = COMMAND.all(matches);
    Ok(run(matches, &asked))
}

fn run_shell(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(SHELL_FLAGS, matches, &mut asked)?;
    asked.wish.interactive = true;
    // A script that is piped in is run as well.
    asked.wish.terminal = io::stdin().is_terminal();
    Ok(run(matches, &asked))
}

fn run(matches: &ArgMatches, asked: &Asked) -> u8 {
    exec::run(|| Guest::find(&Store::open()?, &RUNNING_VM.one(matches), asked.timeout), &asked.wish)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> (Vec<String>, Wish) {
        let matches = EXEC.command().try_get_matches_from([&["exec"], words].concat()).unwrap();
        let mut asked = Asked::default();
        flags::apply(EXEC_FLAGS, &matches, &mut asked).unwrap();
        (COMMAND.all(&matches), asked.wish)
    }

    #[test]
    fn what_follows_the_vm_is_the_commands() {
        let (command, wish) = asked(&["-it", "-e", "A=b", "web", "ls", "-l", "--", "-t", "ls", "ls"]);
        assert_eq!(command, ["ls", "-l", "--", "-t", "ls", "ls"]);
        assert!(wish.interactive && wish.terminal && wish.env == ["A=b"]);
        let (command, wish) = asked(&["web", "--", "-t", "--help"]);
        assert_eq!(command, ["-t", "--help"]);
        assert!(!wish.terminal);
        assert_eq!(asked(&["web", "sh", "-c", "exit 3"]).0, ["sh", "-c", "exit 3"]);
    }

    #[test]
    fn a_variable_is_given_or_taken_from_here() {
        let read = |text: &str| variable(OsStr::new(text));
        assert_eq!(read("A=b=c").unwrap().as_deref(), Some("A=b=c"));
        assert_eq!(read("A=").unwrap().as_deref(), Some("A="));
        assert!(read("CARGO_MANIFEST_DIR").unwrap().unwrap().starts_with("CARGO_MANIFEST_DIR=/"));
        assert_eq!(read("SKIFF_NO_SUCH_VARIABLE").unwrap(), None);
        assert!(read("=x").is_err() && read("").is_err());
    }
}
