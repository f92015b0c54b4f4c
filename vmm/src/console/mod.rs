//! The host's side of the guest's character devices: where output goes, where input comes from, and the last lines.
//!
//! A [`Console`] lives as long as the VM, and so does its [`Hub`], to which the devices print whose stream is `stdio`. The
//! devices are made anew at each reboot of the guest.

mod hub;
mod logfile;
mod output;
mod queries;
mod ring;
mod send;
mod tail;
mod viewers;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

pub(crate) use hub::Hub;
pub(crate) use output::{Output, Pace};
pub use queries::without_queries;
pub(crate) use viewers::{Seen, Viewer};

use output::Target;
use send::Cut;
use tail::Tail;

use crate::spec::Stream;

/// A stream cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A file cannot be written.
    #[error("cannot write the guest's output to {path}: check the path and its permissions")]
    File {
        /// As it was given.
        path: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
    /// A named pipe has no reader.
    #[error("nobody reads {path}, to which the guest's output goes: start its reader first")]
    NoReader {
        /// As it was given.
        path: String,
    },
    /// The host has no more file descriptors.
    #[error("cannot set up the guest's console")]
    Setup(#[source] io::Error),
}

/// Where typed bytes go: a device that has input.
pub(crate) trait InputPort: Send + Sync {
    /// Hand over as much of `bytes` as there is room for; returns how much that was.
    fn push(&self, bytes: &[u8]) -> usize;
    /// Readable when there is room again for what was not taken.
    fn room(&self) -> &EventFd;
}

/// Shared by the devices that print, the thread that types and the `vmm` thread.
#[derive(Default)]
pub(crate) struct Console {
    hub: Arc<Hub>,
    /// A device prints to the hub, or is typed at.
    has_stdio: bool,
    tail: Arc<Mutex<Tail>>,
    port: Mutex<Option<Arc<dyn InputPort>>>,
    /// Of the outputs of this boot.
    cut: Mutex<Cut>,
    ended: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Console {
    /// A console whose `stdio` is `hub`; `has_stdio` says whether any stream leads there.
    pub(crate) fn new(hub: Hub, has_stdio: bool) -> Self {
        Self { hub: Arc::new(hub), has_stdio, ..Self::default() }
    }

    /// Where `stdio` leads.
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Whether a device's stream leads to the hub.
    pub(crate) fn has_stdio(&self) -> bool {
        self.has_stdio
    }

    /// An output to `sink` for a device that hands over its bytes as `pace` says.
    pub(crate) fn output(&self, sink: &Sink, pace: Pace) -> Result<Output, StreamError> {
        let target = match sink {
            Sink::Null => Target::Nowhere,
            Sink::Stdio => Target::Hub { hub: Arc::clone(&self.hub), waits: true },
            Sink::File(file) => Target::File(file.try_clone().map_err(StreamError::Setup)?),
        };
        let cut = lock(&self.cut).clone();
        Ok(Output::new(target, cut, pace, Arc::clone(&self.tail)))
    }

    /// Let no device wait for whoever reads its output: what is not taken at once is dropped. Never blocks.
    pub(crate) fn cut(&self) {
        lock(&self.cut).cut();
    }

    /// The devices of this boot are gone, and so is whatever still writes for them. Those made next are waited for again.
    pub(crate) fn next_boot(&self) {
        std::mem::take(&mut *lock(&self.cut)).cut();
    }

    /// From now on, typed bytes go to `port`.
    pub(crate) fn connect(&self, port: Option<Arc<dyn InputPort>>) {
        *lock(&self.port) = port;
    }

    /// Type `bytes`: blocks until a device has taken them all, or the VM has ended. Where no device takes
    /// input, they are dropped.
    pub(crate) fn input(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.ended.load(Ordering::SeqCst) {
            let port = lock(&self.port).clone();
            let Some(port) = port else { return };
            let taken = port.push(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
            if !bytes.is_empty() {
                wait_for_room(&*port);
            }
        }
    }

    /// The VM has ended: whoever types need not wait any longer, and whatever still writes is to stop.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.cut();
    }

    /// The last lines that the guest printed, oldest first.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        lock(&self.tail).lines()
    }
}

/// A limit on the wait, since a reboot replaces the device that would have signalled, and a VM may end.
fn wait_for_room(port: &dyn InputPort) {
    // SAFETY: the descriptor is the port's own, which is borrowed for longer than this.
    let room = unsafe { BorrowedFd::borrow_raw(port.room().as_raw_fd()) };
    let mut fds = [PollFd::new(&room, PollFlags::IN)];
    let limit = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let _ = poll(&mut fds, Some(&limit));
    let _ = port.room().read();
}

/// An opened [`Stream`], kept over reboots.
pub(crate) enum Sink {
    Null,
    /// The console's hub.
    Stdio,
    File(File),
}

impl Sink {
    pub(crate) fn open(stream: &Stream) -> Result<Self, StreamError> {
        match stream {
            Stream::Null => Ok(Self::Null),
            Stream::Stdio => Ok(Self::Stdio),
            Stream::File(path) => {
                // A fifo without a reader is refused; waiting for one could last for ever.
                let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
                let opened = OpenOptions::new().append(true).create(true).custom_flags(flags).open(path);
                let path = || path.display().to_string();
                opened.map(Self::File).map_err(|source| match source.raw_os_error() {
                    Some(libc::ENXIO) => StreamError::NoReader { path: path() },
                    _ => StreamError::File { path: path(), source },
                })
            }
        }
    }
}

/// A terminal or pipe opened anew without blocking, where the host allows it: whoever else has `file` is not to notice
/// that it does not block. Anything else as it is; its writes are small enough to block for moments only.
fn own(file: File) -> File {
    let fifo = file.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
    if !fifo && !file.is_terminal() {
        return file;
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(flags).open(path).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes two bytes at a time, and has no more to say about room than it must.
    struct Slow(Mutex<Vec<u8>>, EventFd, usize);

    impl Slow {
        fn new(most: usize) -> Arc<Self> {
            let room = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
            Arc::new(Self(Mutex::default(), room, most))
        }
    }

    impl InputPort for Slow {
        fn push(&self, bytes: &[u8]) -> usize {
            let taken = bytes.len().min(self.2);
            self.0.lock().unwrap().extend(&bytes[..taken]);
            self.1.write(1).unwrap();
            taken
        }

        fn room(&self) -> &EventFd {
            &self.1
        }
    }

    #[test]
    fn input_waits_for_a_slow_device() {
        let console = Console::default();
        let port = Slow::new(2);
        console.connect(Some(port.clone()));
        console.input(b"hello");
        assert_eq!(*port.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn input_to_no_device_or_an_ended_vm_is_dropped() {
        let console = Console::default();
        console.input(b"nobody");
        console.connect(Some(Slow::new(0)));
        console.end();
        console.input(b"too late");
    }
}
