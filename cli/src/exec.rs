//! A command in a guest, with this program's streams, signals and terminal.
//!
//! The main thread writes what the command prints, at the pace of whoever reads it. `stdin` reads what goes in, at the command's pace;
//! of a terminal it reads all that is typed, and `typed` hands it on. `signals` hands on what comes, by `control`, which tells the guest: a guest
//! that takes nothing keeps nobody from leaving.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;

use agent::frame::MAX_FRAME;
use agent::message::{Control, Ended, Exec, Request, Terminal};
use anyhow::{Context as _, Result};
use images::manifest::Defaults;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};
use vmm::agent::client::{AgentError, Said, Sender, Talk};

use crate::escape::{Escape, Key};
use crate::exit::{self, Usage};
use crate::guest::Guest;
use crate::signals::{Signal, Signals};
use crate::terminal::{self, Raw};

/// How many signals and sizes may wait for the guest.
const WAITING: usize = 64;
/// How much of what is typed may wait for the guest, in reads of a terminal.
const TYPED: usize = 1024;
/// What the keys are that are not the command's.
const HELP: &str = "Ctrl-] q ends the command, Ctrl-] d leaves it running, Ctrl-] Ctrl-] types Ctrl-]";
/// The size of a terminal that does not say.
const SIZE: (u16, u16) = (24, 80);

/// A command that is to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The program and its arguments; empty: the login shell.
    pub argv: Vec<String>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Where it starts.
    pub cwd: Option<String>,
    /// Whose it is.
    pub user: Option<String>,
    /// It reads this program's standard input.
    pub interactive: bool,
    /// It has a terminal.
    pub terminal: bool,
    /// It outlives this program.
    pub detach: bool,
    /// The guest is switched off when it ends.
    pub then_power_off: bool,
}

impl Wish {
    /// What can be said of it before there is a guest.
    pub fn check(&self) -> Result<()> {
        if self.interactive && self.terminal && !io::stdin().is_terminal() {
            let message = "standard input is no terminal, which -i with -t needs: leave out -t";
            return Err(Usage(message.to_owned()).into());
        }
        if self.interactive && self.detach {
            return Err(Usage("-i and -d exclude each other: choose one".to_owned()).into());
        }
        Ok(())
    }

    /// It, with what an image says of the commands in its VMs where nothing else is said.
    pub fn over(&self, defaults: &Defaults) -> Self {
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        let user = self.user.clone().or_else(|| given(&defaults.user));
        let cwd = self.cwd.clone().or_else(|| given(&defaults.cwd));
        // The last of two values counts.
        let env = defaults.env.iter().chain(&self.env).cloned().collect();
        Self { env, user, cwd, ..self.clone() }
    }

    fn request(&self) -> Request {
        let (rows, columns) = window_size().unwrap_or(SIZE);
        let term = || std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        Request::Exec(Exec {
            argv: self.argv.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            terminal: self.terminal.then(|| Terminal { term: term(), rows, columns }),
            stdin: self.interactive,
            detach: self.detach,
            then_power_off: self.then_power_off,
        })
    }
}

/// Run it, and say its exit code; or that of a command that cannot be run, or of skiff's own failure. Errors are said.
pub fn run(guest: impl FnOnce() -> Result<Guest>, wish: &Wish) -> u8 {
    let result = wish.check().and_then(|()| guest()).and_then(|guest| in_guest(&guest, wish));
    result.unwrap_or_else(|error| {
        exit::say(&error);
        match error.downcast_ref() {
            Some(AgentError::NotFound(_)) => exit::NOT_FOUND,
            Some(AgentError::NotExecutable(_)) => exit::NOT_EXECUTABLE,
            _ => exit::NOT_THE_COMMANDS,
        }
    })
}

/// Start it, and leave it to itself.
pub fn start(guest: &Guest, wish: &Wish) -> Result<()> {
    guest.ask(&wish.over(&guest.defaults()).request()).map(drop)
}

