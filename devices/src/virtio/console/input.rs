//! What goes to the guest: bytes and the terminal's size. Shared by the vmm's handle and the device's thread.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ConsoleSize;

/// Bytes that wait for the guest at most.
const CAPACITY: usize = 64 << 10;

/// Lock order: the buffer's lock is taken alone.
pub(super) struct Shared {
    buffer: Mutex<Pending>,
    /// Wakes the device's thread: there is input, or a new size.
    ready: EventFd,
    /// Wakes whoever pushes: there is room again.
    room: EventFd,
    /// Whether there is a size to tell.
    sized: bool,
    /// Columns in the lower half, rows in the upper: read and written at once.
    size: AtomicU32,
    resized: AtomicBool,
}

#[derive(Default)]
struct Pending {
    bytes: VecDeque<u8>,
    /// A push found no room.
    refused: bool,
}

impl Shared {
    pub(super) fn new(size: Option<ConsoleSize>) -> io::Result<Self> {
        Ok(Self {
            buffer: Mutex::default(),
            ready: EventFd::new(EFD_NONBLOCK)?,
            room: EventFd::new(EFD_NONBLOCK)?,
            sized: size.is_some(),
            size: AtomicU32::new(pack(size.unwrap_or_default())),
            resized: AtomicBool::new(false),
        })
    }

    pub(super) fn ready(&self) -> &EventFd {
        &self.ready
    }

    pub(super) fn size(&self) -> Option<ConsoleSize> {
        let size = self.size.load(Ordering::SeqCst);
        self.sized.then_some(ConsoleSize { columns: size as u16, rows: (size >> 16) as u16 })
    }

    /// Whether the size changed and the guest was not told.
    pub(super) fn is_resized(&self) -> bool {
        self.resized.load(Ordering::SeqCst)
    }

    /// Become what was saved.
    pub(super) fn restore(&self, size: ConsoleSize, resized: bool) {
        self.size.store(pack(size), Ordering::SeqCst);
        self.resized.store(resized, Ordering::SeqCst);
        let _ = self.ready.write(1);
    }

    /// Whether the size changed since the last call.
    pub(super) fn take_resized(&self) -> bool {
        self.resized.swap(false, Ordering::SeqCst)
    }

    /// Fill `out` from the buffer; returns how much there was.
    pub(super) fn pull(&self, out: &mut [u8]) -> usize {
        let mut pending = self.lock();
        let count = pending.bytes.len().min(out.len());
        for (to, from) in out.iter_mut().zip(pending.bytes.drain(..count)) {
            *to = from;
        }
        if count > 0 && std::mem::take(&mut pending.refused) {
            let _ = self.room.write(1);
        }
        count
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pack(size: ConsoleSize) -> u32 {
    u32::from(size.rows) << 16 | u32::from(size.columns)
}

/// The vmm's end of a console's input. Works whether the device is active or not; what the guest does not read
/// waits. Cheap to clone, usable from any thread, never blocks.
#[derive(Clone)]
pub struct ConsoleInput(Arc<Shared>);

impl ConsoleInput {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Give `bytes` to the guest. Returns how many were taken, fewer than given when the buffer is full: the
    /// caller keeps the rest until [`ConsoleInput::room`] is readable.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut pending = self.0.lock();
        let taken = bytes.len().min(CAPACITY.saturating_sub(pending.bytes.len()));
        pending.bytes.extend(bytes.iter().take(taken));
        pending.refused = taken < bytes.len();
        drop(pending);
        if taken > 0 {
            let _ = self.0.ready.write(1);
        }
        taken
    }

    /// Readable when there is room again after a push that was not taken whole. Non-blocking; the caller
    /// reads it before the next push.
    #[must_use]
    pub fn room(&self) -> &EventFd {
        &self.0.room
    }

    /// The terminal has a new size. Nothing happens on a console that was made without one.
    pub fn resize(&self, size: ConsoleSize) {
        if self.0.sized && self.0.size.swap(pack(size), Ordering::SeqCst) != pack(size) {
            self.0.resized.store(true, Ordering::SeqCst);
            let _ = self.0.ready.write(1);
        }
    }
}
