//! Where a character device's output goes.
//!
//! A serial port hands over one byte at a time, each from its own VM exit, on a vCPU thread. A system call for each
//! would cost more than the exit, a buffer alone would hold a prompt back. So the first byte after a pause
//! goes out at once, what follows closely is gathered until a line ends, and a `console-out` thread
//! sends what is left after [`LINGER`].
//!
//! The buffer's lock is held over the write itself: output stays in order, and a guest whose reader is slow is slowed
//! down, as it would be by a real port.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::tail::Tail;

/// How long a byte may wait for company.
const LINGER: Duration = Duration::from_millis(2);
/// How much is gathered at most.
const GATHERED: usize = 1024;

/// How a device hands over its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// One by one, on a vCPU thread.
    Bytes,
    /// In pieces, on a thread of its own.
    Pieces,
}

struct Pending {
    bytes: Vec<u8>,
    /// `None` drops the output: as asked for, or since nobody reads it any more.
    file: Option<File>,
    flushed: Option<Instant>,
    /// The thread waits to be told of bytes.
    idle: bool,
    ended: bool,
}

impl Pending {
    fn flush(&mut self) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(&self.bytes)
        {
            log::warn!("the guest's output is dropped from here on: {error}");
            self.file = None;
        }
        self.bytes.clear();
        self.flushed = Some(Instant::now());
    }
}

/// One device's output. Owned by the device; dropping it sends what is left.
pub(crate) struct Output {
    pending: Arc<(Mutex<Pending>, Condvar)>,
    tail: Arc<Mutex<Tail>>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    /// Output to `file`, remembered in `tail`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start(file: Option<File>, pace: Pace, tail: Arc<Mutex<Tail>>) -> io::Result<Self> {
        let threaded = file.is_some() && pace == Pace::Bytes;
        let pending = Pending { bytes: Vec::new(), file, flushed: None, idle: false, ended: false };
        let pending = Arc::new((Mutex::new(pending), Condvar::new()));
        let thread = if threaded {
            let pending = Arc::clone(&pending);
            let builder = devices::worker::named_thread("console-out");
            Some(builder.spawn(move || send_late_bytes(&pending))?)
        } else {
            None
        };
        Ok(Self { pending, tail, thread })
    }
}

/// The `console-out` thread.
fn send_late_bytes((pending, bytes): &(Mutex<Pending>, Condvar)) {
    let mut guard = lock(pending);
    while !guard.ended {
        if guard.bytes.is_empty() {
            guard.idle = true;
            guard = bytes.wait(guard).unwrap_or_else(PoisonError::into_inner);
            guard.idle = false;
        } else {
            guard = bytes.wait_timeout(guard, LINGER).unwrap_or_else(PoisonError::into_inner).0;
            if !guard.bytes.is_empty() {
                guard.flush();
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        lock(&self.tail).push(data);
        let mut pending = lock(&self.pending.0);
        if pending.file.is_none() {
            return Ok(data.len());
        }
        pending.bytes.extend_from_slice(data);
        let rested = self.thread.is_none() || pending.flushed.is_none_or(|last| last.elapsed() > LINGER);
        if rested || data.contains(&b'\n') || pending.bytes.len() >= GATHERED {
            pending.flush();
        } else if pending.idle {
            pending.idle = false;
            self.pending.1.notify_one();
        }
        Ok(data.len())
    }

    /// Nothing: what is gathered goes out soon by itself, and devices call this after every byte.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        {
            let mut pending = lock(&self.pending.0);
            pending.flush();
            pending.ended = true;
            self.pending.1.notify_one();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pipe() -> (io::PipeReader, File) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, File::from(std::os::fd::OwnedFd::from(writer)))
    }

    #[test]
    fn output_arrives_in_order_and_in_full() {
        let (mut reader, file) = pipe();
        let mut output = Output::start(Some(file), Pace::Bytes, Arc::default()).unwrap();
        let sent: Vec<u8> =
            (0..20_000_u32).map(|n| if n % 70 == 0 { b'\n' } else { (n % 251) as u8 }).collect();
        let expected = sent.clone();
        let writer = std::thread::spawn(move || {
            for byte in sent {
                output.write_all(&[byte]).unwrap();
            }
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert!(received == expected);
    }

    #[test]
    fn a_prompt_without_a_newline_is_not_held_back() {
        let (mut reader, file) = pipe();
        let mut output = Output::start(Some(file), Pace::Bytes, Arc::default()).unwrap();
        for byte in b"login: " {
            output.write_all(&[*byte]).unwrap();
        }
        // Blocks for ever if it never comes: the output is still open.
        let mut received = [0; 7];
        reader.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"login: ");
    }

    #[test]
    fn a_reader_that_goes_away_is_no_error_and_the_tail_goes_on() {
        let (reader, file) = pipe();
        let tail = Arc::<Mutex<Tail>>::default();
        let mut output = Output::start(Some(file), Pace::Bytes, Arc::clone(&tail)).unwrap();
        drop(reader);
        output.write_all(b"one\n").unwrap();
        output.write_all(b"two\n").unwrap();
        assert_eq!(lock(&tail).lines(), ["one", "two"]);
    }
}
