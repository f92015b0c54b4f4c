//! The VM's side of saving: what is made ready, the fork, and the wait for its end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arch::memory::GuestRam;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::child::{self, Failure, Job};
use super::error::MemoryFileError;
use super::image::Image;
use super::index::Index;
use super::message::Message;
use super::progress::Progress;
use crate::memory;
use crate::spec::Memory;

/// How often progress is told, in nanoseconds.
const PERIOD: i64 = 50_000_000;

/// All that can be done before the pause.
pub struct Saver {
    job: Job,
    result: OwnedFd,
    target: Target,
}

/// What is being saved.
#[derive(Debug)]
struct Target {
    path: PathBuf,
    size: u64,
    hugepages: bool,
    parent: Arc<Image>,
    progress: Arc<Progress>,
}

/// A process that saves. Dropped, it is ended; what it has written stays.
#[derive(Debug)]
pub struct Saving {
    child: Child,
    result: OwnedFd,
    target: Target,
}

/// What was saved; the memory file is durable, but for its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Which pages it holds.
    pub index: Index,
    /// How many bytes those have.
    pub stored: u64,
}

impl Saver {
    /// Make ready to save `ram` to the new file `path`, as what differs from `parent`. `mapped` is what `ram` was before the guest
    /// wrote to it, and `hugepages` whether it is of huge pages.
    ///
    /// # Errors
    /// If the file exists or cannot be made, the images are of other RAM, or the host refuses.
    pub fn prepare(
        ram: &GuestRam,
        hugepages: bool,
        mapped: &Arc<Image>,
        parent: &Arc<Image>,
        path: &Path,
    ) -> Result<Self, MemoryFileError> {
        let extents = memory::extents(ram);
        let size = extents.iter().map(|extent| extent.addresses().len() as u64).sum();
        for image in [mapped, parent] {
            image.check_size(Memory(size))?;
        }
        let prepare = |what| move |source: io::Error| MemoryFileError::Prepare { what, source };
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let data = options.open(path).map_err(MemoryFileError::file("create", path))?;
        data.set_len(size).map_err(MemoryFileError::file("size", path))?;
        let progress = Arc::new(Progress::new().map_err(prepare("share memory with a process"))?);
        let (result, child_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| prepare("make a pipe")(error.into()))?;
        let job = Job {
            extents,
            differing: mapped.differing(parent),
            mapped: Arc::clone(mapped),
            parent: Arc::clone(parent),
            data,
            result: child_end,
            progress: Arc::clone(&progress),
            // SAFETY: has no preconditions.
            vm: unsafe { libc::getpid() },
        };
        let parent = Arc::clone(parent);
        Ok(Self { job, result, target: Target { path: path.to_owned(), size, hugepages, parent, progress } })
    }

    /// Take the memory as it is now: nobody writes to it during this call. The caller's thread lives for as long as the VM
    /// does: when it ends, so does the saving.
    ///
    /// # Errors
    /// If there can be no further process.
    pub fn fork(self) -> Result<Saving, MemoryFileError> {
        let Self { job, result, target } = self;
        let signals = Signals::block();
        // SAFETY: the child runs `child::run` alone, which keeps to what may be done behind the fork of a process that has
        // other threads, and never returns.
        let pid = unsafe { libc::fork() };
        let error = io::Error::last_os_error();
        if pid == 0 {
            child::run(&job);
        }
        drop(signals);
        if pid < 0 {
            return Err(MemoryFileError::Prepare { what: "start a process", source: error });
        }
        Ok(Saving { child: Child(Some(pid)), result, target })
    }
}

#[cfg(test)]
impl Saver {
    /// Write to `data` instead.
    pub(super) fn to(mut self, data: File) -> Self {
        self.job.data = data;
        self
    }
}

#[cfg(test)]
impl Saving {
    pub(super) fn pid(&self) -> libc::pid_t {
        self.child.0.unwrap()
    }

    pub(super) fn progress(&self) -> (u64, u64) {
        self.target.progress.get()
    }
}

impl Saving {
    /// Wait for the end, and tell `progress` now and then how many bytes of how many were looked at; it may break that off.
    ///
    /// # Errors
    /// If not everything was saved.
    pub fn finish(
        self,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<Saved, MemoryFileError> {
        let Self { child, result, target } = self;
        let received = receive(result, || {
            let (done, total) = target.progress.get();
            progress(done, total)
        });
        let received = received.map_err(MemoryFileError::file("read what became of", &target.path))?;
        let Some(bytes) = received else { return Err(MemoryFileError::Cancelled) };
        let status = child.wait().map_err(MemoryFileError::file("wait for what writes", &target.path))?;
        match Message::decode(&bytes) {
            Some(Message::Saved { crc32, runs }) => {
                let index = Index::new(target.size, runs, crc32)?;
                Ok(Saved { stored: index.stored(), index })
            }
            Some(Message::Failed(failure)) => Err(target.failed(failure)),
            None => Err(target.ended(status)),
        }
    }
}

impl Target {
    fn failed(self, failure: Failure) -> MemoryFileError {
        let Failure { step, layer, error: source } = failure;
        // The kernel took the page from this process, for the VM.
        if self.hugepages && source.raw_os_error() == Some(libc::EFAULT) {
            return MemoryFileError::HugePages;
        }
        let theirs = layer.and_then(|layer| self.parent.path(layer)).map(Path::to_owned);
        MemoryFileError::Save { step, path: theirs.unwrap_or(self.path), source }
    }

    fn ended(self, status: i32) -> MemoryFileError {
        if !libc::WIFSIGNALED(status) {
            return MemoryFileError::Lost(libc::WEXITSTATUS(status));
        }
        match libc::WTERMSIG(status) {
            libc::SIGBUS if self.hugepages => MemoryFileError::HugePages,
            signal => MemoryFileError::Killed(signal),
        }
    }
}

/// Everything that comes until the other end is closed, with a call of `tick` at least every [`PERIOD`]; `None` if that says so.
fn receive(from: OwnedFd, mut tick: impl FnMut() -> ControlFlow<()>) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    let mut from = File::from(from);
    loop {
        let period = Timespec { tv_sec: 0, tv_nsec: PERIOD };
        let mut ready = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut ready, Some(&period)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {
                if tick().is_break() {
                    return Ok(None);
                }
                continue;
            }
            result => result?,
        };
        match from.read(&mut buffer) {
            Ok(0) => {
                let _ = tick();
                return Ok(Some(bytes));
            }
            Ok(read) => bytes.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A child process, until it was waited for.
#[derive(Debug)]
struct Child(Option<libc::pid_t>);

impl Child {
    /// Wait for its end. Returns its wait status.
    fn wait(mut self) -> io::Result<i32> {
        self.reap()
    }

    fn reap(&mut self) -> io::Result<i32> {
        let Some(pid) = self.0 else { return Ok(0) };
        let mut status = 0;
        loop {
            // SAFETY: the status is ours to write; the child is ours, and is waited for here alone.
            if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                self.0 = None;
                return Err(error);
            }
        }
        self.0 = None;
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // SAFETY: nobody has waited for the child: the number is still its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            let _ = self.reap();
        }
    }
}

/// No signal reaches this thread, until dropped, nor ever a process that is forked meanwhile: its handlers are the VM's.
struct Signals(libc::sigset_t);

impl Signals {
    fn block() -> Self {
        let mut all = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        let mut old = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both sets are ours to write, and zeros are a set.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
            Self(old.assume_init())
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: puts back what was read before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}
