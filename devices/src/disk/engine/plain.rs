//! The engine that needs nothing of the host but `preadv2` and `pwritev2`: each request is done when it is started.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::files::Files;
use super::transfer::{Step, Transfer};
use super::{Disk, Done, Engine, Events, Io, Sleep, Wake};

/// How many requests are done before the caller is made to look at their results.
const BATCH: usize = 32;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Plain<T> {
    files: Files,
    events: Events,
    ended: Vec<Done<T>>,
}

impl<T> Plain<T> {
    pub(super) fn new(disk: Arc<Disk>, events: Events) -> Self {
        Self { files: Files::new(disk), events, ended: Vec::new() }
    }
}

impl<T> Engine<T> for Plain<T> {
    fn start(&mut self, token: T, io: Io) {
        let result = run(&self.files, Transfer::new(io));
        self.ended.push(Done { token, result });
    }

    fn is_full(&self) -> bool {
        self.ended.len() >= BATCH
    }

    fn in_flight(&self) -> usize {
        self.ended.len()
    }

    fn turn(&mut self, sleep: Sleep, done: &mut Vec<Done<T>>) -> io::Result<Wake> {
        let sleep = if self.ended.is_empty() { sleep } else { Sleep::No };
        done.append(&mut self.ended);
        poll(&self.events, sleep)
    }

    fn drain(&mut self, done: &mut Vec<Done<T>>) {
        done.append(&mut self.ended);
    }
}

fn run(files: &Files, mut transfer: Transfer) -> io::Result<()> {
    let mut last = None;
    loop {
        let result = match transfer.next(files, last.take()) {
            Step::Finished(result) => return result,
            Step::Read { file, offset } => read(files.fd(file), &transfer, offset),
            Step::Write { file, offset, durable } => write(files.fd(file), &transfer, offset, durable),
            Step::Sync { file } => sync(files.fd(file)),
            Step::Fallocate { extent, .. } => files.raw().map_or(Ok(()), |raw| raw.erase(extent)).map(|()| 0),
        };
        last = Some(result);
    }
}

fn read(fd: RawFd, transfer: &Transfer, offset: u64) -> io::Result<usize> {
    let (iovecs, count, offset) = arguments(transfer, offset)?;
    // SAFETY: `transfer` keeps what its iovecs point at mapped and outlives the call, and nothing in this
    // process holds a reference to that memory.
    cvt(unsafe { libc::preadv(fd, iovecs, count, offset) })
}

fn write(fd: RawFd, transfer: &Transfer, offset: u64, durable: bool) -> io::Result<usize> {
    let (iovecs, count, offset) = arguments(transfer, offset)?;
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    // SAFETY: as for `read`; the kernel only reads from the iovecs.
    cvt(unsafe { libc::pwritev2(fd, iovecs, count, offset, flags) })
}

fn sync(fd: RawFd) -> io::Result<usize> {
    // SAFETY: the call takes a number and touches no memory.
    cvt(unsafe { libc::fdatasync(fd) } as isize)
}

fn arguments(transfer: &Transfer, offset: u64) -> io::Result<(*const libc::iovec, libc::c_int, libc::off_t)> {
    let iovecs = transfer.iovecs();
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // At most IOV_MAX.
    Ok((iovecs.as_ptr(), iovecs.len() as libc::c_int, offset))
}

fn cvt(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn poll(events: &Events, sleep: Sleep) -> io::Result<Wake> {
    let entry = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut fds = [entry(events.kick.as_raw_fd()), entry(events.kill.as_raw_fd())];
    let timeout = match sleep {
        Sleep::No => Some(timespec(Duration::ZERO)),
        Sleep::For(time) => Some(timespec(time)),
        Sleep::Forever => None,
    };
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `fds` holds two entries; they and the timeout, if there is one, outlive the call.
    if unsafe { libc::ppoll(fds.as_mut_ptr(), 2, timeout, std::ptr::null()) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(Wake::default()) } else { Err(error) };
    }
    let [kick, kill] = fds.map(|entry| entry.revents != 0);
    if kick {
        // Down to zero, so that the next ring is seen. It was readable, and nobody else reads it.
        let _ = events.kick.read();
    }
    Ok(Wake { kick, kill })
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
