//! A tap of a test's own, and the host's end of it: a packet socket with frames of a type that nobody else uses.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// For local experiments (IEEE 802).
pub const TYPE: u16 = 0x88b5;

/// A tap that is up, and gone with this.
#[derive(Debug)]
pub struct Tap {
    /// The interface's name.
    pub name: String,
    socket: OwnedFd,
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Run `ip` with these words. Whether it could do what they say.
#[must_use]
pub fn ip(words: &str) -> bool {
    let output = Command::new("ip").args(words.split_whitespace()).output();
    output.is_ok_and(|output| output.status.success())
}

impl Tap {
    /// A new one. `None`, and a message, where none can be made: that takes the right to, and `/dev/net/tun`.
    ///
    /// # Panics
    /// If there is a tap but no packet socket on it.
    #[must_use]
    pub fn make(options: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("sk{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        if !ip(&format!("tuntap add dev {name} mode tap {options}")) {
            eprintln!("skipped: no tap can be made here (it takes root and /dev/net/tun)");
            return None;
        }
        assert!(ip(&format!("link set {name} up")), "{name} does not come up");
        let socket = open(&name).expect("a packet socket on a tap of our own");
        Some(Self { name, socket })
    }

    /// Send a frame to the guest.
    ///
    /// # Panics
    /// If the tap does not take it.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the bytes outlive the call, which only reads them.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next frame from the guest, if one comes within `patience`.
    #[must_use]
    pub fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        let fd = self.socket.as_raw_fd();
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which outlives the call.
        check(unsafe { libc::poll(&raw mut poll, 1, patience.as_millis() as i32) })
            .ok()
            .filter(|&ready| ready > 0)?;
        let mut frame = vec![0; 1 << 17];
        // SAFETY: the bytes outlive the call, which writes no more than there are.
        let len = unsafe { libc::recv(fd, frame.as_mut_ptr().cast(), frame.len(), 0) };
        frame.truncate(usize::try_from(len).ok()?);
        Some(frame)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // A test may have deleted it.
        let _ = ip(&format!("link del {}", self.name));
    }
}

fn open(name: &str) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor that comes is ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0))?) };
    let name = CString::new(name)?;
    // SAFETY: a string that ends in NUL and outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: all zeroes are a valid address; what matters is set below.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = TYPE.to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a whole sockaddr_ll that outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket)
}
