//! How far the saving process is, in memory that it shares with the VM's.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Two numbers on a page that survives a fork as one.
#[derive(Debug)]
pub(super) struct Progress(NonNull<Figures>);

#[derive(Debug)]
struct Figures {
    done: AtomicU64,
    total: AtomicU64,
}

// SAFETY: the page holds atomics alone and stays mapped until this is dropped; there is no other way to it.
unsafe impl Send for Progress {}
// SAFETY: as above.
unsafe impl Sync for Progress {}

impl Progress {
    pub(super) fn new() -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let (len, prot) = (size_of::<Figures>(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn figures(&self) -> &Figures {
        // SAFETY: the page is mapped, aligned, and zero is a number.
        unsafe { self.0.as_ref() }
    }

    pub(super) fn set_total(&self, bytes: u64) {
        self.figures().total.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn add(&self, bytes: u64) {
        self.figures().done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What was looked at, of how much, in bytes.
    pub(super) fn get(&self) -> (u64, u64) {
        let figures = self.figures();
        (figures.done.load(Ordering::Relaxed), figures.total.load(Ordering::Relaxed))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // SAFETY: the page is ours alone, and nobody can get at it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<Figures>()) };
    }
}
