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
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::hub::Hub;
use super::lock;
use super::send::{Cut, send};
use super::tail::Tail;

/// How long a byte may wait for company.
const LINGER: Duration = Duration::from_millis(8);
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

/// Where the bytes go.
pub(super) enum Target {
    /// Nowhere: as asked for, or since nobody reads them any more.
    Nowhere,
    /// To a file of its own.
    File(File),
    /// To everybody who wants what is printed on `stdio`.
    Hub {
        /// Shared with other devices.
        hub: Arc<Hub>,
        /// Standard output is waited for.
        waits: bool,
    },
}

impl Target {
    fn take(&mut self, bytes: &[u8], cut: &Cut) {
        match self {
            Self::Nowhere => {}
            Self::Hub { hub, waits } => hub.print(bytes, cut, waits),
            Self::File(file) => {
                if let Err(error) = send(file, bytes, || cut.is_cut()) {
                    log::warn!("the guest's output is dropped from here on: {error}");
                    *self = Self::Nowhere;
                }
            }
        }
    }
}

struct Pending {
    bytes: Vec<u8>,
    target: Target,
    cut: Cut,
    tail: Arc<Mutex<Tail>>,
    /// A byte was sent within the last [`LINGER`]: the thread looks after those that follow.
    busy: bool,
    ended: bool,
}

impl Pending {
    fn flush(&mut self) {
        self.target.take(&self.bytes, &self.cut);
        lock(&self.tail).push(&self.bytes);
        self.bytes.clear();
    }
}

/// One device's output. Owned by the device; dropping it sends what is left.
pub(crate) struct Output {
    pending: Arc<(Mutex<Pending>, Condvar)>,
    /// Bytes are gathered, and a thread sends what lingers.
    gathers: bool,
    thread: Option<JoinHandle<()>>,
}

impl Output {
    /// Output to `target`, remembered in `tail`, until `cut` at the latest.
    pub(super) fn new(target: Target, cut: Cut, pace: Pace, tail: Arc<Mutex<Tail>>) -> Self {
        let gathers = pace == Pace::Bytes && !matches!(target, Target::Nowhere);
        let pending = Pending { bytes: Vec::new(), target, cut, tail, busy: false, ended: false };
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
        let mut output = Output::new(Target::File(file), Cut::default(), Pace::Bytes, Arc::default());
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
        let mut output = Output::new(Target::File(file), Cut::default(), Pace::Bytes, Arc::default());
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
        let mut output = Output::new(Target::File(file), Cut::default(), Pace::Bytes, Arc::clone(&tail));
        drop(reader);
        output.write_all(b"one\n").unwrap();
        output.write_all(b"two\n").unwrap();
        assert_eq!(lock(&tail).lines(), ["one", "two"]);
    }

    #[test]
    fn a_reader_that_does_not_read_is_waited_for_until_the_output_is_cut() {
        let (reader, file) = pipe();
        let cut = Cut::default();
        let mut output = Output::new(Target::File(file), cut.clone(), Pace::Bytes, Arc::default());
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
        let mut output = Output::new(Target::File(file), Cut::default(), Pace::Pieces, Arc::default());
        let writer = std::thread::spawn(move || output.write_all(&[b'x'; 300_000]).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert_eq!(received.len(), 300_000);
    }
}
