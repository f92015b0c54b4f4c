//! Frames through a tap device of the host: one open file for each queue pair, with a virtio header before each frame
//! (`IFF_VNET_HDR`), so that checksums and the cutting of large segments are left to whoever needs them done.
//!
//! A tap belongs to the host: it is made and brought up by its administrator, and skiff only attaches to it. One that skiff made
//! itself would be down, in no bridge, and gone with the VM.
//!
//! ```text
//! Tap::open / Tap::inherit ──► Tap (lives as long as the VM) ──port(n)──► TapPort (a device thread's)
//!                               └ files of pairs 1… detached               └ attached until dropped
//! ```

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use libc::{
    IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_UP, IFF_VNET_HDR,
    TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6, c_int, c_short, c_uint,
};

use super::frame::Frame;
use super::{Backend, HEADER, Offloads, Port};

/// The node through which taps are opened.
const NODE: &str = "/dev/net/tun";
/// The longest name of a network interface in bytes (`IFNAMSIZ` less the NUL).
pub const MAX_NAME: usize = 15;

/// A tap cannot be used. Each message names it and the fix.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has no taps.
    #[error("this host has no {NODE}: load the tun module (sudo modprobe tun)")]
    NoTun,
    /// The node may not be opened.
    #[error("no permission to open {NODE}: allow it (sudo chmod 666 {NODE})")]
    NodePermission,
    /// The node cannot be opened.
    #[error("cannot open {NODE}")]
    Node(#[source] io::Error),
    /// No interface can have this name.
    #[error("'{0}' is no interface's name: 1 to {MAX_NAME} bytes without blanks and slashes")]
    Name(String),
    /// There is no such tap.
    #[error("there is no tap {name}: make one ({})", make(name, *pairs))]
    Missing {
        /// Its name.
        name: String,
        /// The queue pairs asked for.
        pairs: u16,
    },
    /// It belongs to another user.
    #[error("the tap {name} is not yours: make it anew (sudo ip link del {name}; {})", make(name, *pairs))]
    Permission {
        /// Its name.
        name: String,
        /// The queue pairs asked for.
        pairs: u16,
    },
    /// Somebody else has it open.
    #[error("the tap {0} is in use: another VM has it, give each VM a tap of its own")]
    Busy(String),
    /// Several queues were asked for and it has one.
    #[error(
        "the tap {name} has one queue and {pairs} are asked for: leave queues= out, or make it anew (sudo ip link del {name}; {})",
        make(name, *pairs)
    )]
    SingleQueue {
        /// Its name.
        name: String,
        /// The queue pairs asked for.
        pairs: u16,
    },
    /// An interface of another kind.
    #[error("{0} is a network interface but no tap: name a tap, which can be put in a bridge with it")]
    NotATap(String),
    /// The descriptor is not open, or not that of a tap.
    #[error("file descriptor {0} is no open tap: pass on one that was opened from {NODE} with IFF_TAP")]
    NotATapFd(RawFd),
    /// The descriptor was opened in a way that cannot be worked with.
    #[error("file descriptor {0} is a tap without virtio headers: open it with IFF_VNET_HDR | IFF_NO_PI")]
    NoHeader(RawFd),
    /// One descriptor is one queue.
    #[error(
        "file descriptor {fd} is one queue and {pairs} are asked for: leave queues= out, or name the tap"
    )]
    OneFd {
        /// The descriptor.
        fd: RawFd,
        /// The queue pairs asked for.
        pairs: u16,
    },
    /// The host refuses something else.
    #[error("cannot set up the tap {name}")]
    Setup {
        /// Its name.
        name: String,
        /// The host's reason.
        #[source]
        source: io::Error,
    },
}

/// The commands that make a tap.
fn make(name: &str, pairs: u16) -> String {
    let queues = if pairs > 1 { " multi_queue" } else { "" };
    format!("sudo ip tuntap add dev {name} mode tap user $USER{queues}; sudo ip link set {name} up")
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    /// One a queue pair.
    files: Vec<Arc<OwnedFd>>,
    offloads: Offloads,
    /// Queues can be attached and detached.
    multi: bool,
}

