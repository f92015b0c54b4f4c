//! `skiff start` and `skiff attach`.

use anyhow::{Context as _, Result};
use clap::ArgMatches;

use super::Verb;
use super::many::{self, RUNNING_VM, STOPPED};
use crate::exec;
use crate::exit::{SUCCESS, Usage};
use crate::flags::{self, Example, Flag, Takes};
use crate::front;
use crate::guest::{BOOT, Guest};
use crate::launch::{Launch, Which};
use crate::logging::Logging;
use crate::store::{Store, command};

/// `skiff start`.
pub const START: Verb = Verb {
    name: "start",
    about: "Start VMs that have stopped, as they were",
    long: "Start VMs that have stopped, with the spec that they were first run with, in the background. The command of skiff run -d IMAGE CMD \
           runs again. Prints the names.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[STOPPED],
    run: start,
};

/// `skiff attach`.
pub const ATTACH: Verb = Verb {
    name: "attach",
    about: "Join the console of a VM",
    long: "Join the console of a VM, with what was printed before. Several can at once; all of them can type. Ctrl-] d or \
           Ctrl-] q leaves, and the VM runs on. When it ends, so does this program, with its exit code.",
    after: || crate::exit::HELP.to_owned(),
    flags: Vec::new,
    operands: &[RUNNING_VM],
    run: attach,
};

#[derive(Default)]
struct Asked {
    attach: bool,
}

const FLAGS: &[Flag<Asked>] = &[Flag {
    name: "attach",
    short: Some('a'),
    takes: Takes::Nothing,
    help: "Join its console; with one VM only",
    long: "",
    example: Example { args: &["-a"], toml: "" },
    apply: |asked, _| {
        asked.attach = true;
        Ok(())
    },
}];

fn start(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let names = STOPPED.given(matches);
    if asked.attach && names.len() > 1 {
        return Err(Usage("--attach goes with one VM: name one, or leave it out".to_owned()).into());
    }
    // One after the other: a fork wants a program without threads.
    let started: Vec<_> = names.iter().map(|name| start_one(&store, name, asked.attach)).collect();
    let runs = |(name, started): (&String, Result<String>)| {
        started.and_then(|line| run_again(&store, name).map(|()| line))
    };
    let code = many::tell(names.iter().zip(started).map(runs).collect())?;
    match names.first() {
        Some(name) if asked.attach && code == SUCCESS => front::view(&store, &store.get(name)?.entry),
        _ => Ok(code),
    }
}

/// Says what to print.
fn start_one(store: &Store, name: &str, quiet: bool) -> Result<String> {
    let logging = Logging { verbose: 0, file: None, guest_on_stdout: false, detached: true };
    let which = Which::Again { name: name.to_owned(), from: None };
    let launch = Launch { store: store.clone(), which, foreground: false, logging };
    let name = launch.fork()?.started()?;
    Ok(if quiet { String::new() } else { format!("{name}\n") })
}

/// Run the command again that the VM is there for, if it is for one.
fn run_again(store: &Store, name: &str) -> Result<()> {
    let Some(wish) = command::recall(&store.get(name)?.entry)? else { return Ok(()) };
    let started = Guest::find(store, name, Some(BOOT)).and_then(|guest| exec::start(&guest, &wish));
    started.with_context(|| format!("the command of {name} cannot be run again"))
}

fn attach(matches: &ArgMatches) -> Result<u8> {
    let store = Store::open()?;
    let look = many::running(&store, &RUNNING_VM.one(matches))?;
    front::view(&store, &look.entry)
}
