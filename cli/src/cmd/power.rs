//! `skiff stop`, `kill`, `pause`, `resume` and `wait`.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::ArgMatches;
use vmm::api::client::Client;
use vmm::control::VmAction;

use super::many::{self, RUNNING, VMS, each};
use super::{Verb, print};
use crate::exit::Usage;
use crate::flags::{self, Example, Flag, Takes};
use crate::store::Store;
use crate::store::entry::Status;
use crate::store::state::End;
use crate::{exit, guest, terminal};

/// How long after one press of the power button the next follows.
const AGAIN: Duration = Duration::from_secs(5);

/// `skiff stop`.
pub const STOP: Verb = Verb {
    name: "stop",
    about: "Press the power button of VMs, and kill those that do not stop",
    long: "Press the power button of VMs, and again every few seconds, until they have stopped. One that has not after the \
           timeout is killed, and this is said. A paused VM goes on first. Prints the names.",
    after: String::new,
    flags: || flags::describe(STOP_FLAGS),
    operands: &[RUNNING],
    run: stop,
};

/// `skiff kill`.
pub const KILL: Verb = Verb {
    name: "kill",
    about: "End VMs at once, as pulling the plug does",
    long: "",
    after: String::new,
    flags: Vec::new,
    operands: &[RUNNING],
    run: kill,
};

/// `skiff pause`.
pub const PAUSE: Verb = Verb {
    name: "pause",
    about: "Stop VMs where they are, until they are resumed",
    long: "",
    after: String::new,
    flags: Vec::new,
    operands: &[RUNNING],
    run: |matches| ask_each(matches, &VmAction::Pause),
};

/// `skiff resume`.
pub const RESUME: Verb = Verb {
    name: "resume",
    about: "Let paused VMs go on",
    long: "",
    after: String::new,
    flags: Vec::new,
    operands: &[RUNNING],
    run: |matches| ask_each(matches, &VmAction::Resume),
};

/// `skiff wait`.
pub const WAIT: Verb = Verb {
    name: "wait",
    about: "Wait until VMs have ended, and print their exit codes; or until they are ready",
    long: "Wait until VMs have ended, and print their exit codes, one a line in the order given: what skiff run would have \
           ended with. With one VM it is this program's exit code, too; with several, the first that is not 0 is. With --ready: wait \
           until the agents in their guests take requests, and print the VMs' names.",
    after: || crate::exit::HELP.to_owned(),
    flags: || flags::describe(WAIT_FLAGS),
    operands: &[VMS],
    run: wait,
};

struct StopAsked {
    timeout: Duration,
}

impl Default for StopAsked {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30) }
    }
}

const STOP_FLAGS: &[Flag<StopAsked>] = &[Flag {
    name: "timeout",
    short: Some('t'),
    takes: Takes::Text("SECONDS"),
    help: "How long the guest may take before it is killed [default: 30]",
    long: "A number of seconds, or one with s, m or h behind it. 0 kills at once, without the power button.",
    example: Example { args: &["--timeout", "90"], toml: "" },
    apply: |asked, value| {
        asked.timeout = super::exec::span(value)?;
        Ok(())
    },
}];

#[derive(Default)]
struct WaitAsked {
    ready: bool,
    timeout: Option<Duration>,
}

const WAIT_FLAGS: &[Flag<WaitAsked>] = &[
    Flag {
        name: "ready",
        short: None,
        takes: Takes::Nothing,
        help: "Wait until their guests take commands (skiff exec), not until they have ended",
        long: "",
        example: Example { args: &["--ready"], toml: "" },
        apply: |asked, _| {
            asked.ready = true;
            Ok(())
        },
    },
    Flag {
        name: "timeout",
        short: Some('t'),
        takes: Takes::Text("SECONDS"),
        help: "With --ready: fail if it takes longer than this [default: for ever]",
        long: "A number of seconds, or one with s, m or h behind it.",
        example: Example { args: &["--timeout", "90"], toml: "" },
        apply: |asked, value| {
            asked.timeout = Some(super::exec::span(value)?);
            Ok(())
        },
    },
];

