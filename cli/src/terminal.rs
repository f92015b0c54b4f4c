//! The user's terminal while the guest has it: raw, and given back whatever happens.
//!
//! There is one terminal per process, so what it was like stands in a static that the panic hook and the signal thread
//! reach as well. [`restore`] may be called from any thread, any number of times.
//!
//! ```text
//!         enter                     restore (end, error, panic, signal)
//! cooked ───────► raw (SAVED set) ───────────────────────────────────────► cooked
//!                   ▲    │ suspend (SIGTSTP): cooked, SAVED kept
//!                   └────┘ resume (SIGCONT): raw again
//! ```

use std::fs::File;
use std::io::{IsTerminal, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Undoes what a guest's programs may have done to the screen: colours, hidden cursor, alternate screen, mouse and
/// paste reports, application keys, no line wrap. None of it moves the cursor.
const RESET_SCREEN: &[u8] =
    b"\x1b[0m\x1b[?25h\x1b[?1047l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[?7h";

/// The terminal as it was, while it is raw. Nothing is called with the lock held but the terminal's own ioctls.
static SAVED: Mutex<Option<Saved>> = Mutex::new(None);

struct Saved {
    terminal: OwnedFd,
    cooked: Termios,
}

/// The guest has the terminal as long as this lives.
pub struct Raw(());

impl Raw {
    /// Give `terminal` to the guest, if it is one. `None` if not.
    pub fn enter(terminal: impl AsFd) -> std::io::Result<Option<Self>> {
        let terminal = terminal.as_fd();
        if !terminal.is_terminal() {
            return Ok(None);
        }
        let terminal = terminal.try_clone_to_owned()?;
        let cooked = tcgetattr(&terminal)?;
        make_raw(&terminal, &cooked)?;
        *saved() = Some(Saved { terminal, cooked });
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Make the terminal what it was, if it is raw.
pub fn restore() {
    if let Some(saved) = saved().take() {
        saved.cook();
    }
}

/// Make the terminal what it was, to be stopped; [`resume`] undoes it.
pub fn suspend() {
    if let Some(saved) = saved().as_ref() {
        saved.cook();
    }
}

/// Make the terminal raw again, if it was before it was suspended.
pub fn resume() {
    if let Some(saved) = saved().as_ref()
        && in_foreground(&saved.terminal)
    {
        // A terminal that is gone meanwhile is noticed by whoever reads it.
        let _ = make_raw(&saved.terminal, &saved.cooked);
    }
}

/// Restore the terminal before a panic is printed, so that it can be read and the shell be used after it.
pub fn restore_on_panic() {
    let next = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The panicking thread may itself hold the lock; then its guard restores.
        let saved = match SAVED.try_lock() {
            Ok(mut saved) => saved.take(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().take(),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(saved) = saved {
            saved.cook();
        }
        next(panic);
    }));
}

/// Say `line` to the user, dimly, on whatever state stderr's terminal is in.
pub fn note(line: &str) {
    let mut stderr = std::io::stderr().lock();
    let text = if stderr.is_terminal() { format!("\x1b[2m{line}\x1b[0m\r\n") } else { format!("{line}\n") };
    // In one piece, for the guest may be writing to the same terminal.
    let _ = stderr.write_all(text.as_bytes());
}

fn saved() -> MutexGuard<'static, Option<Saved>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Saved {
    fn cook(&self) {
        // After a change of the foreground job the terminal is somebody else's, who has set it to their liking.
        if !in_foreground(&self.terminal) {
            return;
        }
        // Both fail only when the terminal is gone, and then there is nothing to restore.
        if let Ok(file) = self.terminal.try_clone() {
            let _ = File::from(file).write_all(RESET_SCREEN);
        }
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.cooked);
    }
}

/// Whether this job may use `terminal`. A terminal that controls no session is anyone's.
fn in_foreground(terminal: &OwnedFd) -> bool {
    rustix::termios::tcgetpgrp(terminal).map_or(true, |group| group == rustix::process::getpgrp())
}

fn make_raw(terminal: &OwnedFd, cooked: &Termios) -> std::io::Result<()> {
    let mut raw = cooked.clone();
    raw.make_raw();
    Ok(tcsetattr(terminal, OptionalActions::Drain, &raw)?)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;

    use super::*;

    /// Both ends of a new terminal: the user's and the program's.
    fn pty() -> (File, File) {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let program = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        (user.into(), program)
    }

    fn is_raw(terminal: &File) -> bool {
        !tcgetattr(terminal).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// One test, for there is one terminal per process.
    #[test]
    fn the_terminal_is_given_back() {
        let (mut user, program) = pty();
        let raw = Raw::enter(&program).unwrap();
        assert!(raw.is_some() && is_raw(&program));

        suspend();
        assert!(!is_raw(&program));
        resume();
        assert!(is_raw(&program));

        drop(raw);
        assert!(!is_raw(&program));
        let mut screen = vec![0; RESET_SCREEN.len()];
        user.read_exact(&mut screen).unwrap();
        assert_eq!(screen, RESET_SCREEN);
        resume();
        assert!(!is_raw(&program), "what was given back is not taken again");

        restore_on_panic();
        let raw = Raw::enter(&program).unwrap();
        assert!(is_raw(&program));
        let panicked = std::thread::spawn(|| panic!("on purpose")).join();
        assert!(panicked.is_err() && !is_raw(&program), "a panic of another thread restores it, too");
        drop(raw);
        let _ = std::panic::take_hook();

        assert!(Raw::enter(std::io::pipe().unwrap().0).unwrap().is_none(), "a pipe is no terminal");
    }
}
