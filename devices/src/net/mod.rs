//! Net back ends: where the frames of a guest's network device go to and come from.
//!
//! A [`Backend`] is opened once by the VM's host side and lives over reboots of the guest. While a device is active its
//! threads use one [`Port`] each (one a queue pair), which they get from it when the queue pair is first used and drop at
//! `stop`.
//!
//! Every frame that a port receives carries a `virtio_net_hdr_v1` of [`HEADER`] bytes before it (virtio 1.2, 5.1.6), and every
//! frame that is sent is given with one.

pub mod frame;
pub mod passt;
pub mod tap;

use std::io;
use std::os::fd::BorrowedFd;

use frame::Frame;

/// The length of the header before each frame, in bytes.
pub const HEADER: usize = 12;

/// What a back end can leave undone, so that nobody has to do it for a frame that stays on this machine: the
/// checksum, and the cutting of large segments. Named as virtio's features (5.1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums. All others are of no use without it.
    pub csum: bool,
    /// TCP segments over IPv4 longer than a frame.
    pub tso4: bool,
    /// TCP segments over IPv6 longer than a frame.
    pub tso6: bool,
    /// TCP segments with explicit congestion notification. Of no use without one of the two before.
    pub ecn: bool,
    /// UDP datagrams longer than a frame (USO).
    pub uso: bool,
}

impl Offloads {
    /// Whether frames can be larger than the network's.
    #[must_use]
    pub fn large(self) -> bool {
        self.csum && (self.tso4 || self.tso6 || self.uso)
    }
}

/// Where frames go to and come from. Shared by the VM's host side and a device; called under no lock.
pub trait Backend: Send + Sync {
    /// What it takes from the guest, and what it may give to a guest that accepts it.
    fn offloads(&self) -> Offloads;

    /// What the guest accepts in what it receives, from now on. Never more than [`Backend::offloads`].
    ///
    /// # Errors
    /// If the back end is gone.
    fn set_offloads(&self, accepted: Offloads) -> io::Result<()>;

    /// How many queue pairs it has, at least 1.
    fn queue_pairs(&self) -> u16;

    /// The port of queue pair `index`. From here on frames may come on it; until it is dropped. One at a time.
    ///
    /// # Errors
    /// If the host is out of file descriptors, or the back end is gone.
    fn port(&self, index: u16) -> io::Result<Box<dyn Port>>;
}

/// One queue pair of a [`Backend`]. Nothing here blocks.
///
/// Three kinds of error have a meaning of their own; after any other one frame is lost:
/// - `WouldBlock`: not now. Tried again after the file descriptor has become ready.
/// - `NetworkDown`: the other side is down for now, and what was to be sent is lost. The guest sees the link down until the file
///   descriptor is writable or something works again.
/// - `UnexpectedEof`: the other side is gone for good. The guest sees the link down; the port is dropped.
pub trait Port: Send {
    /// Readable when a frame waits, writable when one is taken. The device watches it, for edges: it goes on until
    /// `WouldBlock` before it waits. The same for as long as the port lives.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Send `frame`, whose header was checked. `WouldBlock` says that nothing of it was sent.
    ///
    /// # Errors
    /// See [`Port`].
    fn send(&mut self, header: &[u8; HEADER], frame: &Frame) -> io::Result<()>;

    /// Receive one frame with its header into `room`, and say its whole length in bytes, header and all. What does not fit is
    /// cut off: then a length greater than the room's is returned. The header's `num_buffers` is the device's to fill in.
    ///
    /// # Errors
    /// See [`Port`].
    fn receive(&mut self, room: &Frame) -> io::Result<usize>;
}
