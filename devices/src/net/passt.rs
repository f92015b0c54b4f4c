//! The `user` back end: passt, a program of the host that turns a guest's frames into ordinary sockets and needs no right.
//!
//! [`Passt`] is the network that a device holds on to, whether or not passt runs; somebody else starts passt and hands over
//! the socket to it ([`Passt::connect`]). The connection belongs to the network, and with it what was read of it and not yet
//! used: a port that is dropped in the middle of a frame, as at a reboot of the guest, leaves that to the next one.
//!
//! On the socket each frame follows its length, four bytes in network byte order: the protocol of QEMU's `-netdev stream`.
//! There is no header, no partial checksum and no segment larger than a frame; what makes up for it is [`MTU`].
//!
//! passt is trusted no more than a guest is: a length that no frame has ends the connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::link::Link;
use super::frame::Frame;
use super::{Backend, HEADER, Offloads, Port};

mod link;
mod received;
#[cfg(test)]
mod tests;

/// The largest packet in bytes that is worth announcing to the guest: what passt itself announces, the most that fits
/// into a frame.
pub const MTU: u16 = 65520;
/// An Ethernet header: no frame is shorter. (passt ends a connection on which one is.)
const MIN_FRAME: usize = 14;
/// The longest frame that passt takes, in bytes.
const MAX_FRAME: usize = 65535;
/// The length before each frame, in bytes.
const PREFIX: usize = 4;

/// A network by passt.
#[derive(Debug, Default)]
pub struct Passt {
    /// The connection, if there is one. This lock is held while nothing else is; a connection's own lock is a leaf, taken
    /// by its port alone.
    connection: Mutex<Option<Connection>>,
}

/// What a network and its port share.
#[derive(Clone, Debug)]
struct Connection {
    /// The same as the link's, for whoever asks which it is.
    socket: Arc<UnixStream>,
    link: Arc<Mutex<Link>>,
}

impl Passt {
    /// A network that is not connected.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on it is this socket, whose other end passt has. A port of the connection before is none of this one.
    ///
    /// # Errors
    /// If the socket refuses its settings.
    pub fn connect(&self, socket: UnixStream) -> io::Result<()> {
        let socket = Arc::new(socket);
        let link = Arc::new(Mutex::new(Link::new(Arc::clone(&socket))?));
        *lock(&self.connection) = Some(Connection { socket, link });
        Ok(())
    }

    /// passt is gone: the port, if one is out, sees the end of the connection, and there is no other until [`Passt::connect`].
    pub fn disconnect(&self) {
        if let Some(connection) = lock(&self.connection).take() {
            // It fails if passt's end is closed already, which is as good.
            let _ = connection.socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Backend for Passt {
    fn offloads(&self) -> Offloads {
        Offloads::default()
    }

    fn set_offloads(&self, _accepted: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn queue_pairs(&self) -> u16 {
        1
    }

    /// Fails with `NotConnected` while passt does not run, and with `ResourceBusy` while the only port is out.
    fn port(&self, index: u16) -> io::Result<Box<dyn Port>> {
        if index != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "passt has one queue pair"));
        }
        let connection = lock(&self.connection);
        let Some(connection) = &*connection else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "passt is not running"));
        };
        // One share is the network's, and nobody but this function makes more.
        if Arc::strong_count(&connection.link) > 1 {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the port is in use"));
        }
        Ok(Box::new(PasstPort(connection.clone())))
    }
}

/// The only queue pair of a [`Passt`].
#[derive(Debug)]
struct PasstPort(Connection);

impl Port for PasstPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }

    fn send(&mut self, header: &[u8; HEADER], frame: &Frame) -> io::Result<()> {
        // The flags and the GSO type: nothing was offered, so nothing may be asked for.
        if !matches!(header, [0, 0, ..]) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an offload that passt does not have"));
        }
        lock(&self.0.link).send(frame)
    }

    fn receive(&mut self, room: &Frame) -> io::Result<usize> {
        lock(&self.0.link).receive(room)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
