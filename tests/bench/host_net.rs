//! Puts frames on a tap as fast as it takes them, for the guest `netguest` to receive.
//!
//! `host-net TAP BYTES MILLIS`: through a packet socket, many frames a call. Frames longer than 1514 bytes are TCP segments that
//! are left uncut.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const HEADER: usize = 10;
/// How many frames go with one call.
const BATCH: usize = 64;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tap, bytes, millis] = arguments.as_slice() else { bail!("usage: host-net TAP BYTES MILLIS") };
    let bytes: usize = bytes.parse().context("BYTES")?;
    let time = Duration::from_millis(millis.parse().context("MILLIS")?);
    let socket = open(tap).with_context(|| format!("cannot open a packet socket on {tap}"))?;
    let frame = frame(bytes);
    let mut sent = 0_u64;
    let start = Instant::now();
    while start.elapsed() < time {
        sent += send(&socket, &frame)?;
    }
    println!("sent frames {sent} nanos {}", start.elapsed().as_nanos());
    Ok(())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A packet socket whose frames have a virtio_net_hdr before them, and go straight to the device.
fn open(tap: &str) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor that comes is ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0))?) };
    let on = 1_i32;
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_QDISC_BYPASS] {
        // SAFETY: `on` is an int that outlives the call.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const on).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        })?;
    }
    let name = std::ffi::CString::new(tap)?;
    // SAFETY: a string that ends in NUL and outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: all zeroes are a valid address; what matters is set below.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
    address.sll_ifindex = i32::try_from(index).unwrap_or(0);
    // SAFETY: `address` is a whole sockaddr_ll that outlives the call.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    })?;
    Ok(socket)
}

/// The header, and what looks like TCP over IPv4.
fn frame(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    if len > 1514 {
        let [segment, headers] = [1448_u16, 54].map(u16::to_le_bytes);
        bytes = vec![1, 1, headers[0], headers[1], segment[0], segment[1], 34, 0, 16, 0];
    }
    bytes.extend([0x52, 0x54, 0, 0xee, 0xee, 0xef, 0x52, 0x54, 0, 0xee, 0xee, 0xee, 8, 0]);
    let total = u16::try_from(len - 14).unwrap_or(u16::MAX).to_be_bytes();
    bytes.extend([0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 9, 192, 0, 2, 1]);
    bytes.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.resize(HEADER + len, 0);
    bytes
}

/// One call. What the device has no room for is dropped, as on any wire.
fn send(socket: &OwnedFd, frame: &[u8]) -> Result<u64> {
    let mut part = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
    // SAFETY: all zeroes are a valid message; what matters is set below.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = &raw mut part;
    message.msg_hdr.msg_iovlen = 1;
    let mut messages = [message; BATCH];
    // SAFETY: as many messages as are said, whose one part outlives the call and is only read.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
    match check(sent) {
        Ok(count) => Ok(u64::from(count.unsigned_abs())),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
        Err(error) => Err(error).context("cannot send"),
    }
}