fn stop(matches: &ArgMatches) -> Result<u8> {
    let mut asked = StopAsked::default();
    flags::apply(STOP_FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    each(&RUNNING.given(matches), |name| {
        if !store.get(name)?.is_live() {
            terminal::note(&format!("skiff: {name} is not running"));
        } else {
            stop_one(&store, name, asked.timeout)?;
        }
        Ok(format!("{name}\n"))
    })
}

/// Press the power button of the VM `name` until it has stopped, and kill it if it has not after `timeout`.
pub fn stop_one(store: &Store, name: &str, timeout: Duration) -> Result<()> {
    let look = many::running(store, name)?;
    let entry = &look.entry;
    if timeout.is_zero() {
        return many::kill(store, entry);
    }
    let press = || -> Result<()> {
        let mut client = entry.client(None)?;
        if look.status() == Status::Paused {
            client.act(VmAction::Resume)?;
        }
        client.act(VmAction::PressPowerButton)?;
        Ok(())
    };
    let mut pressed = press();
    let mut left = timeout;
    while pressed.is_ok() && !left.is_zero() {
        let span = left.min(AGAIN);
        if entry.wait_gone(Some(span)) {
            return Ok(());
        }
        left = left.saturating_sub(span);
        // A guest that was still booting has not noticed.
        if !left.is_zero() {
            pressed = press();
        }
    }
    match pressed {
        Ok(()) => {
            terminal::note(&format!("skiff: {name} did not stop within {} s; killed", timeout.as_secs()))
        }
        // It may have ended by itself.
        Err(_) if entry.wait_gone(Some(Duration::from_millis(100))) => return Ok(()),
        Err(error) => terminal::note(&format!("skiff: {name} cannot be asked to stop: {error:#}; killed")),
    }
    many::kill(store, entry)
}

fn kill(matches: &ArgMatches) -> Result<u8> {
    let store = Store::open()?;
    each(&RUNNING.given(matches), |name| {
        let look = store.get(name)?;
        if !look.is_live() {
            bail!("{name} is not running");
        }
        many::kill(&store, &look.entry)?;
        Ok(format!("{name}\n"))
    })
}

fn ask_each(matches: &ArgMatches, action: &VmAction) -> Result<u8> {
    let store = Store::open()?;
    each(&RUNNING.given(matches), |name| {
        many::ask(&store, name, action.clone())?;
        Ok(format!("{name}\n"))
    })
}

fn wait(matches: &ArgMatches) -> Result<u8> {
    let mut asked = WaitAsked::default();
    flags::apply(WAIT_FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    if asked.ready {
        return each(&VMS.given(matches), |name| {
            guest::wait_ready(&store, name, asked.timeout)?;
            Ok(format!("{name}\n"))
        });
    }
    if asked.timeout.is_some() {
        return Err(Usage("--timeout goes with --ready: leave one out, or give both".to_owned()).into());
    }
    let mut code = exit::SUCCESS;
    for name in VMS.given(matches) {
        let end = wait_one(&store, &name)?;
        print(format!("{}\n", end.code()))?;
        code = if code == exit::SUCCESS { end.code() } else { code };
    }
    Ok(code)
}

/// Wait for the end of the VM `name`.
fn wait_one(store: &Store, name: &str) -> Result<End> {
    let look = store.get(name)?;
    if look.is_live()
        && let Ok(look) = many::running(store, name)
    {
        // For ever: no time limit is set. A VM that is thrown away tells its end to those who wait, and leaves nothing.
        let told = look.entry.connect().map(|stream| Client::new(stream).wait());
        look.entry.wait_gone(None);
        if let Ok(Ok(ended)) = told {
            return Ok(End::from(ended));
        }
    }
    match store.get(name)?.status() {
        Status::Ended(end) => Ok(end),
        Status::Broken(reason) => bail!("{name} is broken: {reason}"),
        _ => bail!("{name} was started again"),
    }
}