impl Tap {
    /// Attach to the tap called `name`, with `pairs` queue pairs.
    ///
    /// # Errors
    /// If there is none, it is not the caller's, or it is not made for so many queues.
    pub fn open(name: &str, pairs: u16) -> Result<Self, TapError> {
        let mut request = request(name)?;
        if !exists(name) {
            // Looked for first: TUNSETIFF would make one, for root.
            return Err(TapError::Missing { name: name.to_owned(), pairs });
        }
        let pairs = pairs.max(1);
        let first = node()?;
        let multi = attach_first(&first, name, &mut request, pairs)?;
        let mut files = vec![first];
        for _ in 1..pairs {
            let file = node()?;
            set_iff(&file, &mut request, true).map_err(|error| refused(name, pairs, error))?;
            set_queue(file.as_fd(), false).map_err(|error| setup(name, error))?;
            files.push(file);
        }
        if !is_up(name) {
            log::warn!("the tap {name} is down: bring it up (sudo ip link set {name} up)");
        }
        Self::prepare(name, files, multi)
    }

    /// Use the open tap that this process has inherited as descriptor `fd`, which stays open.
    ///
    /// # Errors
    /// If it is none, or not opened for virtio headers, or `pairs` is more than 1.
    pub fn inherit(fd: RawFd, pairs: u16) -> Result<Self, TapError> {
        if pairs > 1 {
            return Err(TapError::OneFd { fd, pairs });
        }
        // SAFETY: takes numbers and returns a new descriptor, or an error for a number that is none.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        if copy < 0 {
            return Err(TapError::NotATapFd(fd));
        }
        // SAFETY: it was just made and nobody else knows it.
        let file = unsafe { OwnedFd::from_raw_fd(copy) };
        let mut request = empty_request();
        ioctl(&file, libc::TUNGETIFF, &mut request).map_err(|_| TapError::NotATapFd(fd))?;
        // SAFETY: TUNGETIFF filled this member of the union in.
        let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        if flags & IFF_TAP == 0 {
            return Err(TapError::NotATapFd(fd));
        }
        if flags & (IFF_VNET_HDR | IFF_NO_PI) != IFF_VNET_HDR | IFF_NO_PI {
            return Err(TapError::NoHeader(fd));
        }
        let name = format!("of file descriptor {fd}");
        rustix::io::ioctl_fionbio(&file, true).map_err(|error| setup(&name, error.into()))?;
        Self::prepare(&name, vec![file], false)
    }

    /// Agree on the header's form, and find out what the kernel can leave undone.
    fn prepare(name: &str, files: Vec<OwnedFd>, multi: bool) -> Result<Self, TapError> {
        let Some(file) = files.first() else {
            return Err(setup(name, io::ErrorKind::InvalidInput.into()));
        };
        let (mut size, mut little) = (HEADER as c_int, 1 as c_int);
        ioctl(file, libc::TUNSETVNETHDRSZ, &mut size).map_err(|error| setup(name, error))?;
        ioctl(file, libc::TUNSETVNETLE, &mut little).map_err(|error| setup(name, error))?;
        let all = Offloads { csum: true, tso4: true, tso6: true, ecn: true, uso: true };
        // From Linux 6.2 on there is USO.
        let tries = [all, Offloads { uso: false, ..all }, Offloads { csum: true, ..Offloads::default() }];
        let offloads = tries.into_iter().find(|offloads| set_offload(file, *offloads).is_ok());
        // Nothing, until a guest accepts something.
        set_offload(file, Offloads::default()).map_err(|error| setup(name, error))?;
        let files = files.into_iter().map(Arc::new).collect();
        Ok(Self { files, offloads: offloads.unwrap_or_default(), multi })
    }
}

impl Backend for Tap {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&self, accepted: Offloads) -> io::Result<()> {
        self.files.first().map_or(Ok(()), |file| set_offload(file, accepted))
    }

    fn queue_pairs(&self) -> u16 {
        u16::try_from(self.files.len()).unwrap_or(u16::MAX)
    }

    fn port(&self, index: u16) -> io::Result<Box<dyn Port>> {
        let file = self.files.get(usize::from(index)).ok_or(io::ErrorKind::NotFound)?;
        // Says whether there still is one.
        ioctl(file, libc::TUNGETIFF, &mut empty_request())?;
        // The first is always attached: the tap keeps what comes for a VM that pauses.
        let detach = self.multi && index > 0;
        if detach {
            set_queue(file.as_fd(), true)?;
        }
        Ok(Box::new(TapPort { file: Arc::clone(file), detach, iovecs: Vec::new(), spill: 0 }))
    }
}

