//! What comes from the guest: a bounded buffer and the thread that writes it to the sink.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes that wait for the sink at most.
const CAPACITY: usize = 256 << 10;
/// How long a sink that accepts nothing is waited for when the console goes away.
const LINGER: Duration = Duration::from_millis(500);
/// How often a non-blocking sink that is full is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// The writer's thread and its buffer.
pub(super) struct Output(Arc<Buffer>);

/// Shared by the device's thread, which pushes, and the writer. Lock order: its lock is taken alone.
pub(super) struct Buffer {
    inner: Mutex<Inner>,
    /// Wakes the writer, and whoever waits for it to finish.
    changed: Condvar,
    /// Wakes the device's thread: there is room again.
    room: EventFd,
}

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    /// Bytes the writer has taken out of `bytes` and not written yet.
    writing: usize,
    /// A reservation found no room.
    refused: bool,
    /// The console goes away.
    closed: bool,
}

impl Output {
    /// Start the thread `name` that writes to `sink`.
    pub(super) fn start(name: &str, mut sink: Box<dyn io::Write + Send>) -> io::Result<Self> {
        let room = EventFd::new(EFD_NONBLOCK)?;
        let buffer = Arc::new(Buffer { inner: Mutex::default(), changed: Condvar::new(), room });
        let writer = Arc::clone(&buffer);
        // Not joined: a sink may block for ever. See `drop`.
        crate::worker::named_thread(name).spawn(move || writer.write_out(&mut *sink))?;
        Ok(Self(buffer))
    }

    pub(super) fn buffer(&self) -> Arc<Buffer> {
        Arc::clone(&self.0)
    }

    pub(super) fn room(&self) -> &EventFd {
        &self.0.room
    }
}

impl Drop for Output {
    /// Let the writer finish what there is, as long as its sink takes any of it.
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.closed = true;
        self.0.changed.notify_all();
        while inner.pending() > 0 {
            let before = inner.pending();
            let waited = self.0.changed.wait_timeout(inner, LINGER);
            let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() && after.pending() == before {
                log::debug!("{before} bytes of console output are lost: nobody reads them");
                return;
            }
            inner = after;
        }
    }
}

impl Inner {
    fn pending(&self) -> usize {
        self.bytes.len() + self.writing
    }
}

impl Buffer {
    /// How many bytes of a request that has `len` more can be pushed now: all of them or, unless the buffer is
    /// empty, none. When it is none, or not all, `room` is rung once there is more.
    pub(super) fn reserve(&self, len: u64) -> usize {
        let mut inner = self.lock();
        let room = CAPACITY.saturating_sub(inner.pending());
        let all = usize::try_from(len).ok().filter(|len| *len <= room);
        inner.refused = all.is_none();
        match all {
            Some(len) => len,
            None if inner.pending() == 0 => room,
            None => 0,
        }
    }

    /// Append what was reserved. Only the device's thread pushes, so the room is still there.
    pub(super) fn push(&self, bytes: &[u8]) {
        self.lock().bytes.extend_from_slice(bytes);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer's life: until the console goes away and all is written.
    fn write_out(&self, sink: &mut dyn io::Write) {
        let mut failed = false;
        while let Some(bytes) = self.next() {
            if !failed && let Err(error) = self.write_all(sink, &bytes) {
                // The guest goes on as if somebody listened, like on a serial line.
                log::warn!("console output is lost from here on: {error}");
                failed = true;
            }
            self.written();
        }
    }

    /// The next bytes to write, once there are any; `None` when there will be none.
    fn next(&self) -> Option<Vec<u8>> {
        let inner = self.lock();
        let idle = |inner: &mut Inner| inner.bytes.is_empty() && !inner.closed;
        let mut inner = self.changed.wait_while(inner, idle).unwrap_or_else(PoisonError::into_inner);
        let bytes = std::mem::take(&mut inner.bytes);
        inner.writing = bytes.len();
        (!bytes.is_empty()).then_some(bytes)
    }

    fn written(&self) {
        let mut inner = self.lock();
        inner.writing = 0;
        if std::mem::take(&mut inner.refused) {
            let _ = self.room.write(1);
        }
        drop(inner);
        self.changed.notify_all();
    }

    fn write_all(&self, sink: &mut dyn io::Write, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match sink.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Terminals are shared, and any of those who share one can make it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
                Err(error) => return Err(error),
            }
            self.lock().writing = bytes.len();
            self.changed.notify_all();
        }
        sink.flush()
    }
}
