//! The shared folder: what outlives a stop of the device, and is shared with its thread.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuse_backend_rs::abi::fuse_abi::FsOptions;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::owners::Owners;
use super::saved::{FsSession, FsState};
use super::session::Session;
use super::table::SLACK;
use crate::descriptors;
use crate::state::RestoreError;

/// The most files that a guest can know or have open at a time, each: as many as a large source tree has.
const MOST: u64 = 1 << 19;
/// The fewest with which a guest gets anywhere.
const FEWEST: u64 = 16;

/// A folder of the host, opened once: it is the same wherever it is moved.
#[derive(Debug)]
pub struct Folder {
    file: File,
    read_only: bool,
    owners: Owners,
}

impl Folder {
    /// The folder at `path`, of which the guest changes nothing if `read_only`.
    ///
    /// # Errors
    /// If there is none that can be read.
    pub fn open(path: &Path, read_only: bool, owners: Owners) -> io::Result<Self> {
        use rustix::fs::OFlags;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { file: rustix::fs::open(path, flags, Mode::empty())?.into(), read_only, owners })
    }
}

/// Whether the guest has it mounted.
enum Mount {
    /// It has not.
    None,
    /// It had when the state was saved, and has not asked for anything since.
    Saved(FsSession),
    /// It has.
    Live(Arc<Session>, FsOptions),
}

/// The folder as one device has it.
pub(super) struct Share {
    folder: Arc<Folder>,
    most: usize,
    mount: Mutex<Mount>,
    /// The thread that works on files has a file mode mask of its own.
    own_mask: AtomicBool,
    stopping: AtomicBool,
}

impl Share {
    /// The folder of one device, by which the guest can know `most` files.
    pub(super) fn new(folder: Arc<Folder>, most: usize) -> Self {
        Self {
            folder,
            most,
            mount: Mutex::new(Mount::None),
            own_mask: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }

    /// Whether the device's thread is to end: it begins no other request.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(super) fn set_stopping(&self, stopping: bool) {
        self.stopping.store(stopping, Ordering::Relaxed);
    }

    fn mount(&self) -> MutexGuard<'_, Mount> {
        self.mount.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn owners(&self) -> Owners {
        self.folder.owners
    }

    pub(super) fn read_only(&self) -> bool {
        self.folder.read_only
    }

    /// Give the calling thread a file mode mask, which is none, of its own: what a guest makes has the mode that the guest says.
    /// Where a container forbids that, the mask of the process holds.
    pub(super) fn own_mask(&self) {
        // SAFETY: a call without pointers. The thread has a root, a working directory and a mask of its own from here on; nothing
        // else in this process expects those to change with the others'.
        let done = unsafe { libc::unshare(libc::CLONE_FS) } == 0;
        if done {
            rustix::process::umask(Mode::empty());
        } else {
            log::debug!(
                "new files of guests have modes under the host's umask: {}",
                io::Error::last_os_error()
            );
        }
        self.own_mask.store(done, Ordering::Relaxed);
    }

    /// The library clears the mask on its own when a session begins.
    fn keep_mask<T>(&self, begin: impl FnOnce() -> T) -> T {
        if self.own_mask.load(Ordering::Relaxed) {
            return begin();
        }
        let mask = rustix::process::umask(Mode::empty());
        let begun = begin();
        rustix::process::umask(mask);
        begun
    }

    /// The guest mounts the folder, anew if it has: what of `capable` is agreed on.
    pub(super) fn begin(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let mut mount = self.mount();
        *mount = Mount::None;
        let (session, agreed) =
            self.keep_mask(|| Session::begin(&self.folder.file, capable, self.most, self.read_only()))?;
        *mount = Mount::Live(Arc::new(session), agreed);
        Ok(agreed)
    }

    /// The guest has the folder mounted no more. Its files are closed.
    pub(super) fn end(&self) {
        *self.mount() = Mount::None;
    }

    /// Between two requests: let go of what the host has too much of.
    pub(super) fn trim(&self) {
        let session = match &*self.mount() {
            Mount::Live(session, _) => Arc::clone(session),
            _ => return,
        };
        session.trim();
    }

    /// What the guest has mounted.
    ///
    /// # Errors
    /// If it has not.
    pub(super) fn session(&self) -> io::Result<Arc<Session>> {
        let mut mount = self.mount();
        let session = match &*mount {
            Mount::None => return Err(Errno::IO.into()),
            Mount::Live(session, _) => return Ok(Arc::clone(session)),
            Mount::Saved(saved) => {
                let session =
                    self.keep_mask(|| Session::again(&self.folder.file, saved, self.most, self.read_only()))?;
                (Arc::new(session), FsOptions::from_bits_truncate(saved.features))
            }
        };
        *mount = Mount::Live(Arc::clone(&session.0), session.1);
        Ok(session.0)
    }

    /// What the guest has mounted, to change something in it.
    ///
    /// # Errors
    /// If it has not, or nothing may be changed.
    pub(super) fn writable(&self) -> io::Result<Arc<Session>> {
        if self.read_only() { Err(Errno::ROFS.into()) } else { self.session() }
    }

    /// What is saved of it.
    pub(super) fn save(&self) -> FsState {
        let session = match &*self.mount() {
            Mount::None => None,
            Mount::Saved(saved) => Some(saved.clone()),
            Mount::Live(session, agreed) => Some(session.save(*agreed)),
        };
        FsState { session }
    }

    /// Become what was saved. Files are looked for when the guest asks for them.
    ///
    /// # Errors
    /// If no device can have been that.
    pub(super) fn restore(&self, device: &str, state: &FsState) -> Result<(), RestoreError> {
        let Some(saved) = &state.session else {
            self.end();
            return Ok(());
        };
        saved.check(device, self.most)?;
        *self.mount() = Mount::Saved(saved.clone());
        Ok(())
    }
}

/// This process can have too few files open for so many shared folders.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "too few files can be open at once for {devices} shared folders: raise the limit to {wanted} (ulimit -n {wanted})"
)]
pub struct TooFewDescriptors {
    devices: usize,
    wanted: u64,
}

/// How many files the guest can know by each of so many devices, and how many it can have open: what [`Fs::new`](super::Fs::new) is given.
///
/// # Errors
/// If the limit on open files is too low for that.
pub fn room(devices: usize) -> Result<usize, TooFewDescriptors> {
    split(descriptors::shared_files(), devices)
}

fn split(files: u64, devices: usize) -> Result<usize, TooFewDescriptors> {
    let count = devices.max(1) as u64;
    let each = (files / count).saturating_sub(SLACK as u64) / 2;
    if each < FEWEST {
        let wanted = descriptors::limit_for((SLACK as u64 + 2 * FEWEST).saturating_mul(count));
        return Err(TooFewDescriptors { devices, wanted });
    }
    Ok(usize::try_from(each.min(MOST)).unwrap_or(FEWEST as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_devices_have_is_what_there_is() {
        for (files, devices) in [(512, 1), (300, 1), (100_000, 7), (u64::MAX, 1)] {
            let each = split(files, devices).unwrap() as u64;
            assert!((2 * each + SLACK as u64) * devices as u64 <= files, "{files} {devices}");
        }
        assert_eq!(split(512, 1), Ok(128));
        assert_eq!(split(1 << 40, 1), Ok(1 << 19));
        let error = split(512, 2).unwrap_err();
        assert_eq!(error, TooFewDescriptors { devices: 2, wanted: 1152 });
        assert!(error.to_string().contains("ulimit -n 1152"));
    }
}