/// One queue of a tap, attached.
#[derive(Debug)]
struct TapPort {
    file: Arc<OwnedFd>,
    detach: bool,
    /// Kept for its room.
    iovecs: Vec<libc::iovec>,
    /// Takes the first byte that has no place, so that a frame that is cut off can be told.
    spill: u8,
}

// SAFETY: the pointers in `iovecs` are used within one call only.
unsafe impl Send for TapPort {}

impl TapPort {
    /// Have the kernel read or write all of `iovecs`.
    fn transfer(&mut self, write: bool) -> io::Result<usize> {
        // At most a frame's pieces and one more, below IOV_MAX.
        let (fd, at, count) = (self.file.as_raw_fd(), self.iovecs.as_ptr(), self.iovecs.len());
        // The C library's own functions are points at which a thread can be cancelled, which shows a million times a second.
        let call = if write { libc::SYS_writev } else { libc::SYS_readv };
        // SAFETY: each piece lies in guest RAM that the caller's frame keeps mapped, in `self` or on the caller's stack, and
        // nothing else in this process refers to it during the call.
        let done = unsafe { libc::syscall(call, fd, at, count) };
        usize::try_from(done).map_err(|_| reason(io::Error::last_os_error()))
    }
}

impl Port for TapPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn send(&mut self, header: &[u8; HEADER], frame: &Frame) -> io::Result<()> {
        self.iovecs.clear();
        let base = header.as_ptr().cast_mut().cast();
        self.iovecs.push(libc::iovec { iov_base: base, iov_len: HEADER });
        self.iovecs.extend_from_slice(frame.iovecs());
        self.transfer(true).map(drop)
    }

    fn receive(&mut self, room: &Frame) -> io::Result<usize> {
        self.iovecs.clear();
        self.iovecs.extend_from_slice(room.iovecs());
        let base = (&raw mut self.spill).cast();
        self.iovecs.push(libc::iovec { iov_base: base, iov_len: 1 });
        self.transfer(false)
    }
}

impl Drop for TapPort {
    fn drop(&mut self) {
        if self.detach
            && let Err(error) = set_queue(self.file.as_fd(), false)
        {
            log::debug!("a tap's queue cannot be detached: {error}");
        }
    }
}

/// What an error of a tap means to a [`Port`]'s user.
fn reason(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        // What a tap that is down answers.
        Some(libc::EIO) => io::ErrorKind::NetworkDown.into(),
        // Deleted: the file is attached to nothing.
        Some(libc::EBADFD | libc::ENODEV | libc::ENXIO) => io::ErrorKind::UnexpectedEof.into(),
        _ => error,
    }
}

fn setup(name: &str, source: io::Error) -> TapError {
    TapError::Setup { name: name.to_owned(), source }
}

fn node() -> Result<OwnedFd, TapError> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(NODE);
    opened.map(OwnedFd::from).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoTun,
        Some(libc::EACCES | libc::EPERM) => TapError::NodePermission,
        _ => TapError::Node(error),
    })
}

/// Attach the first file. Whether the tap is one of several queues.
fn attach_first(file: &OwnedFd, name: &str, request: &mut libc::ifreq, pairs: u16) -> Result<bool, TapError> {
    // A tap wants to be attached to as it was made, and says EINVAL otherwise, as does any other interface.
    let invalid = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let wanted = pairs > 1;
    match set_iff(file, request, wanted) {
        Ok(()) => return Ok(wanted),
        Err(error) if !invalid(&error) => return Err(refused(name, pairs, error)),
        Err(_) => {}
    }
    match set_iff(file, request, !wanted) {
        Ok(()) if wanted => Err(TapError::SingleQueue { name: name.to_owned(), pairs }),
        Ok(()) => Ok(true),
        Err(error) if invalid(&error) => Err(TapError::NotATap(name.to_owned())),
        Err(error) => Err(refused(name, pairs, error)),
    }
}

fn refused(name: &str, pairs: u16, error: io::Error) -> TapError {
    let name = name.to_owned();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Permission { name, pairs },
        Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name),
        _ => TapError::Setup { name, source: error },
    }
}

