//! Stream sockets of AF_VSOCK, which the standard library does not have.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The host's context ID.
pub const HOST: u32 = 2;

/// A connected socket.
#[derive(Debug)]
pub struct Stream(File);

/// A listening socket.
#[derive(Debug)]
pub struct Listener(OwnedFd);

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    own(fd)
}

fn own(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeroes are a valid address; every field of meaning is set below.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Listener {
    /// Listen on a port of this machine.
    pub fn bind(port: u32) -> io::Result<Self> {
        let socket = socket()?;
        let address = address(libc::VMADDR_CID_ANY, port);
        // SAFETY: `address` is a whole sockaddr_vm that outlives the call.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) })?;
        // SAFETY: no memory is passed.
        check(unsafe { libc::listen(socket.as_raw_fd(), 256) })?;
        Ok(Self(socket))
    }

    /// The next connection.
    pub fn accept(&self) -> io::Result<Stream> {
        // SAFETY: the peer's address is not asked for.
        let fd = unsafe {
            libc::accept4(self.0.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        };
        Ok(Stream(own(fd)?.into()))
    }
}

impl Stream {
    /// Connect to a port.
    pub fn connect(cid: u32, port: u32) -> io::Result<Self> {
        let socket = socket()?;
        let address = address(cid, port);
        // SAFETY: `address` is a whole sockaddr_vm that outlives the call.
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LENGTH) })?;
        Ok(Self(socket.into()))
    }

    /// For another thread.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Nothing more will be written.
    pub fn end_writing(&self) -> io::Result<()> {
        // SAFETY: no memory is passed.
        check(unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_WR) })
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
