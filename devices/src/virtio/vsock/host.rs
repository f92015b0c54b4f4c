//! The host's end of one connection: a Unix stream socket that never blocks, and what waits for it.
//!
//! The socket is watched edge-triggered, once for reading and writing: [`HostEnd`] remembers what it may be able to do and
//! forgets it when the socket says no. So a socket that nobody serves for the moment wakes nobody.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use vmm_sys_util::epoll::EventSet;

/// Pieces up to this many bytes are put together.
const SMALL: usize = 4096;
/// How much is put together.
const CHUNK: usize = 64 << 10;
/// Chunks that are written at once.
const AT_ONCE: usize = 16;

/// Bytes from the guest that the socket did not take yet. Who fills it keeps it bounded, by the connection's credit.
#[derive(Default)]
pub(super) struct Backlog {
    chunks: VecDeque<Vec<u8>>,
    /// How much of the first is gone.
    start: usize,
    len: usize,
}

impl Backlog {
    /// How many bytes it holds.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Append `bytes`. Many small pieces cost about what they hold.
    pub(super) fn push(&mut self, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len();
        match self.chunks.back_mut() {
            Some(last) if bytes.len() <= SMALL && last.len() < CHUNK => last.extend_from_slice(&bytes),
            _ => self.chunks.push_back(bytes),
        }
    }

    /// What comes first.
    fn first(&self) -> Vec<IoSlice<'_>> {
        let skip =
            |(index, chunk): (usize, &'_ Vec<u8>)| if index == 0 { self.start.min(chunk.len()) } else { 0 };
        let chunks = self.chunks.iter().enumerate().take(AT_ONCE);
        chunks.filter_map(|at| Some(IoSlice::new(at.1.get(skip(at)..)?))).collect()
    }

    /// The first `count` bytes are gone.
    fn advance(&mut self, count: usize) {
        self.len = self.len.saturating_sub(count);
        self.start += count;
        while let Some(first) = self.chunks.front().filter(|first| self.start >= first.len()) {
            self.start -= first.len();
            self.chunks.pop_front();
        }
    }
}

/// What became of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// Nothing any more.
    End,
}

/// A socket of the host.
pub(super) struct HostEnd {
    socket: OwnedFd,
    backlog: Backlog,
    /// There may be something to read.
    readable: bool,
    /// There may be room.
    writable: bool,
    /// The other end is closed, or shut both ways.
    hung_up: bool,
    /// It said its end.
    ended: bool,
    /// It takes nothing any more.
    refuses: bool,
}

impl HostEnd {
    /// Around a non-blocking stream socket.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            backlog: Backlog::default(),
            readable: false,
            writable: false,
            hung_up: false,
            ended: false,
            refuses: false,
        }
    }

    /// A socket that is not connected yet.
    ///
    /// # Errors
    /// If the host is out of file descriptors.
    pub(super) fn unconnected() -> io::Result<Self> {
        Ok(Self::new(stream_socket()?))
    }

    /// Connect to whoever listens at `path`.
    ///
    /// # Errors
    /// [`Errno::AGAIN`] if that one has its hands full: try again. Anything else is final.
    pub(super) fn connect(&mut self, path: &Path) -> Result<(), Errno> {
        rustix::net::connect(&self.socket, &SocketAddrUnix::new(path)?)?;
        self.writable = true;
        Ok(())
    }

    /// The socket has these events.
    pub(super) fn note(&mut self, events: EventSet) {
        let over = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.readable |= over || events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        self.writable |= over || events.contains(EventSet::OUT);
        self.hung_up |= events.contains(EventSet::HANG_UP);
    }

    /// Whether a read may find something: bytes, or the end.
    pub(super) fn may_read(&self) -> bool {
        self.readable && !self.ended
    }

    pub(super) fn has_hung_up(&self) -> bool {
        self.hung_up
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// It takes nothing any more: what it is given is dropped.
    pub(super) fn refuses(&self) -> bool {
        self.refuses
    }

    /// How many bytes wait for it.
    pub(super) fn waiting(&self) -> usize {
        self.backlog.len()
    }

    /// Read into what `iovecs` point to.
    ///
    /// # Safety
    /// That is memory which stays mapped during the call, and to which there is no Rust reference.
    pub(super) unsafe fn read(&mut self, iovecs: &mut [libc::iovec]) -> Read {
        let mut message = message(iovecs);
        // SAFETY: the message and its iovecs outlive the call; the caller vouches for the memory behind them.
        let count =
            retry(|| unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) });
        match count {
            Ok(count @ 1..) => Read::Bytes(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Read::Nothing
            }
            // An error is ECONNRESET: it went away without reading everything.
            result => {
                self.hung_up |= result.is_err();
                self.ended = true;
                Read::End
            }
        }
    }

    /// Read the line with which a client says what it wants, appending to `line` at most up to its end, and no byte of
    /// what follows it.
    pub(super) fn read_line(&mut self, line: &mut Vec<u8>, longest: usize) -> Read {
        let mut piece = [0_u8; 64];
        let most = longest.saturating_sub(line.len()).min(piece.len());
        let Some(piece) = piece.get_mut(..most) else { return Read::End };
        let seen = match rustix::net::recv(&self.socket, &mut *piece, RecvFlags::DONTWAIT | RecvFlags::PEEK) {
            Ok((count @ 1.., _)) => piece.get(..count).unwrap_or_default(),
            Err(Errno::AGAIN) => {
                self.readable = false;
                return Read::Nothing;
            }
            _ => return Read::End,
        };
        let take = seen.iter().position(|byte| *byte == b'\n').map_or(seen.len(), |at| at + 1);
        line.extend(seen.iter().take(take));
        match rustix::net::recv(&self.socket, piece.get_mut(..take).unwrap_or_default(), RecvFlags::DONTWAIT)
        {
            Ok(_) => Read::Bytes(take),
            Err(_) => Read::End,
        }
    }

    /// Write what `iovecs` point to, if nothing waits. Returns how much was taken.
    ///
    /// # Safety
    /// As of [`HostEnd::read`].
    pub(super) unsafe fn write(&mut self, iovecs: &mut [libc::iovec]) -> usize {
        if self.backlog.len() > 0 || !self.writable || self.refuses {
            return 0;
        }
        let message = message(iovecs);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as in `read`.
        let count = retry(|| unsafe { libc::sendmsg(self.socket.as_raw_fd(), &raw const message, flags) });
        self.written(count)
    }

    /// Have `bytes` written when there is room.
    pub(super) fn write_later(&mut self, bytes: Vec<u8>) {
        if !self.refuses {
            self.backlog.push(bytes);
        }
    }

    /// Write what waits, as much as there is room for. Returns how many bytes left the backlog, also by being dropped.
    pub(super) fn flush(&mut self) -> usize {
        let before = self.backlog.len();
        while self.backlog.len() > 0 && self.writable && !self.refuses {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let mut control = rustix::net::SendAncillaryBuffer::default();
            let sent = rustix::net::sendmsg(&self.socket, &self.backlog.first(), &mut control, flags);
            let sent = match sent {
                Err(Errno::INTR) => continue,
                other => other.map_err(io::Error::from),
            };
            let count = self.written(sent);
            self.backlog.advance(count);
        }
        before - self.backlog.len()
    }

    fn written(&mut self, result: io::Result<usize>) -> usize {
        match result {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                0
            }
            Err(_) => {
                self.refuses = true;
                self.backlog = Backlog::default();
                0
            }
        }
    }

    /// Tell a client that it is connected. A line that does not fit an unused socket finds nobody there.
    pub(super) fn greet(&mut self, port: u32) {
        let line = format!("OK {port}\n");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if rustix::net::send(&self.socket, line.as_bytes(), flags) != Ok(line.len()) {
            self.refuses = true;
        }
    }

    /// The guest sends nothing more: so does this end.
    pub(super) fn end_writing(&self) {
        // Fails where there is no other end any more.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
    }

    /// The guest receives nothing more: whoever sends is told.
    pub(super) fn end_reading(&self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Read);
    }
}

