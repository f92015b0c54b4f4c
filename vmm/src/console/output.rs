//! Where a character device's output goes.
//!
//! A serial port hands over one byte at a time, each from its own VM exit, on a vCPU thread. A system call for each
//! would cost more than the exit, a buffer alone would hold a prompt back. So the first byte after a pause
//! goes out at once, what follows closely is gathered until a line ends, and a `console-out` thread
//! sends what is left after [`LINGER`].
//!
//! ```text
//!            a byte: sent
//!   quiet ────────────────► busy: bytes gather; sent when a line ends, when they are many, and every LINGER
//!     ▲                       │
//!     └─ nothing in a LINGER ─┘
//! ```
//!
//! The buffer's lock is held over the write itself: output stays in order, and a guest whose reader is slow is slowed
//! down, as it would be by a real port. It may be slowed down for ever, by a terminal that is stopped or a pipe that
//! nobody reads, so nothing here blocks in the write: it waits for room, and gives up when the output is [`Cut`].

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::tail::Tail;

/// How long a byte may wait for company.
const LINGER: Duration = Duration::from_millis(8);
/// How much is gathered at most.
const GATHERED: usize = 1024;

/// How much is written at once: so much fits a pipe that has any room at all (`PIPE_BUF`).
const PIECE: usize = 4096;
/// How often a writer that waits for its reader looks whether it is cut.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Tells outputs that their readers are not worth waiting for any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cut(Arc<AtomicBool>);

impl Cut {
    /// From now on, what cannot be written at once is dropped.
    pub(crate) fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_cut(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

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
    cut: Cut,
    tail: Arc<Mutex<Tail>>,
    /// A byte was sent within the last [`LINGER`]: the thread looks after those that follow.
    busy: bool,
    ended: bool,
}

impl Pending {
    fn flush(&mut self) {
        lock(&self.tail).push(&self.bytes);
        if let Some(file) = &mut self.file
            && let Err(error) = send(file, &self.bytes, &self.cut)
        {
            log::warn!("the guest's output is dropped from here on: {error}");
            self.file = None;
        }
        self.bytes.clear();
    }
}

/// Write all of `bytes`, at the pace of whoever reads them.
///
/// # Errors
/// If the host refuses, or `cut` ends the wait (`TimedOut`).
fn send(file: &mut File, mut bytes: &[u8], cut: &Cut) -> io::Result<()> {
    while !bytes.is_empty() {
        wait_for_room(file, cut)?;
        match file.write(bytes.get(..PIECE).unwrap_or(bytes)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            // Whoever shares the open file may have made it non-blocking, and may be faster to fill it.
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_for_room(file: &File, cut: &Cut) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&LOOK)) {
            Ok(0) if cut.is_cut() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(Errno::INTR) => {}
            // Room, or an error that the write will tell.
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// One device's output. Owned by the device; dropping it sends what is left.
pub(crate) struct Output {
    pending: Arc<(Mutex<Pending>, Condvar)>,
    /// Bytes are gathered, and a thread sends what lingers.
    gathers: bool,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    /// Output to `file`, remembered in `tail`, until `cut` at the latest.
    pub(crate) fn new(file: Option<File>, cut: Cut, pace: Pace, tail: Arc<Mutex<Tail>>) -> Self {
        let gathers = file.is_some() && pace == Pace::Bytes;
        let pending = Pending { bytes: Vec::new(), file, cut, tail, busy: false, ended: false };
        Self { pending: Arc::new((Mutex::new(pending), Condvar::new())), gathers, thread: None }
    }

    /// There is a thread from the first byte on, not before: nothing is to delay that byte.
    fn start_thread(&mut self) {
        let pending = Arc::clone(&self.pending);
        match devices::worker::named_thread("console-out").spawn(move || send_late_bytes(&pending)) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => {
                log::warn!("every byte of the guest's output is written by itself: {error}");
                self.gathers = false;
            }
        }
    }
}

/// The `console-out` thread.
fn send_late_bytes((pending, woken): &(Mutex<Pending>, Condvar)) {
    let mut guard = lock(pending);
    while !guard.ended {
        if !guard.busy {
            guard = woken.wait(guard).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let sent_before = guard.bytes.is_empty();
        guard = woken.wait_timeout(guard, LINGER).unwrap_or_else(PoisonError::into_inner).0;
        if !guard.bytes.is_empty() {
            guard.flush();
        } else if sent_before {
            guard.busy = false;
        }
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut pending = lock(&self.pending.0);
        pending.bytes.extend_from_slice(data);
        let quiet = !pending.busy;
        if quiet || data.contains(&b'\n') || pending.bytes.len() >= GATHERED {
            pending.flush();
        }
        drop(pending);
        if quiet && self.gathers && self.thread.is_none() {
            self.start_thread();
        }
        // Without a thread it is never busy: everything goes at once.
        if quiet && self.gathers {
            lock(&self.pending.0).busy = true;
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
        let mut output = Output::new(Some(file), Cut::default(), Pace::Bytes, Arc::default());
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
        let mut output = Output::new(Some(file), Cut::default(), Pace::Bytes, Arc::default());
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
        let mut output = Output::new(Some(file), Cut::default(), Pace::Bytes, Arc::clone(&tail));
        drop(reader);
        output.write_all(b"one\n").unwrap();
        output.write_all(b"two\n").unwrap();
        assert_eq!(lock(&tail).lines(), ["one", "two"]);
    }

    #[test]
    fn a_reader_that_does_not_read_is_waited_for_until_the_output_is_cut() {
        let (reader, file) = pipe();
        let cut = Cut::default();
        let mut output = Output::new(Some(file), cut.clone(), Pace::Bytes, Arc::default());
        let (told, ended) = std::sync::mpsc::channel();
        // Joined by nobody: if this does not end, the test fails and does not hang.
        std::thread::spawn(move || {
            for _ in 0..100 {
                output.write_all(&[b'x'; 4096]).unwrap();
            }
            drop(output);
            told.send(()).unwrap();
        });
        assert!(ended.recv_timeout(Duration::from_millis(300)).is_err(), "a pipe does not hold so much");
        cut.cut();
        ended.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(reader);
    }

    #[test]
    fn a_file_that_somebody_made_non_blocking_gets_all_the_same() {
        let (mut reader, file) = pipe();
        rustix::io::ioctl_fionbio(&file, true).unwrap();
        let mut output = Output::new(Some(file), Cut::default(), Pace::Pieces, Arc::default());
        let writer = std::thread::spawn(move || output.write_all(&[b'x'; 300_000]).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert_eq!(received.len(), 300_000);
    }
}
