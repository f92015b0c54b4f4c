//! [`Signals`]: those that ask for an end, for who waits for guests. The first asks, the second ends this process.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Which they are.
const DEADLY: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// The signals that ask for an end, as a file. When it goes, they do again what they did before.
pub struct Signals {
    /// To be polled.
    pub file: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// From now on they come by this.
    pub fn take() -> Result<Self> {
        // SAFETY: an all-zero sigset_t is a valid object for sigemptyset to initialise.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a live sigset_t.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in DEADLY {
            // SAFETY: `set` is initialised and `signal` is the number of a signal.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: an all-zero sigset_t is a valid object to be written to.
        let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: both are live sigset_t, and `set` is initialised.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) };
        if blocked != 0 {
            bail!(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: `set` is initialised, and -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if fd < 0 {
            bail!(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(Self { file: unsafe { OwnedFd::from_raw_fd(fd) }, before })
    }

    /// Whether one comes within `limit`.
    pub fn come(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        let limit = Timespec::try_from(limit).unwrap_or_default();
        poll(&mut fds, Some(&limit)).is_ok_and(|count| count > 0)
    }

    /// Take the next that has come. The first is noted; at the second this process ends, after `last`.
    pub fn next(&self, first: &mut Option<u8>, last: impl FnOnce()) -> io::Result<()> {
        // signalfd(2): the number is the first field of 128 bytes.
        let mut info = [0_u8; 128];
        rustix::io::read(&self.file, &mut info)?;
        let number = info.first_chunk::<4>().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let number = u8::try_from(number).unwrap_or(libc::SIGTERM as u8);
        if first.is_some() {
            last();
            std::process::exit(crate::exit::SIGNAL.saturating_add(number).into());
        }
        *first = Some(number);
        Ok(())
    }

    /// In a process that was split off: they do again what they did before.
    pub fn leave(&self) {
        // SAFETY: `before` is the mask that this thread had; nobody asks for the one that it has.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_signal_is_kept_and_the_mask_comes_back() {
        let mask = || {
            // SAFETY: an all-zero sigset_t is a valid object to be written to.
            let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
            // SAFETY: no mask is set, and `set` is a live sigset_t.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set) };
            // SAFETY: `set` was written to just now.
            unsafe { libc::sigismember(&raw const set, libc::SIGTERM) }
        };
        let before = mask();
        let signals = Signals::take().unwrap();
        assert_eq!(mask(), 1);
        // SAFETY: this thread lives, and has blocked the signal.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
        assert!(signals.come(Duration::from_secs(10)));
        let mut first = None;
        signals.next(&mut first, || panic!("it is the first")).unwrap();
        assert_eq!(first, Some(15));
        drop(signals);
        assert_eq!(mask(), before);
    }
}