impl AsRawFd for HostEnd {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A stream socket that never blocks.
pub(super) fn stream_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// A message of payload alone. It points to `iovecs`, which must live as long as it is used.
fn message(iovecs: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: plain integers and pointers, for which zero means none.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    message
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (HostEnd, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        let mut end = HostEnd::new(one.into());
        end.note(EventSet::IN | EventSet::OUT);
        (end, other)
    }

    fn read(end: &mut HostEnd, iovec: &mut [libc::iovec; 1]) -> super::Read {
        // SAFETY: it points to memory of the test that nobody refers to meanwhile.
        unsafe { end.read(iovec) }
    }

    #[test]
    fn a_line_is_read_and_nothing_behind_it() {
        let (mut end, mut client) = pair();
        let mut line = Vec::new();
        client.write_all(b"CONN").unwrap();
        assert_eq!(end.read_line(&mut line, 32), Read::Bytes(4));
        assert_eq!(end.read_line(&mut line, 32), Read::Nothing);
        client.write_all(b"ECT 5\nhello").unwrap();
        assert_eq!(end.read_line(&mut line, 32), Read::Bytes(6));
        assert_eq!(line, b"CONNECT 5\n");
        let mut rest = [0_u8; 16];
        let mut iovec = [libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: 16 }];
        end.note(EventSet::IN);
        assert_eq!(read(&mut end, &mut iovec), Read::Bytes(5));
        assert_eq!(&rest[..5], b"hello");
        drop(client);
        end.note(EventSet::IN);
        assert_eq!(read(&mut end, &mut iovec), Read::End);
        assert!(!end.may_read());
    }

    #[test]
    fn a_line_without_end_is_an_end() {
        let (mut end, mut client) = pair();
        let mut line = Vec::new();
        client.write_all(&[b'x'; 100]).unwrap();
        assert_eq!(end.read_line(&mut line, 32), Read::Bytes(32));
        assert_eq!(end.read_line(&mut line, 32), Read::End);
    }

    #[test]
    fn what_does_not_fit_waits_and_arrives_in_order() {
        let (mut end, mut client) = pair();
        let mut sent = Vec::new();
        for i in 0..3000_u32 {
            let piece: Vec<u8> = i.to_le_bytes().repeat(if i % 7 == 0 { 2000 } else { 3 });
            sent.extend_from_slice(&piece);
            end.write_later(piece);
        }
        assert_eq!(end.waiting(), sent.len());
        let mut got = Vec::new();
        let mut piece = vec![0; 1 << 20];
        while got.len() < sent.len() {
            end.flush();
            let count = client.read(&mut piece).unwrap();
            got.extend_from_slice(&piece[..count]);
            end.note(EventSet::OUT);
        }
        assert!(got == sent);
        assert_eq!(end.waiting(), 0);
    }

    #[test]
    fn one_that_takes_nothing_any_more_drops_what_waits() {
        let (mut end, client) = pair();
        end.write_later(vec![1; 100]);
        drop(client);
        assert_eq!(end.flush(), 100);
        assert!(end.refuses());
        end.write_later(vec![1; 100]);
        assert_eq!(end.waiting(), 0);
    }
}
