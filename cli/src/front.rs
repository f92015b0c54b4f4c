//! A user's terminal, or pipes, before a VM that is another process: in the foreground for a VM that was just started
//! ([`own`]), or beside others ([`view`]).
//!
//! The main thread waits for what the VM sends. `signals`, `stdin` and `typing` bring it what the user does; `resize` tells it the size of
//! the window. Whoever leaves notes why, tells the VM and closes the connection, which wakes the main thread; none of them
//! waits for a VM that hangs.

use std::io::{self, IsTerminal, Write as _};
use std::sync::mpsc::{SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vmm::api::client::Frames;
use vmm::api::types::{Attach, Ended, Frame};
use vmm::control::{Outcome, VmAction};
use vmm::spec::{Stream, VmSpec};

use crate::escape::{self, Key};
use crate::launch::{Launch, Launched, VmProcess, Which};
use crate::signals::{Signal, Signals};
use crate::store::Store;
use crate::store::entry::Entry;
use crate::terminal::{self, Raw};
use crate::{exit, guest, input};

/// How long a VM may take to hear that somebody leaves, or that a key was pressed that is not for its guest.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why the user is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// By Ctrl-] q: the VM is to end.
    Quit,
    /// By Ctrl-] d: the VM is to live.
    Detached,
    /// By this signal.
    Signal(u8),
}

/// What all threads share.
#[derive(Clone)]
struct Front {
    frames: Frames,
    /// The VM's process, if it is this one's.
    own: Option<VmProcess>,
    left: Arc<Mutex<Option<Left>>>,
}

/// Start a VM and stand in the foreground for it. Says the exit code.
pub fn own(launch: Launch, spec: &VmSpec) -> Result<u8> {
    terminal::restore_on_panic();
    let has_stdin = spec.serial == Stream::Stdio || spec.console == Stream::Stdio;
    let resizes = spec.console == Stream::Stdio;
    // Before the fork: no signal is to part the two.
    let signals = Signals::block().context("cannot block signals")?;
    let store = launch.store.clone();
    let kept_nameless = matches!(launch.which, Which::New { name: None, remove: false, .. });
    let mut launched = launch.fork()?;
    let front = Front::owner(&mut launched)?;
    let resize = if resizes { Some(front.start_resizer()?) } else { None };
    front.take_signals(signals, resize.clone())?;
    let name = launched.started()?;
    if spec.has_mounts() {
        guest::watch_mounts(&store, &name);
    }
    // Lives to the end of this function: every way out gives the terminal back.
    let raw = if has_stdin { Raw::enter(io::stdin()).context("cannot set up the terminal")? } else { None };
    if has_stdin {
        front.take_input(&store, &name, raw.is_some())?;
    }
    if let Some(resize) = resize {
        let _ = resize.try_send(());
    }
    let ended = front.wait();
    drop(raw);
    if kept_nameless && ended.is_some() {
        terminal::note(&format!("\r\nskiff: this was {name}: skiff start {name} boots it again"));
    }
    front.conclude(&name, ended, || match launched.child.wait() {
        Some(signal) => format!("the process of {name} was killed by signal {signal}"),
        None => format!("the process of {name} ended without a word"),
    })
}

/// Join the console of `entry`'s VM, with what was printed before. Says the exit code.
pub fn view(store: &Store, entry: &Entry) -> Result<u8> {
    terminal::restore_on_panic();
    let name = entry.name();
    let client = entry.client(None)?;
    let frames = client
        .attach(Attach { output: true, history: true })
        .with_context(|| format!("cannot attach to {name}"))?;
    frames.wait_for_ever().context("cannot set up the connection")?;
    let signals = Signals::block().context("cannot block signals")?;
    let front = Front { frames, own: None, left: Arc::default() };
    let resize = front.start_resizer()?;
    front.take_signals(signals, Some(resize.clone()))?;
    let raw = Raw::enter(io::stdin()).context("cannot set up the terminal")?;
    front.take_input(store, name, raw.is_some())?;
    let _ = resize.try_send(());
    let ended = front.wait();
    drop(raw);
    front.conclude(name, ended, || {
        entry.wait_gone(Some(PATIENCE));
        format!("the connection to {name} broke: its process was most likely killed")
    })
}

