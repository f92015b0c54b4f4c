//! The end of RAM that is no longer in use.
//!
//! To close a VM takes KVM up to 20 ms, and to unmap 1 GiB takes 27 ms in pages of 4 KiB, which a rollback need not wait for; and all that time nobody else in the process may
//! map anything. So it is done on a thread of its own, `reaper`, a piece at a time.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use arch::memory::{GuestRam, SharedRam};

use crate::memory;
use crate::named_thread;

/// How many pages are given back at once: 16 MiB, in 0.4 ms.
const PIECE: u32 = 4096;

/// Takes RAM that is no longer used. It works on one and lets one wait; who brings a third waits, so that a VM that is rolled
/// back often does not grow. Dropped, it ends when all is done.
#[derive(Debug)]
pub struct Reaper {
    inbox: Option<SyncSender<Retired>>,
    thread: Option<JoinHandle<()>>,
}

/// What a machine leaves behind.
struct Retired {
    /// Goes first: it has the RAM mapped, too.
    vm: Box<dyn Send>,
    ram: SharedRam,
}

impl Reaper {
    /// Start its thread.
    ///
    /// # Errors
    /// If the host has none to give.
    pub fn start() -> io::Result<Self> {
        let (inbox, outbox) = sync_channel(1);
        let thread = named_thread("reaper").spawn(move || reap(&outbox))?;
        Ok(Self { inbox: Some(inbox), thread: Some(thread) })
    }

    /// Drop `vm`, and then give `ram`, which was shown to it, back to the host if nobody else holds it.
    pub fn take(&self, vm: impl Send + 'static, ram: SharedRam) {
        if let Some(inbox) = &self.inbox {
            // Without the thread it is given back here.
            let _ = inbox.send(Retired { vm: Box::new(vm), ram });
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.inbox = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn reap(outbox: &Receiver<Retired>) {
    while let Ok(Retired { vm, ram }) = outbox.recv() {
        drop(vm);
        // Whoever else holds it gives it back when done.
        if let Some(ram) = Arc::into_inner(ram) {
            empty(&ram);
        }
    }
}

/// Give all pages back.
fn empty(ram: &GuestRam) {
    for extent in memory::extents(ram) {
        for first in extent.pages.clone().step_by(PIECE as usize) {
            let pages = first..extent.pages.end.min(first.saturating_add(PIECE));
            if let Some((start, len)) = extent.place(&pages) {
                // SAFETY: `ram` is ours alone and nothing points into it. Where the kernel refuses, unmapping does it.
                unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Memory, MemorySpec};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn ram_is_gone_once_its_last_holder_is() {
        let spec = MemorySpec { size: Memory(64 << 20), hugepages: false, overcommit: false };
        let reaper = Reaper::start().unwrap();
        let mut gone = Vec::new();
        for _ in 0..5 {
            let ram = memory::reserve(&spec).unwrap();
            ram.write_slice(&[1], GuestAddress(40 << 20)).unwrap();
            gone.push(Arc::downgrade(&ram));
            reaper.take((), ram);
        }
        let held = memory::reserve(&spec).unwrap();
        reaper.take((), Arc::clone(&held));
        drop(reaper);
        assert!(gone.iter().all(|ram| ram.upgrade().is_none()));
        held.write_slice(&[1], GuestAddress(40 << 20)).unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
