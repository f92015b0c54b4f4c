//! Net back ends: where the frames of a guest's network device go to and come from.
//!
//! A [`Backend`] is opened once by the VM's host side and lives over reboots of the guest. While a device is active its
//! threads use one [`Port`] each (one a queue pair), which they get from it at `activate` and drop at `stop`.
//!
//! Every frame carries a `virtio_net_hdr_v1` of [`HEADER`] bytes before it (virtio 1.2, 5.1.6), in both directions.

use std::io;
use std::os::fd::BorrowedFd;

use crate::virtio::buffers::Buffers;

pub mod passt;

/// The length of the header before each frame, in bytes.
pub const HEADER: usize = 12;

/// What a back end can leave undone, so that nobody has to do it for a frame that stays on this machine: the
/// checksum, and the cutting of large segments. Named as virtio's features (5.1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums.
    pub csum: bool,
    /// TCP segments over IPv4 longer than a frame.
    pub tso4: bool,
    /// TCP segments over IPv6 longer than a frame.
    pub tso6: bool,
    /// UDP datagrams longer than a frame (USO).
    pub uso: bool,
}

/// Where frames go to and come from. Shared by the VM's host side and a device; called under no lock.
pub trait Backend: Send + Sync {
    /// What it takes from the guest, and what it may give to a guest that accepts it.
    fn offloads(&self) -> Offloads;

    /// How many queue pairs it has, at least 1.
    fn queue_pairs(&self) -> u16;

    /// The port of queue pair `index`, for a guest that accepts `accepted` in what it receives.
    ///
    /// # Errors
    /// If the host is out of file descriptors, or the back end is gone.
    fn port(&self, index: u16, accepted: Offloads) -> io::Result<Box<dyn Port>>;
}

/// One queue pair of a [`Backend`]. Nothing here blocks.
pub trait Port: Send {
    /// Readable when a frame waits, writable when one is taken. The device watches it.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Send the frame that lies in `frame` from its byte `skip` on (where the guest's own header ends), with `header`, which
    /// was checked. `WouldBlock`: the other side has no room, and nothing of it was sent.
    ///
    /// # Errors
    /// The host's reason; after anything but `WouldBlock` the frame is lost and the port may still work.
    fn send(&mut self, header: &[u8; HEADER], frame: &Buffers, skip: u64) -> io::Result<()>;

    /// Receive one frame with its header into `room`, and say its whole length in bytes, header and all. What does not fit is
    /// cut off. The header's `num_buffers` is the device's to fill in. `WouldBlock` when no frame waits.
    ///
    /// # Errors
    /// The host's reason. `UnexpectedEof` says that the other side is gone for good.
    fn receive(&mut self, room: &Buffers) -> io::Result<usize>;
}