fn in_guest(guest: &Guest, wish: &Wish) -> Result<u8> {
    terminal::restore_on_panic();
    if wish.detach {
        return start(guest, wish).map(|()| exit::SUCCESS);
    }
    let talk = guest.ask(&wish.over(&guest.defaults()).request())?;
    // Until now they end this program, and the guest's agent the command.
    let signals = Signals::block_to_forward().context("cannot block signals")?;
    forward(signals, talk.sender(), wish.terminal)?;
    let raw = match wish.interactive && wish.terminal {
        true => Raw::enter(io::stdin()).context("cannot set up the terminal")?,
        false => None,
    };
    if wish.interactive {
        let (sender, is_raw) = (talk.sender(), raw.is_some());
        let read = move || if is_raw { take_keys(&sender) } else { feed(&sender) };
        vmm::named_thread("stdin").spawn(read).context("cannot start a thread")?;
    }
    let sender = talk.sender();
    let ended = print(talk);
    sender.close();
    drop(raw);
    match LEFT.get() {
        Some(left) if ended.is_err() => {
            terminal::note(left.words());
            Ok(left.code())
        }
        _ => ended.map_err(|error| guest.explain(error)),
    }
}

/// How the user has left a command that goes on, if so.
static LEFT: OnceLock<Left> = OnceLock::new();

#[derive(Clone, Copy, Debug)]
enum Left {
    /// It ends with its connection.
    Ended,
    /// It outlives it.
    Running,
}

impl Left {
    fn words(self) -> &'static str {
        match self {
            Self::Ended => "skiff: the command was left, and ends",
            Self::Running => "skiff: the command was left, and goes on",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Ended => exit::SIGNAL.saturating_add(libc::SIGHUP as u8),
            Self::Running => exit::SUCCESS,
        }
    }
}

/// Print what it prints until it ends. Says the exit code.
fn print(mut talk: Talk) -> Result<u8> {
    let open = |fd: io::Result<_>| fd.map(File::from).context("cannot use the standard streams");
    let mut stdout = open(io::stdout().as_fd().try_clone_to_owned())?;
    let mut stderr = open(io::stderr().as_fd().try_clone_to_owned())?;
    loop {
        let written = match talk.next()? {
            Said::Output(bytes) => write_all(&mut stdout, &bytes),
            Said::Error(bytes) => write_all(&mut stderr, &bytes),
            Said::Ended(Ended::Signaled(signal)) => {
                return Ok(exit::SIGNAL.saturating_add(u8::try_from(signal & 0x7f).unwrap_or(0)));
            }
            Said::Ended(Ended::Exited(code)) => return Ok(u8::try_from(code & 0xff).unwrap_or(exit::FAILURE)),
            Said::Ended(Ended::Failed(_)) | Said::Message(_) => Ok(()),
        };
        match written {
            // As the command itself would end, were it here: nobody reads it any more.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                return Ok(exit::SIGNAL.saturating_add(libc::SIGPIPE as u8));
            }
            written => written.context("cannot write what the command prints")?,
        }
    }
}

/// Write it all, also to a terminal that another program has made non-blocking.
fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
            Err(error) => again(error, &*to, PollFlags::OUT)?,
        }
    }
    Ok(())
}

/// Wait until what failed may be tried again, if it failed for that alone.
fn again(error: io::Error, file: impl AsFd, flags: PollFlags) -> io::Result<()> {
    match error.kind() {
        ErrorKind::Interrupted => Ok(()),
        ErrorKind::WouldBlock => {
            rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&file, flags)], None))?;
            Ok(())
        }
        _ => Err(error),
    }
}

