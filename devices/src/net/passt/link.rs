//! The connection to passt, for the thread that has its port.
//!
//! Each frame is one message to the kernel, and whole: passt up to 2023 loses track of the stream when a frame reaches it in
//! more than two pieces, and waits for the second without looking at anything else. Up to [`ONE_PIECE`] bytes the kernel
//! takes all or nothing by itself; for more, its send buffer is asked for room first.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::net::sockopt;

use super::received::Received;
use super::{MAX_FRAME, MIN_FRAME, PREFIX};
use crate::net::HEADER;
use crate::net::frame::Frame;

/// What is asked for as the send buffer, in bytes. The host may allow less.
const SEND_BUFFER: usize = 512 << 10;
/// A message up to this many bytes is one piece to the kernel (UNIX_SKB_FRAGS_SZ, since Linux 3.14).
const ONE_PIECE: usize = 32 << 10;
/// What the longest message takes of the send buffer, in bytes, the kernel's own share counted in.
const LARGEST: usize = 96 << 10;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Link {
    socket: Arc<UnixStream>,
    /// The size of the socket's send buffer in bytes.
    send_buffer: usize,
    received: Received,
    /// The end of a frame whose beginning was sent. Empty, as long as the kernel does what the module's documentation says.
    unsent: Vec<u8>,
}

impl Link {
    pub(super) fn new(socket: Arc<UnixStream>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
        let send_buffer = sockopt::socket_send_buffer_size(&socket)?;
        Ok(Self { socket, send_buffer, received: Received::new(), unsent: Vec::new() })
    }

    /// [`crate::net::Port::send`], its header checked.
    pub(super) fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.try_send(frame).map_err(meaning)
    }

    fn try_send(&mut self, frame: &Frame) -> io::Result<()> {
        self.finish()?;
        let len = usize::try_from(frame.total()).ok().filter(|len| (MIN_FRAME..=MAX_FRAME).contains(len));
        let len = len.ok_or_else(|| {
            io::Error::new(ErrorKind::InvalidInput, "a frame of a length that passt does not take")
        })?;
        if PREFIX + len > ONE_PIECE && !self.has_room()? {
            return Err(ErrorKind::WouldBlock.into());
        }
        let sent = self.send_message(frame, len)?;
        if sent < PREFIX + len {
            self.keep(frame, len, sent)?;
        }
        Ok(())
    }

    /// Send what is left of the frame before.
    fn finish(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let iovec = libc::iovec { iov_base: self.unsent.as_mut_ptr().cast(), iov_len: self.unsent.len() };
            // SAFETY: it points to `unsent`, which stays as it is during the call.
            let sent = unsafe { send_message(&self.socket, &mut [iovec]) }?;
            self.unsent.drain(..sent.min(self.unsent.len()));
        }
        Ok(())
    }

    /// The kernel took `sent` bytes of this message. passt waits for the others: they must be the next it gets.
    fn keep(&mut self, frame: &Frame, len: usize, sent: usize) -> io::Result<()> {
        self.unsent = message(frame, len)?;
        self.unsent.drain(..sent.min(self.unsent.len()));
        match self.finish() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    /// Whether the longest message would be taken whole. It is wherever the kernel calls the socket writable (a quarter of
    /// the buffer is in use), so that whoever waits for that does not wait for nothing.
    fn has_room(&self) -> io::Result<bool> {
        let mut queued: libc::c_int = 0;
        // SAFETY: for a socket this call (SIOCOUTQ) writes one int, to where it is given one.
        if unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let queued = usize::try_from(queued).unwrap_or(0);
        Ok(queued <= self.send_buffer / 4 || queued.saturating_add(LARGEST) <= self.send_buffer)
    }

    /// Give the kernel the frame after its length, from where it lies in guest memory. Says how many bytes it took.
    fn send_message(&self, frame: &Frame, len: usize) -> io::Result<usize> {
        // At most MAX_FRAME, so it fits.
        let mut prefix = (len as u32).to_be_bytes();
        // A frame has fewer pieces than one call takes.
        let mut iovecs = Vec::with_capacity(1 + frame.iovecs().len());
        iovecs.push(libc::iovec { iov_base: prefix.as_mut_ptr().cast(), iov_len: PREFIX });
        iovecs.extend_from_slice(frame.iovecs());
        // SAFETY: `frame` keeps mapped what they point at, and outlives the call as `prefix` does.
        unsafe { send_message(&self.socket, &mut iovecs) }
    }

    /// [`crate::net::Port::receive`].
    pub(super) fn receive(&mut self, room: &Frame) -> io::Result<usize> {
        loop {
            match self.received.next() {
                Ok(Some(frame)) => {
                    room.fill(0, &[0; HEADER])?;
                    room.fill(HEADER as u64, frame)?;
                    return Ok(HEADER + frame.len());
                }
                Ok(None) => {}
                Err(error) => {
                    // passt has lost its way, or is no passt. It sees this as the end of its VM.
                    let _ = self.socket.shutdown(Shutdown::Both);
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, error));
                }
            }
            match self.received.read(&mut &*self.socket) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(meaning(error)),
            }
        }
    }
}

/// What an error of the socket means to a [`Port`](crate::net::Port)'s user.
fn meaning(error: io::Error) -> io::Error {
    match error.kind() {
        // passt's end is closed, maybe with frames of ours unread.
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => io::Error::new(ErrorKind::UnexpectedEof, error),
        _ => error,
    }
}

/// The frame after its length, copied out of guest memory.
fn message(frame: &Frame, len: usize) -> io::Result<Vec<u8>> {
    let mut message = vec![0; PREFIX + len];
    let (prefix, body) = message.split_at_mut(PREFIX);
    prefix.copy_from_slice(&(len as u32).to_be_bytes());
    frame.fetch(0, body)?;
    Ok(message)
}

/// Give the kernel what `iovecs` point at. Says how many bytes it took.
///
/// # Safety
/// That is memory which stays mapped during the call.
unsafe fn send_message(socket: &UnixStream, iovecs: &mut [libc::iovec]) -> io::Result<usize> {
    // SAFETY: all zero is a message of nothing to nobody.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = iovecs.as_mut_ptr();
    header.msg_iovlen = iovecs.len();
    loop {
        // SAFETY: `header` points at `iovecs`, of that length; the kernel only reads what those point at, for which the caller
        // vouches.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
        match usize::try_from(sent) {
            Ok(sent) => return Ok(sent),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
