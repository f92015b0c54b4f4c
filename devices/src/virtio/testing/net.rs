//! A network of one test: a back end whose other side is the test itself.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use crate::net::frame::Frame;
use crate::net::{Backend, HEADER, Offloads, Port};

/// One queue pair: a pair of sockets that keep frames apart.
struct Wire {
    device: Arc<OwnedFd>,
    /// `None` after [`FakeNet::hang_up`].
    test: Mutex<Option<OwnedFd>>,
    open: Arc<AtomicBool>,
}

/// A network of one test.
pub struct FakeNet {
    offloads: Offloads,
    accepted: Mutex<Offloads>,
    wires: Vec<Wire>,
    down: Arc<AtomicBool>,
    /// No further port can be had.
    pub closed: AtomicBool,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeNet {
    /// Every offload there is.
    pub const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, ecn: true, uso: true };

    /// A network with this many queue pairs.
    ///
    /// # Panics
    /// If the host has no sockets.
    #[must_use]
    pub fn new(pairs: u16, offloads: Offloads) -> Arc<Self> {
        let wire = |_| {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let (device, test) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
            Wire { device: Arc::new(device), test: Mutex::new(Some(test)), open: Arc::default() }
        };
        let wires = (0..pairs).map(wire).collect();
        let accepted = Mutex::default();
        Arc::new(Self { offloads, accepted, wires, down: Arc::default(), closed: AtomicBool::new(false) })
    }

    /// A frame comes from the network on queue pair `pair`. False if too many wait there already.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn give(&self, pair: usize, header: [u8; HEADER], frame: &[u8]) -> bool {
        let bytes = [&header[..], frame].concat();
        let test = lock(&self.wires[pair].test);
        test.as_ref().is_some_and(|test| send(test, &bytes, SendFlags::NOSIGNAL).is_ok())
    }

    /// The next frame, with its header, that the device has sent on queue pair `pair`.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn take(&self, pair: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let test = lock(&self.wires[pair].test);
        let (len, _) = recv(test.as_ref()?, &mut bytes, RecvFlags::empty()).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }

    /// The network goes down or comes up: what is sent meanwhile is lost, and its sockets are not writable.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
        for (pair, wire) in self.wires.iter().enumerate() {
            while if down {
                send(&wire.device, &[0], SendFlags::NOSIGNAL).is_ok()
            } else {
                self.take(pair).is_some()
            } {}
        }
    }

    /// The network goes away for good.
    pub fn hang_up(&self) {
        self.wires.iter().for_each(|wire| drop(lock(&wire.test).take()));
    }

    /// What the guest has accepted.
    pub fn accepted(&self) -> Offloads {
        *lock(&self.accepted)
    }

    /// Whether queue pair `pair` has a port now.
    ///
    /// # Panics
    /// If there is no such pair.
    pub fn is_open(&self, pair: usize) -> bool {
        self.wires[pair].open.load(Ordering::SeqCst)
    }
}

impl Backend for FakeNet {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&self, accepted: Offloads) -> io::Result<()> {
        *lock(&self.accepted) = accepted;
        Ok(())
    }

    fn queue_pairs(&self) -> u16 {
        self.wires.len() as u16
    }

    fn port(&self, index: u16) -> io::Result<Box<dyn Port>> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let Wire { device, open, .. } = &self.wires[usize::from(index)];
        assert!(!open.swap(true, Ordering::SeqCst), "one port at a time");
        let (socket, open, down) = (Arc::clone(device), Arc::clone(open), Arc::clone(&self.down));
        Ok(Box::new(FakePort { socket, open, down }))
    }
}

struct FakePort {
    socket: Arc<OwnedFd>,
    open: Arc<AtomicBool>,
    down: Arc<AtomicBool>,
}

impl Drop for FakePort {
    fn drop(&mut self) {
        self.open.store(false, Ordering::SeqCst);
    }
}

fn gone(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => io::ErrorKind::UnexpectedEof.into(),
        _ => error,
    }
}

impl Port for FakePort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn send(&mut self, header: &[u8; HEADER], frame: &Frame) -> io::Result<()> {
        if self.down.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::NetworkDown.into());
        }
        let mut bytes = header.to_vec();
        bytes.resize(HEADER + frame.total() as usize, 0);
        frame.fetch(0, &mut bytes[HEADER..])?;
        send(&self.socket, &bytes, SendFlags::NOSIGNAL).map(drop).map_err(|error| gone(error.into()))
    }

    fn receive(&mut self, room: &Frame) -> io::Result<usize> {
        // SAFETY: plain bytes, for which zero is a value.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = room.iovecs().as_ptr().cast_mut();
        message.msg_iovlen = room.iovecs().len();
        // SAFETY: the pieces lie in memory that `room` keeps mapped and that no Rust reference leads to.
        let len = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, libc::MSG_TRUNC) };
        match usize::try_from(len) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => Ok(len),
            Err(_) => Err(gone(io::Error::last_os_error())),
        }
    }
}
