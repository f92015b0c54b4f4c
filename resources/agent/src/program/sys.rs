//! System calls that have no safe wrapper at hand, each as small as it can be. No state.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The result of a call that says -1 for an error.
pub fn check<T: Copy + Into<i64>>(result: T) -> io::Result<T> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A new descriptor out of the result of a call.
pub fn owned(result: RawFd) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just made it, for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A path as the kernel takes it.
///
/// # Errors
/// If there is a NUL in it.
pub fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// An ioctl whose argument is a number.
pub fn ioctl_value(fd: &impl AsRawFd, request: libc::c_ulong, value: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the requests that callers name take a number and touch no memory of ours.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) })
}

/// An ioctl whose argument is a value that the kernel reads, and may change.
pub fn ioctl<T>(fd: &impl AsRawFd, request: libc::c_ulong, value: &mut T) -> io::Result<i32> {
    // SAFETY: the pointer is to a whole `T`, and callers name requests that take one.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(value)) })
}

/// Send a signal to a process, or with a negative number to a group of them.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: touches no memory.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// An eventfd at zero, not blocking.
pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: touches no memory.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// Whether reads and writes of it wait.
pub fn set_blocking(fd: &impl AsRawFd, blocking: bool) -> io::Result<()> {
    let mut off = i32::from(!blocking);
    ioctl(fd, libc::FIONBIO, &mut off).map(drop)
}

/// Call the kernel's `mount`.
pub fn mount(source: &CStr, target: &Path, kind: &CStr, flags: libc::c_ulong, data: &CStr) -> io::Result<()> {
    let target = c_path(target)?;
    let data = if data.is_empty() { std::ptr::null() } else { data.as_ptr().cast() };
    // SAFETY: all are NUL-terminated strings that outlive the call, or null where that is allowed.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data) }).map(drop)
}

/// Load a kernel module from an open file, without parameters.
pub fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, the parameters are an empty string.
    check(unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) }).map(drop)
}

/// Set the wall clock, in nanoseconds since 1970.
pub fn set_clock(ns: u64) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    };
    // SAFETY: the pointer is to a whole timespec.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }).map(drop)
}

/// The kernel's host name.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and length are of one string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// `reboot(2)` with one of its commands.
pub fn reboot(command: i32) -> io::Result<()> {
    // SAFETY: touches no memory; ends the machine if it succeeds.
    check(unsafe { libc::reboot(command) }).map(drop)
}

/// Write all that is cached to the disks.
pub fn sync() {
    // SAFETY: takes nothing and touches no memory.
    unsafe { libc::sync() }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Wait until one of `files` is ready, for so many milliseconds; -1 is for ever. A signal counts as nothing ready.
pub fn poll(files: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<usize> {
    let count = libc::nfds_t::try_from(files.len()).map_err(io::Error::other)?;
    // SAFETY: the pointer and count are of one slice.
    match check(unsafe { libc::poll(files.as_mut_ptr(), count, timeout_ms) }) {
        Ok(ready) => Ok(usize::try_from(ready).unwrap_or(0)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            files.iter_mut().for_each(|file| file.revents = 0);
            Ok(0)
        }
        Err(error) => Err(error),
    }
}

/// Something to poll. Without events only its end is reported; without a descriptor nothing is.
pub fn polled(fd: Option<BorrowedFd<'_>>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: fd.map_or(-1, |fd| fd.as_raw_fd()), events, revents: 0 }
}
