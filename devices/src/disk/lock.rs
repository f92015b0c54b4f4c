//! The lock that keeps two VMs from writing one disk.
//!
//! Open file description locks (`fcntl(2)`, `F_OFD_SETLK`) over the whole file: exclusive for a writer, shared
//! among readers. They belong to the open file and not to the process, so two VMs in one process exclude each other
//! too, they need no clean-up after a crash, and they meet those of other hypervisors. The kernel may keep a file
//! open for a moment longer than its users do (an io_uring is torn down behind their backs), so a lock is given back
//! explicitly, and one that is taken is tried again for that moment.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use super::error::DiskError;

/// How often a taken lock is tried again, and how long apart: in all as long as a killed VM takes to be gone.
const RETRIES: u32 = 10;
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// Take the lock, or say who is in the way. On a file system without locks this only warns.
///
/// # Errors
/// If the disk is in use, or the host fails otherwise.
pub(super) fn lock(file: impl AsFd, path: &Path, readonly: bool) -> Result<(), DiskError> {
    let file = file.as_fd();
    let kind = if readonly { libc::F_RDLCK } else { libc::F_WRLCK };
    let mut result = set(file, kind);
    for _ in 0..RETRIES {
        if !matches!(&result, Err(error) if taken(error)) {
            break;
        }
        std::thread::sleep(RETRY_AFTER);
        result = set(file, kind);
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
    let _ = set(file.as_fd(), libc::F_UNLCK);
}

/// Make the lock of a writer, who has ended writing, one of a reader.
pub(super) fn share(file: impl AsFd) {
    // Nobody can be in the way, and on a file system without locks there is nothing to change.
    let _ = set(file.as_fd(), libc::F_RDLCK);
}

fn taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
}

fn set(file: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // Zeroes: from the start (SEEK_SET 0) to the end however far it grows (length 0), and no pid, as the call asks.
    // SAFETY: `flock` is made of integers only; all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    // The kinds of lock and SEEK_SET are small constants.
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
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