/// The `stdin` thread: what goes in, to its end.
fn feed(sender: &Sender) {
    let Ok(mut stdin) = io::stdin().as_fd().try_clone_to_owned().map(File::from) else { return };
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => break,
            // The command has ended: the main thread knows.
            Ok(len) if sender.input(buffer.get(..len).unwrap_or_default()).is_err() => return,
            Ok(_) => {}
            Err(error) => {
                if let Err(error) = again(error, &stdin, PollFlags::IN) {
                    log::info!("standard input ended: {error}");
                    break;
                }
            }
        }
    }
    let _ = sender.input_end();
}

/// The `stdin` thread of a terminal: what is typed, but for the keys that are this program's.
fn take_keys(sender: &Sender) {
    let Ok(mut stdin) = io::stdin().as_fd().try_clone_to_owned().map(File::from) else { return };
    let (give, given) = sync_channel::<Vec<u8>>(TYPED);
    let input = sender.clone();
    let typed = move || {
        let given = given.into_iter().try_for_each(|bytes| input.input(&bytes));
        let _ = given.and_then(|()| input.input_end());
    };
    let leave = |left: Left| LEFT.set(left).is_ok();
    if vmm::named_thread("typed").spawn(typed).is_err() {
        return;
    }
    let (mut escape, mut buffer) = (Escape::default(), vec![0; MAX_FRAME]);
    loop {
        let len = match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => len,
            Err(error) => match again(error, &stdin, PollFlags::IN) {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        for key in escape.keys(buffer.get(..len).unwrap_or_default()) {
            match key {
                // More than can wait is of no use to a guest that takes none.
                Key::Guest(bytes) => _ = give.try_send(bytes),
                Key::Leave => {
                    leave(Left::Ended);
                    return sender.close();
                }
                Key::Detach if leave(Left::Running) => {
                    let sender = sender.clone();
                    let release = move || {
                        // If it cannot be told, it has ended.
                        let _ = sender.control(Control::Release);
                        sender.close();
                    };
                    // Not here: a guest that takes nothing keeps it waiting.
                    if vmm::named_thread("leave").spawn(release).is_err() {
                        return;
                    }
                }
                Key::Detach | Key::PressPower | Key::Help => terminal::note(&format!("\r\nskiff: {HELP}\r")),
            }
        }
    }
}

/// Hand on signals, and the size of the window to a command that has a terminal.
fn forward(signals: Signals, sender: Sender, terminal: bool) -> Result<()> {
    let (tell, told) = sync_channel(WAITING);
    let control = move || {
        for signal in told {
            let control = match signal {
                Signal::End(number) => Some(Control::Signal(number)),
                Signal::Resized => window_size()
                    .filter(|_| terminal)
                    .map(|(rows, columns)| Control::Resize { rows, columns }),
                Signal::EndNow => None,
            };
            // If it cannot be told, it has ended.
            let _ = control.map(|control| sender.control(control));
        }
    };
    vmm::named_thread("control").spawn(control).context("cannot start a thread")?;
    // More than can wait are of no use to a guest that takes none.
    signals.forward(move |signal| _ = tell.try_send(signal)).context("cannot start a thread")
}

/// Rows and columns of the terminal that the user looks at.
fn window_size() -> Option<(u16, u16)> {
    let size = [io::stdout().as_fd(), io::stdin().as_fd(), io::stderr().as_fd()]
        .into_iter()
        .find_map(|fd| rustix::termios::tcgetwinsize(fd).ok())?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_wins_over_the_image() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let image = Defaults {
            env: words("A=1 B=2"),
            user: "www".to_owned(),
            cwd: "/srv".to_owned(),
            ..Defaults::default()
        };
        let wish = Wish { env: words("A=3"), ..Wish::default() }.over(&image);
        assert_eq!(wish.env, ["A=1", "B=2", "A=3"]);
        assert_eq!((wish.user.as_deref(), wish.cwd.as_deref()), (Some("www"), Some("/srv")));
        let root = Wish { user: Some("root".to_owned()), ..Wish::default() };
        assert_eq!(root.over(&image).user.as_deref(), Some("root"));
        assert_eq!(root.over(&Defaults::default()), root);
    }
}
