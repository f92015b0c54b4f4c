//! Signals from outside, taken by a thread of their own.
//!
//! [`Signals::block`] keeps them from every thread that is started after it, so no vCPU is interrupted and no
//! default action ends the program with the terminal raw. Then [`Signals::handle`] starts the `signals` thread.

use std::io;

/// What end the program unless something better is done about them.
const DEADLY: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT];
const OTHERS: [libc::c_int; 3] = [libc::SIGTSTP, libc::SIGCONT, libc::SIGWINCH];
/// What a command elsewhere may want to hear, beside those.
const WORDS: [libc::c_int; 3] = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM];
/// So many deadly signals end the program although the command elsewhere does not end.
const INSISTENT: u32 = 3;

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End; or, to a command elsewhere, any signal.
    End(i32),
    /// End, for the second time: the program does when this has been told.
    EndNow,
    /// The terminal has another size.
    Resized,
}

/// The signals that are blocked.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Block the signals for this thread and those it starts.
    pub fn block() -> io::Result<Self> {
        Self::block_these(DEADLY.into_iter().chain(OTHERS))
    }

    /// Block these and those that can be handed on to a command elsewhere, likewise.
    pub fn block_to_forward() -> io::Result<Self> {
        Self::block_these(DEADLY.into_iter().chain(OTHERS).chain(WORDS))
    }

    fn block_these(signals: impl Iterator<Item = libc::c_int>) -> io::Result<Self> {
        // SAFETY: an all-zero sigset_t is a valid object for sigemptyset to initialise.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a live sigset_t.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in signals {
            // SAFETY: `set` is initialised and `signal` is the number of a signal.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: `set` is initialised; the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
            0 => Ok(Self(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Start the thread of a process that has no terminal: `end` is told of each signal that asks it to end.
    pub fn handle_all(self, end: impl Fn(i32) + Send + 'static) -> io::Result<()> {
        vmm::named_thread("signals").spawn(move || {
            loop {
                match self.wait() {
                    // There is no terminal that could be closed: somebody's session is over, and the VM is not.
                    libc::SIGHUP => {}
                    number if DEADLY.contains(&number) => end(number),
                    _ => {}
                }
            }
        })?;
        Ok(())
    }

    /// Start the thread of a process that has a terminal. It stops and continues the program with the terminal in order, and tells `act` the rest,
    /// which must not block. A second signal to end does so at once.
    pub fn handle(self, act: impl Fn(Signal) + Send + 'static) -> io::Result<()> {
        let mut ending = false;
        self.beside_a_terminal(move |signal| {
            let Signal::End(_) = signal else {
                act(signal);
                return false;
            };
            let again = std::mem::replace(&mut ending, true);
            act(if again { Signal::EndNow } else { signal });
            again
        })
    }

    /// Start the thread of a process that stands for a command elsewhere. It stops and continues the program with the terminal in order, and
    /// tells `act` the rest, which must not block. Who insists ends the program.
    pub fn forward(self, act: impl Fn(Signal) + Send + 'static) -> io::Result<()> {
        let mut deadly = 0_u32;
        self.beside_a_terminal(move |signal| {
            if let Signal::End(number) = signal {
                deadly = deadly.saturating_add(u32::from(DEADLY.contains(&number)));
            }
            let insists = deadly >= INSISTENT;
            if !insists {
                act(signal);
            }
            insists
        })
    }

    /// Start the thread. The program ends with the terminal in order by a signal of which `act` says that it is to.
    fn beside_a_terminal(self, mut act: impl FnMut(Signal) -> bool + Send + 'static) -> io::Result<()> {
        vmm::named_thread("signals").spawn(move || {
            loop {
                match self.wait() {
                    libc::SIGTSTP => stop(),
                    libc::SIGCONT => {
                        crate::terminal::resume();
                        act(Signal::Resized);
                    }
                    libc::SIGWINCH => _ = act(Signal::Resized),
                    number => {
                        if act(Signal::End(number)) {
                            crate::terminal::restore();
                            std::process::exit(i32::from(crate::exit::SIGNAL).saturating_add(number));
                        }
                    }
                }
            }
        })?;
        Ok(())
    }

    fn wait(&self) -> libc::c_int {
        let mut signal = 0;
        // SAFETY: both point to live values, and the set is initialised. Sigwait fails only for invalid sets.
        unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
        signal
    }
}

/// Stop the whole program as SIGTSTP would have, with the terminal as the shell left it.
fn stop() {
    crate::terminal::suspend();
    // SIGTSTP itself is blocked; SIGSTOP cannot be.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
}
