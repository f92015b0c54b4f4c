//! The process: started with one end of a socket, watched, reaped.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd, ioctl_fionbio};
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use vmm_sys_util::eventfd::EventFd;

use super::words::Words;
use super::{GUEST, HOST, Options, PREFIX, PasstError, ports};

/// The other end of the guest's network, as the guest sees it: the same on every host.
const GATEWAY_MAC: &str = "52:55:0a:00:02:02";
/// The first descriptor that passt takes for its socket.
const FIRST_FD: i32 = 3;
/// The length of a frame that fills a send buffer of the smallest size.
const PROBE: usize = 1500;
/// The type of a frame that means nothing to anybody (IEEE 802, local experimental).
const NO_PROTOCOL: [u8; 2] = [0x88, 0xb5];

/// What is read of its words at once, in pieces of 1 KiB: what fits a pipe.
const PIECES: usize = 64;

/// What `poll` passes over.
const NONE: RawFd = -1;

/// A descriptor to inherit is open in the whole process for a moment. While one passt starts, no other one may.
static STARTING: Mutex<()> = Mutex::new(());

/// How passt is started, again and again.
pub(super) struct Command {
    program: Vec<OsString>,
    arguments: Vec<OsString>,
    mac: [u8; 6],
}

impl Command {
    pub(super) fn new(program: &[&str], options: &Options<'_>) -> Self {
        let mut arguments: Vec<OsString> = ["--foreground", "--quiet"].map(OsString::from).to_vec();
        arguments.extend(["--address", GUEST, "--netmask", PREFIX, "--gateway", HOST].map(OsString::from));
        arguments.extend(["--mac-addr", GATEWAY_MAC, "--mtu"].map(OsString::from));
        arguments.push(options.mtu.to_string().into());
        arguments.extend(ports::arguments(options.ports));
        Self { program: program.iter().map(OsString::from).collect(), arguments, mac: options.mac }
    }

    /// Start it.
    pub(super) fn start(&self) -> Result<Child, PasstError> {
        let (socket, theirs) = UnixStream::pair().map_err(PasstError::Start)?;
        // passt does not take one of the standard streams for its socket.
        let theirs =
            fcntl_dupfd_cloexec(&theirs, FIRST_FD).map_err(|error| PasstError::Start(error.into()))?;
        let mut process = self.spawn(&theirs).map_err(|error| match error.kind() {
            ErrorKind::NotFound => PasstError::Missing,
            _ => PasstError::Start(error),
        })?;
        drop(theirs);
        let stderr = process.stderr.take();
        // From here on it is killed when something fails.
        let mut child =
            Child { process: Process(process), stderr, words: Words::default(), socket, settled: false };
        child.probe(self.mac).map_err(PasstError::Start)?;
        Ok(child)
    }

    fn spawn(&self, socket: &OwnedFd) -> io::Result<std::process::Child> {
        let mut program = self.program.iter();
        let mut command = std::process::Command::new(program.next().ok_or(ErrorKind::NotFound)?);
        command.args(program).args(&self.arguments).arg("--fd").arg(socket.as_raw_fd().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A signal from the keyboard is for the VM.
        command.process_group(0);
        let _alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        // No fork of a process with a guest's memory in it: without a hook of ours, the child is made by posix_spawn.
        // What else this process may start meanwhile could get the descriptor too. Then passt's end would look open when
        // passt is gone, which is why that is seen by the process itself.
        fcntl_setfd(socket, FdFlags::empty())?;
        command.spawn()
    }
}

/// A process that is killed and reaped when it is dropped.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing happens to one that was reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A passt that was started.
pub(super) struct Child {
    process: Process,
    /// `None` when it was closed.
    stderr: Option<ChildStderr>,
    words: Words,
    socket: UnixStream,
    /// It has read its socket.
    settled: bool,
}

/// What became of a passt that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// It reads its socket.
    Ready,
    /// It ended.
    Ended,
    /// It did neither in time.
    TimedOut,
    /// The caller was called away.
    Cancelled,
}

impl Child {
    /// Send a frame that passt will drop, into a send buffer that is full with it: the socket is writable again when passt
    /// has read it, and so has done everything that can fail. passt learns the guest's address from it, by the way.
    fn probe(&mut self, mac: [u8; 6]) -> io::Result<()> {
        self.socket.set_nonblocking(true)?;
        if let Some(stderr) = &self.stderr {
            ioctl_fionbio(stderr, true)?;
        }
        // The kernel makes it the least that is possible; the network's port asks for more.
        sockopt::set_socket_send_buffer_size(&self.socket, 0)?;
        let mut message = [&(PROBE as u32).to_be_bytes()[..], &[0xff; 6], &mac, &NO_PROTOCOL].concat();
        message.resize(size_of::<u32>() + PROBE, 0);
        self.socket.write_all(&message).or_else(|error| match error.kind() {
            // It is gone already: `settle` says so, and what it said.
            ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })
    }

