//! Connections: vsock in a guest, Unix sockets in tests. Both are plain byte streams.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::sys;

/// The context ID of the host, the only peer that is listened to.
const HOST: u32 = 2;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// An end of connections.
#[derive(Clone, Debug)]
pub enum Address {
    /// A port: the guest's own to listen at, the host's to connect to.
    Vsock(u32),
    /// A path, for tests.
    Unix(PathBuf),
}

impl Address {
    /// `unix:PATH` or `vsock:PORT`.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("unix", path) if !path.is_empty() => Some(Self::Unix(path.into())),
            ("vsock", port) => port.parse().ok().map(Self::Vsock),
            _ => None,
        }
    }

    /// Connect to it: on the host, if this is a port.
    pub fn connect(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(path) => Ok(Stream { fd: UnixStream::connect(path)?.into() }),
            Self::Vsock(port) => {
                let fd = vsock()?;
                let address = vsock_address(HOST, *port);
                // SAFETY: the pointer and length are of one address.
                let result = unsafe {
                    libc::connect(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
                };
                sys::check(result)?;
                Ok(Stream { fd })
            }
        }
    }

    /// Listen at it.
    pub fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Unix(path) => {
                let _ = fs::remove_file(path);
                Ok(Listener { fd: UnixListener::bind(path)?.into(), vsock: false })
            }
            Self::Vsock(port) => {
                let fd = vsock()?;
                let address = vsock_address(libc::VMADDR_CID_ANY, *port);
                // SAFETY: the pointer and length are of one address.
                let result = unsafe {
                    libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
                };
                sys::check(result)?;
                // SAFETY: touches no memory.
                sys::check(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) })?;
                Ok(Listener { fd, vsock: true })
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock(port) => write!(f, "vsock:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn vsock() -> io::Result<OwnedFd> {
    // SAFETY: touches no memory.
    sys::owned(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

/// Where connections arrive.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    vsock: bool,
}

impl Listener {
    /// The next connection. `None` if it was not the host's: it is closed.
    pub fn accept(&self) -> io::Result<Option<Stream>> {
        let mut address = vsock_address(0, 0);
        let mut len = size_of_val(&address) as libc::socklen_t;
        let (to, to_len) = match self.vsock {
            true => ((&raw mut address).cast(), &raw mut len),
            false => (std::ptr::null_mut(), std::ptr::null_mut()),
        };
        // SAFETY: both are null, or the address and its length, which outlive the call.
        let fd = sys::owned(unsafe { libc::accept4(self.fd.as_raw_fd(), to, to_len, libc::SOCK_CLOEXEC) })?;
        Ok((!self.vsock || address.svm_cid == HOST).then_some(Stream { fd }))
    }
}

/// A connection. Reads and writes wait, unless [`sys::set_blocking`] says otherwise.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
}

impl Stream {
    /// Give up reads, or writes, that wait longer than this; `None` waits for ever.
    pub fn set_timeout(&self, direction: Direction, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.unwrap_or_default();
        let limit = libc::timeval {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_usec: i64::from(limit.subsec_micros()),
        };
        let option = match direction {
            Direction::Read => libc::SO_RCVTIMEO,
            Direction::Write => libc::SO_SNDTIMEO,
        };
        // SAFETY: the pointer and length are of one timeval.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const limit).cast(),
                size_of_val(&limit) as u32,
            )
        };
        sys::check(result).map(drop)
    }

    /// Nothing more is said; wait until the other side has left too, so that it has read all. Not for longer than it says nothing
    /// for `limit`.
    pub fn finish(mut self, limit: Duration) {
        let _ = sys::set_blocking(&self, true);
        let _ = self.set_timeout(Direction::Read, Some(limit));
        // SAFETY: touches no memory.
        let _ = unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_WR) };
        let since = Instant::now();
        let mut rest = [0; 16384];
        while since.elapsed() < limit {
            match self.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// Which way.
#[derive(Clone, Copy, Debug)]
pub enum Direction {
    Read,
    Write,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, into)?)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Not `write`: it would raise SIGPIPE in a process that does not ignore it.
        Ok(rustix::net::send(&self.fd, bytes, rustix::net::SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
