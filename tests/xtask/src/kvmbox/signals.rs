//! The signals that end a box, received through a descriptor by the thread that runs it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

/// Signals that end a box or, for the last one, tell of the terminal's new size.
const WATCHED: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGWINCH];

/// Blocks the watched signals in this thread and receives them. Dropping it lets them through again.
pub struct Signals {
    file: File,
}

impl Signals {
    /// Starts to watch. Other threads of the process must have these signals blocked too to be sure that
    /// they arrive here; a task has no others while it runs a box.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor.
    pub fn watch() -> io::Result<Signals> {
        let set = mask(libc::SIG_BLOCK)?;
        // SAFETY: the set is initialised and read only during the call.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above just made this descriptor, and nothing else has it.
        Ok(Signals { file: unsafe { File::from_raw_fd(fd) } })
    }

    /// Takes the next signal that has arrived, if any.
    pub fn next(&mut self) -> Option<i32> {
        let mut record = [0_u8; size_of::<libc::signalfd_siginfo>()];
        self.file.read_exact(&mut record).ok()?;
        // signalfd(2): the signal's number is the first field.
        let number = record.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes))?;
        i32::try_from(number).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Fails only for a wrong argument, which there is none of.
        let _ = mask(libc::SIG_UNBLOCK);
    }
}

/// Receives the end of children: for the agent.
///
/// # Errors
/// When the kernel refuses a descriptor.
pub fn watch_children() -> io::Result<File> {
    let mut set = empty();
    // SAFETY: the set is initialised; the signal's number is valid.
    unsafe { libc::sigaddset(&mut set, libc::SIGCHLD) };
    apply(libc::SIG_BLOCK, &set)?;
    // SAFETY: the set is initialised and read only during the call.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above just made this descriptor, and nothing else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn mask(how: i32) -> io::Result<libc::sigset_t> {
    let mut set = empty();
    for signal in WATCHED {
        // SAFETY: the set is initialised; the signals' numbers are valid.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    apply(how, &set)?;
    Ok(set)
}

fn empty() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set and does not fail.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn apply(how: i32, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialised and read only during the call; the old one is not asked for.
    match unsafe { libc::pthread_sigmask(how, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
