//! A VM in the foreground: starts it, joins it to the terminal and to signals, and waits for its end.
//!
//! The main thread waits. `signals` and `stdin` ask things of the VM without waiting for its answers, so that neither is
//! ever held up by a busy VM.

use std::io::{self, IsTerminal, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use vmm::control::{Controller, Outcome, VmAction};
use vmm::spec::{Stream, VmSpec};

use crate::escape::{self, Key};
use crate::signals::{Ended, Signal, Signals};
use crate::terminal::{self, Raw};
use crate::{exit, input};

/// Run `spec` to its end, and say the exit code.
pub fn run(spec: VmSpec) -> Result<u8> {
    terminal::restore_on_panic();
    raise_file_limit();
    let signals = Signals::block().context("cannot block signals")?;
    let has_stdin = spec.serial == Stream::Stdio || spec.console == Stream::Stdio;
    let resizes = spec.console == Stream::Stdio;
    let stdout = io::stdout().as_fd().try_clone_to_owned().context("cannot use standard output")?;
    let setup = vmm::machine::Setup {
        name: "vm".to_owned(),
        stdout: Some(stdout),
        log: None,
        listener: Box::new(drop),
    };
    let vm = vmm::machine::start(spec, setup)?;
    let controller = vm.controller();
    // Lives to the end of this function: every way out gives the terminal back.
    let raw = if has_stdin { Raw::enter(io::stdin()).context("cannot set up the terminal")? } else { None };
    let left = Left::default();
    let ended = handle_signals(signals, controller.clone(), resizes).context("cannot start a thread")?;
    if has_stdin {
        take_input(controller.clone(), left.clone(), raw.is_some()).context("cannot start a thread")?;
    }
    if resizes {
        request(&controller, window_size());
    }
    let outcome = vm.wait();
    drop(raw);
    conclude(outcome?, &ended, &left)
}

/// Every queue and every interrupt of a VM is a descriptor. The lower limit is there for programs that use `select`.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::info!("the limit of open files stays as it is: {error}");
    }
}

/// Whether the user left with the escape.
#[derive(Clone, Default)]
struct Left(Arc<AtomicBool>);

/// Ask for `action`, if there is one. When nobody takes it any more, the VM has ended and main knows.
fn request(controller: &Controller, action: Option<VmAction>) {
    if let Some(action) = action {
        drop(controller.request(action));
    }
}

fn handle_signals(signals: Signals, controller: Controller, resizes: bool) -> io::Result<Ended> {
    signals.handle(move |signal| match signal {
        Signal::End(_) => request(&controller, Some(VmAction::Kill)),
        Signal::Resized if resizes => request(&controller, window_size()),
        Signal::Resized => {}
    })
}

fn take_input(controller: Controller, left: Left, keys: bool) -> io::Result<()> {
    let typed = controller.clone();
    let guest = move |bytes: &[u8]| typed.input(bytes);
    if !keys {
        return input::pipe(io::stdin(), guest);
    }
    terminal::note(&format!("skiff: {}", escape::HELP));
    input::keys(io::stdin(), guest, move |key| match key {
        Key::Leave => {
            left.0.store(true, Ordering::SeqCst);
            request(&controller, Some(VmAction::Kill));
        }
        Key::PressPower => request(&controller, Some(VmAction::PressPowerButton)),
        Key::Help | Key::Guest(_) => terminal::note(&format!("\r\nskiff: {}", escape::HELP)),
    })
}

/// The size of the terminal that shows the console.
fn window_size() -> Option<VmAction> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stdout).ok()?;
    Some(VmAction::ResizeConsole { columns: size.ws_col, rows: size.ws_row })
}

/// What the VM's end means for whoever started the program.
fn conclude(outcome: Outcome, ended: &Ended, left: &Left) -> Result<u8> {
    match outcome {
        Outcome::PoweredOff => Ok(exit::SUCCESS),
        Outcome::Panicked { last_lines } => {
            tell_panic(&last_lines);
            Ok(exit::GUEST_PANIC)
        }
        Outcome::Killed => match ended.by() {
            Some(signal) => Ok(exit::SIGNAL.saturating_add(signal)),
            None if left.0.load(Ordering::SeqCst) => Ok(exit::SUCCESS),
            None => bail!("the VM was killed, and not by this program"),
        },
    }
}

/// The lines come without control characters: they drive no terminal.
fn tell_panic(last_lines: &[String]) {
    let text = format!("skiff: the guest's kernel panicked; its last lines:\n{}\n", last_lines.join("\n"));
    let _ = io::stderr().write_all(text.as_bytes());
}