fn set_iff(file: &OwnedFd, request: &mut libc::ifreq, multi: bool) -> io::Result<()> {
    let multi = if multi { IFF_MULTI_QUEUE } else { 0 };
    // All of them are 16 bits wide.
    request.ifr_ifru.ifru_flags = (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | multi) as c_short;
    ioctl(file, libc::TUNSETIFF, request)
}

fn set_queue(file: BorrowedFd<'_>, attach: bool) -> io::Result<()> {
    let mut request = empty_request();
    request.ifr_ifru.ifru_flags = (if attach { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE }) as c_short;
    ioctl(&file, libc::TUNSETQUEUE, &mut request)
}

fn set_offload(file: &OwnedFd, offloads: Offloads) -> io::Result<()> {
    let Offloads { csum, tso4, tso6, ecn, uso } = offloads;
    let flags = [
        (csum, TUN_F_CSUM),
        (csum && tso4, TUN_F_TSO4),
        (csum && tso6, TUN_F_TSO6),
        (csum && ecn && (tso4 || tso6), TUN_F_TSO_ECN),
        (csum && uso, TUN_F_USO4 | TUN_F_USO6),
    ];
    let flags: c_uint = flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag).sum();
    // SAFETY: this one takes a number, not a pointer.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An ioctl of a tap that takes a pointer to an `ifreq` or an `int`.
fn ioctl<T>(file: &impl AsRawFd, number: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the callers pass what their ioctl reads or writes, and it does not outlive the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), number, std::ptr::from_mut(argument)) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn empty_request() -> libc::ifreq {
    // SAFETY: plain bytes, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn request(name: &str) -> Result<libc::ifreq, TapError> {
    let bad = |byte: u8| byte == b'/' || byte == b'%' || byte == 0 || byte.is_ascii_whitespace();
    if name.is_empty() || name.len() > MAX_NAME || name.bytes().any(bad) {
        return Err(TapError::Name(name.to_owned()));
    }
    let mut request = empty_request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: a string that ends in a NUL and outlives the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

/// Whether the interface is up. One that cannot be asked counts as such.
fn is_up(name: &str) -> bool {
    let Ok(mut request) = request(name) else { return true };
    let kind = rustix::net::SocketType::DGRAM;
    let Ok(socket) = rustix::net::socket(rustix::net::AddressFamily::INET, kind, None) else { return true };
    if ioctl(&socket, libc::SIOCGIFFLAGS as libc::Ioctl, &mut request).is_err() {
        return true;
    }
    // SAFETY: SIOCGIFFLAGS filled this member of the union in.
    c_int::from(unsafe { request.ifr_ifru.ifru_flags }) & IFF_UP != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tap_is_named_with_what_to_do() {
        let missing = Tap::open("skiff-none0", 2).unwrap_err().to_string();
        assert_eq!(
            missing,
            "there is no tap skiff-none0: make one (sudo ip tuntap add dev skiff-none0 mode tap user $USER multi_queue; \
             sudo ip link set skiff-none0 up)"
        );
        for name in ["", "0123456789abcdef", "a b", "../x", "tap%d"] {
            assert!(matches!(Tap::open(name, 1), Err(TapError::Name(_))), "{name}");
        }
        assert!(matches!(Tap::inherit(-1, 1), Err(TapError::NotATapFd(-1))));
        let file = std::fs::File::open("/dev/null").unwrap();
        let fd = file.as_raw_fd();
        assert!(matches!(Tap::inherit(fd, 1), Err(TapError::NotATapFd(_))));
        assert!(Tap::inherit(fd, 2).unwrap_err().to_string().contains("is one queue and 2 are asked for"));
    }

    #[test]
    fn an_interface_that_is_no_tap_is_not_taken() {
        // Where there is no /dev/net/tun the error is another, and right.
        let text = Tap::open("lo", 1).unwrap_err().to_string();
        assert!(text.contains("lo is a network interface but no tap") || text.contains(NODE), "{text}");
    }

    #[test]
    fn errors_of_a_tap_have_the_meaning_of_a_ports() {
        let kind = |code| reason(io::Error::from_raw_os_error(code)).kind();
        assert_eq!(kind(libc::EIO), io::ErrorKind::NetworkDown);
        assert_eq!(kind(libc::EBADFD), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(libc::EAGAIN), io::ErrorKind::WouldBlock);
        assert_eq!(kind(libc::EINVAL), io::ErrorKind::InvalidInput);
    }
}
