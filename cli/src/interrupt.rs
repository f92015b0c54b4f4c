//! [`Interrupt`]: a signal that ends the program first takes away what it has half done.
//!
//! The handler only says which signal came; the `interrupt` thread does the rest, and then lets the signal have its way. Whoever has an
//! [`Interrupt`] drops it before a VM's process is split off: with it the thread is gone.

use std::fs::File;
use std::io::{self, Read as _};
use std::mem;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;

use rustix::pipe::{PipeFlags, pipe_with};

/// What ends the program.
const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
/// Said in a signal's place: nobody is interested any more.
const END: u8 = 0;

/// Where the handler says which signal came; -1: nowhere.
static TO: AtomicI32 = AtomicI32::new(-1);

/// As long as this lives, it is so. There is one at a time.
#[derive(Debug)]
pub struct Interrupt {
    thread: Option<JoinHandle<()>>,
    to: OwnedFd,
    /// The signals that have the handler.
    taken: Vec<libc::c_int>,
}

impl Interrupt {
    /// Begin; `None` if that cannot be had, or somebody has it: the program then ends as it would without.
    pub fn new(clean_up: fn()) -> Option<Self> {
        let (from, to) = pipe_with(PipeFlags::CLOEXEC).ok()?;
        TO.compare_exchange(-1, to.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst).ok()?;
        let thread = vmm::named_thread("interrupt").spawn(move || listen(File::from(from), clean_up));
        let Ok(thread) = thread else {
            TO.store(-1, Ordering::SeqCst);
            return None;
        };
        let taken =
            SIGNALS.into_iter().filter(|signal| is_default(*signal) && set(*signal, handler())).collect();
        Some(Self { thread: Some(thread), to, taken })
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        for signal in &self.taken {
            set(*signal, libc::SIG_DFL);
        }
        TO.store(-1, Ordering::SeqCst);
        say(self.to.as_raw_fd(), END);
        if let Some(thread) = self.thread.take() {
            // If a signal has come, the program ends in there.
            let _ = thread.join();
        }
    }
}

fn listen(mut from: File, clean_up: fn()) {
    let mut signal = [END];
    loop {
        match from.read(&mut signal) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    let [signal] = signal;
    if signal == END {
        return;
    }
    crate::progress::wipe();
    clean_up();
    let signal = libc::c_int::from(signal);
    set(signal, libc::SIG_DFL);
    // SAFETY: it ends this process, or does nothing.
    unsafe { libc::kill(libc::getpid(), signal) };
    // It comes to any thread of the process, a moment later at most.
    loop {
        std::thread::park();
    }
}

/// Only what a handler may call: see signal-safety(7).
extern "C" fn handle(signal: libc::c_int) {
    say(TO.load(Ordering::SeqCst), u8::try_from(signal).unwrap_or(END));
}

fn handler() -> libc::sighandler_t {
    handle as extern "C" fn(libc::c_int) as libc::sighandler_t
}

fn say(to: RawFd, what: u8) {
    // SAFETY: it reads one byte of a live value. A descriptor that is none is refused.
    unsafe { libc::write(to, ptr::from_ref(&what).cast(), 1) };
}

/// Whether a signal does what it does by itself: one that is ignored (nohup) stays so.
fn is_default(signal: libc::c_int) -> bool {
    // SAFETY: an all-zero sigaction is a valid object to be written.
    let mut old: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: nothing is set, and `old` is live.
    unsafe { libc::sigaction(signal, ptr::null(), &raw mut old) == 0 && old.sa_sigaction == libc::SIG_DFL }
}

fn set(signal: libc::c_int, action: libc::sighandler_t) -> bool {
    // SAFETY: an all-zero sigaction is a valid one, without flags and with an empty mask.
    let mut new: libc::sigaction = unsafe { mem::zeroed() };
    new.sa_sigaction = action;
    new.sa_flags = libc::SA_RESTART;
    // SAFETY: `new` is initialised, and the action is the default one or a function that is safe in a handler.
    unsafe { libc::sigaction(signal, &raw const new, ptr::null_mut()) == 0 }
}

/// For tests that have one: they run side by side.
#[cfg(test)]
pub static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_taken_for_as_long_as_it_lives() {
        let _alone = ALONE.lock();
        let interrupt = Interrupt::new(|| ()).unwrap();
        assert!(Interrupt::new(|| ()).is_none(), "one at a time");
        assert!(!is_default(libc::SIGTERM));
        drop(interrupt);
        assert!(is_default(libc::SIGTERM));
        assert!(Interrupt::new(|| ()).is_some());
    }
}