    /// Wait until it works or ends, until `deadline`, or until `cancel` is readable.
    pub(super) fn settle(&mut self, deadline: Instant, cancel: Option<&EventFd>) -> io::Result<Settled> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let woken = self.wait(cancel, Some(left))?;
            if woken.cancelled {
                return Ok(Settled::Cancelled);
            }
            if woken.ended {
                return Ok(Settled::Ended);
            }
            if woken.writable {
                self.settled = true;
                return Ok(Settled::Ready);
            }
            if left.is_zero() {
                return Ok(Settled::TimedOut);
            }
        }
    }

    /// Collect its words until it ends: true. False if `kill` is readable before.
    pub(super) fn watch(&mut self, kill: &EventFd) -> bool {
        loop {
            match self.wait(Some(kill), None) {
                Ok(woken) if woken.cancelled => return false,
                Ok(woken) if woken.ended => return true,
                Ok(_) => {}
                Err(error) => {
                    log::warn!("cannot watch passt: {error}");
                    return true;
                }
            }
        }
    }

    fn wait(&mut self, cancel: Option<&EventFd>, timeout: Option<Duration>) -> io::Result<Woken> {
        let process = pidfd_open(Pid::from_child(&self.process.0), PidfdFlags::empty())?;
        let stderr = self.stderr.as_ref().map_or(NONE, AsRawFd::as_raw_fd);
        let cancel = cancel.map_or(NONE, AsRawFd::as_raw_fd);
        // Once passt works, its socket is the port's: here it is looked at for its end alone, which needs no asking.
        let out = if self.settled { 0 } else { libc::POLLOUT };
        let fds = [
            (process.as_raw_fd(), libc::POLLIN),
            (self.socket.as_raw_fd(), out),
            (stderr, libc::POLLIN),
            (cancel, libc::POLLIN),
        ];
        let [process, socket, stderr, cancel] = poll(fds, timeout)?;
        if stderr != 0 {
            self.listen();
        }
        Ok(Woken {
            ended: process != 0 || socket & (libc::POLLHUP | libc::POLLERR) != 0,
            writable: socket & libc::POLLOUT != 0,
            cancelled: cancel != 0,
        })
    }

    /// Read what it said until now, or some of it: one that never stops is not listened to for ever.
    fn listen(&mut self) {
        let mut piece = [0; 1024];
        for _ in 0..PIECES {
            let Some(stderr) = &mut self.stderr else { return };
            match stderr.read(&mut piece) {
                Ok(count @ 1..) => self.words.push(piece.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => self.stderr = None,
            }
        }
    }

    /// End it if it did not, reap it, and say why it ended, in its own words if it had any.
    pub(super) fn end(mut self) -> String {
        // It may have closed its socket a moment ago and be about to end with a status of its own, but will not be waited for.
        let _ = self.process.0.kill();
        let status = self.process.0.wait();
        self.listen();
        match (self.words.summary(), status) {
            (words, Ok(status)) if words.is_empty() => status.to_string(),
            (words, Err(error)) if words.is_empty() => error.to_string(),
            (words, _) => words,
        }
    }

    /// This end of its socket.
    pub(super) fn socket(&self) -> io::Result<UnixStream> {
        self.socket.try_clone()
    }

    pub(super) fn id(&self) -> u32 {
        self.process.0.id()
    }
}

/// What was waited for and came.
struct Woken {
    ended: bool,
    writable: bool,
    cancelled: bool,
}

/// Wait for one of `fds` (each with the events that are looked for), or for `timeout`. What happened to each: nothing if the
/// time is over, or a signal came.
fn poll<const N: usize>(fds: [(RawFd, i16); N], timeout: Option<Duration>) -> io::Result<[i16; N]> {
    let mut fds = fds.map(|(fd, events)| libc::pollfd { fd, events, revents: 0 });
    // Rounded up: it must not be called again and again in the last millisecond.
    let timeout = timeout.map_or(-1, |time| time.as_micros().div_ceil(1000).try_into().unwrap_or(i32::MAX));
    // SAFETY: `fds` holds N entries and outlives the call.
    if unsafe { libc::poll(fds.as_mut_ptr(), N as libc::nfds_t, timeout) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == ErrorKind::Interrupted { Ok([0; N]) } else { Err(error) };
    }
    Ok(fds.map(|entry| entry.revents))
}

/// Wait for `time`. True if `kill` is readable, at once when it is.
pub(super) fn pause(kill: &EventFd, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match poll([(kill.as_raw_fd(), libc::POLLIN)], Some(left)) {
            Ok([0]) if left.is_zero() => return false,
            Ok([0]) => {}
            // An error cannot happen to one open descriptor. If it does, no busy loop comes of it.
            Ok(_) | Err(_) => return true,
        }
    }
}