impl Front {
    fn owner(launched: &mut Launched) -> Result<Self> {
        let stream = launched.stream.take().context("there is no connection to the VM")?;
        let frames = Frames::new(stream).context("cannot set up the connection to the VM")?;
        Ok(Self { frames, own: Some(launched.child), left: Arc::default() })
    }

    /// Whoever leaves first says why.
    fn note(&self, why: Left) {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    fn left(&self) -> Option<Left> {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave the VM alone, for this reason.
    fn detach(&self, why: Left) {
        self.note(why);
        let (done, told) = channel();
        let frames = self.frames.clone();
        // A VM that takes nothing any more would keep this thread.
        let told = vmm::named_thread("detach")
            .spawn(move || {
                let _ = frames.write(&Frame::Detach);
                let _ = done.send(());
            })
            .map(|_| told.recv_timeout(PATIENCE));
        drop(told);
        self.frames.close();
    }

    fn take_signals(&self, signals: Signals, resize: Option<SyncSender<()>>) -> Result<()> {
        let front = self.clone();
        let act = move |signal| match (signal, front.own) {
            (Signal::Resized, _) => {
                // One that waits already will see the newest size.
                let _ = resize.as_ref().map(|resize| resize.try_send(()));
            }
            // The VM survives the terminal that started it.
            (Signal::End(number), None) | (Signal::End(number @ libc::SIGHUP), _) => {
                front.detach(Left::Signal(u8::try_from(number).unwrap_or_default()));
            }
            (Signal::End(number), Some(process)) => {
                front.note(Left::Signal(u8::try_from(number).unwrap_or_default()));
                process.signal(rustix::process::Signal::TERM);
            }
            (Signal::EndNow, Some(process)) => process.signal(rustix::process::Signal::KILL),
            (Signal::EndNow, None) => {}
        };
        signals.handle(act).context("cannot start a thread")
    }

    fn take_input(&self, store: &Store, name: &str, keys: bool) -> Result<()> {
        let typed = self.clone();
        let guest = move |bytes: &[u8]| typed.type_in(bytes.to_vec(), keys);
        if !keys {
            return input::pipe(io::stdin(), guest).context("cannot start a thread");
        }
        let help = if self.own.is_some() { escape::HELP } else { escape::VIEWER_HELP };
        terminal::note(&format!("skiff: {help}"));
        let (front, store, name) = (self.clone(), store.clone(), name.to_owned());
        let act = move |key| match (key, front.own) {
            (Key::Leave, Some(process)) => {
                front.note(Left::Quit);
                process.signal(rustix::process::Signal::TERM);
            }
            (Key::Leave, None) | (Key::Detach, _) => front.detach(Left::Detached),
            (Key::PressPower, _) => {
                if let Err(error) = press_power(&store, &name) {
                    terminal::note(&format!("\r\nskiff: {error:#}"));
                }
            }
            (Key::Help | Key::Guest(_), _) => terminal::note(&format!("\r\nskiff: {help}")),
        };
        input::keys(io::stdin(), guest, act).context("cannot start a thread")
    }

    /// At the guest's pace, or as `keys`: they are dropped if they are too many for a guest that takes none, and the user can
    /// still leave it.
    fn type_in(&self, bytes: Vec<u8>, keys: bool) {
        let (len, frame) = (bytes.len(), Frame::Input(bytes));
        // When the VM takes nothing any more, it has ended, and the main thread knows.
        if !keys {
            let _ = self.frames.write(&frame);
        } else if matches!(self.frames.offer(&frame), Ok(false)) {
            log::warn!("the guest takes no input: {len} bytes typed are dropped");
        }
    }

    /// Start the thread that tells the VM of the window's size whenever it is poked.
    fn start_resizer(&self) -> Result<SyncSender<()>> {
        let (poke, poked) = sync_channel(1);
        let frames = self.frames.clone();
        let resize = move || {
            for () in poked {
                if let Some((columns, rows)) = window_size() {
                    let _ = frames.write(&Frame::Resize { columns, rows });
                }
            }
        };
        vmm::named_thread("resize").spawn(resize).context("cannot start a thread")?;
        Ok(poke)
    }

    /// Show what the VM sends until it has ended, or the user leaves.
    fn wait(&self) -> Option<Ended> {
        loop {
            match self.frames.read() {
                Ok(Some(Frame::Ended(ended))) => return Some(ended),
                Ok(Some(Frame::Output(bytes))) => {
                    let mut stdout = io::stdout().lock();
                    if stdout.write_all(&bytes).and_then(|()| stdout.flush()).is_err() {
                        // Nobody looks any more.
                        self.detach(Left::Detached);
                    }
                }
                Ok(Some(Frame::Skipped(bytes))) => {
                    terminal::note(&format!("\r\nskiff: {bytes} bytes are left out, for they came too fast"));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// What it all means for whoever started the program. `vanished` says how the VM ended without a word.
    fn conclude(&self, name: &str, ended: Option<Ended>, vanished: impl FnOnce() -> String) -> Result<u8> {
        let left = self.left();
        match (ended, left) {
            (Some(ended), left) => {
                // Its process has still to write that down.
                let _ = vanished();
                self.tell_end(name, ended, left)
            }
            (None, Some(Left::Detached)) => {
                terminal::note(&format!(
                    "\r\nskiff: detached from {name}; skiff attach {name} joins it again"
                ));
                Ok(exit::SUCCESS)
            }
            (None, Some(Left::Signal(number))) if self.own.is_none() || i32::from(number) == libc::SIGHUP => {
                Ok(exit::SIGNAL.saturating_add(number))
            }
            (None, _) => {
                let why = vanished();
                let _ = writeln!(io::stderr(), "skiff: {why}");
                Ok(exit::KILLED)
            }
        }
    }

    fn tell_end(&self, name: &str, ended: Ended, left: Option<Left>) -> Result<u8> {
        match ended {
            Ended::Outcome(Outcome::PoweredOff) => Ok(exit::SUCCESS),
            Ended::Outcome(Outcome::Finished { code }) => Ok(code),
            Ended::Outcome(Outcome::Panicked { last_lines }) => {
                tell_panic(&last_lines);
                Ok(exit::GUEST_PANIC)
            }
            Ended::Outcome(Outcome::Killed) => match left {
                Some(Left::Signal(number)) => Ok(exit::SIGNAL.saturating_add(number)),
                Some(Left::Quit) => Ok(exit::SUCCESS),
                _ => {
                    let _ = writeln!(io::stderr(), "skiff: {name} was killed");
                    Ok(exit::KILLED)
                }
            },
            Ended::Failed(error) => bail!(error),
        }
    }
}

fn press_power(store: &Store, name: &str) -> Result<()> {
    let entry = store.find(name).with_context(|| format!("{name} is gone, or has another name now"))?;
    entry.client(Some(PATIENCE))?.act(VmAction::PressPowerButton)?;
    Ok(())
}

/// The size of the terminal that shows the console.
fn window_size() -> Option<(u16, u16)> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stdout).ok()?;
    Some((size.ws_col, size.ws_row))
}

/// The lines come without control characters: they drive no terminal.
fn tell_panic(last_lines: &[String]) {
    let text = format!("skiff: the guest's kernel panicked; its last lines:\n{}\n", last_lines.join("\n"));
    let _ = io::stderr().write_all(text.as_bytes());
}
