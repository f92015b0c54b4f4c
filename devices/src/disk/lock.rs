//! The lock that keeps two VMs from writing one disk.
//!
//! Open file description locks (`fcntl(2)`, `F_OFD_SETLK`): exclusive over the whole file for a writer, shared
//! among readers. A reader locks the very bytes by which a reader of QEMU says that it reads and that nobody may write, so that
//! `qemu-img` can look at a file that a VM reads, and will not write it. They belong to the open file and not to the process, so two VMs in one process exclude each other
//! too, they need no clean-up after a crash, and they meet those of other hypervisors. The kernel may keep a file
//! open for a moment longer than its users do (an io_uring is torn down behind their backs), so a lock is given back
//! explicitly, and one that is taken is tried again for that moment.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use super::error::DiskError;

/// How often a taken lock is tried again, and how long apart: in all as long as a killed VM takes to be gone.
const RETRIES: u32 = 100;
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Bytes from the start of the file, and how many; 0 is all that there are.
type Range = (libc::off_t, libc::off_t);

const WHOLE: Range = (0, 0);

/// What a reader locks: QEMU's consistent read (100 + 0), and that it does not share write (200 + 1) and resize (200 + 3).
const READER: [Range; 3] = [(100, 1), (201, 1), (203, 1)];
/// All the rest.
const NOT_READER: [Range; 4] = [(0, 100), (101, 100), (202, 1), (204, 0)];

/// Take the lock, or say who is in the way. On a file system without locks this only warns.
///
/// # Errors
/// If the disk is in use, or the host fails otherwise.
pub(super) fn lock(file: impl AsFd, path: &Path, readonly: bool) -> Result<(), DiskError> {
    let file = file.as_fd();
    let mut result = take(file, readonly);
    for _ in 0..RETRIES {
        if !matches!(&result, Err(error) if taken(error)) {
            break;
        }
        std::thread::sleep(RETRY_AFTER);
        result = take(file, readonly);
    }
    let Err(source) = result else { return Ok(()) };
    let path = path.to_owned();
    match source.raw_os_error() {
        _ if taken(&source) => Err(DiskError::InUse { path }),
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => {
            log::warn!(
                "{}: its file system has no locks ({source}): nothing keeps another VM from writing this disk",
                path.display()
            );
            Ok(())
        }
        _ => Err(DiskError::Lock { path, source }),
    }
}

/// Give the lock back, whoever else still holds the open file.
pub(super) fn unlock(file: impl AsFd) {
    // Without a lock there is nothing to give back.
    let _ = set(file.as_fd(), libc::F_UNLCK, WHOLE);
}

/// Make the lock of a writer, who has ended writing, one of a reader.
pub(super) fn share(file: impl AsFd) {
    // Nobody can be in the way, and on a file system without locks there is nothing to change.
    let file = file.as_fd();
    let _ = READER.iter().try_for_each(|range| set(file, libc::F_RDLCK, *range));
    let _ = NOT_READER.iter().try_for_each(|range| set(file, libc::F_UNLCK, *range));
}

fn take(file: BorrowedFd<'_>, readonly: bool) -> io::Result<()> {
    if !readonly {
        return set(file, libc::F_WRLCK, WHOLE);
    }
    let taken = READER.iter().try_for_each(|range| set(file, libc::F_RDLCK, *range));
    if taken.is_err() {
        // Not a part of it either.
        unlock(file);
    }
    taken
}

fn taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn set(file: BorrowedFd<'_>, kind: libc::c_int, (start, len): Range) -> io::Result<()> {
    // No pid, as the call asks.
    // SAFETY: `flock` is made of integers only; all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // The kinds of lock and SEEK_SET are small constants.
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start;
    lock.l_len = len;
    loop {
        // SAFETY: the descriptor is open for the call's length and `lock` outlives it.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
