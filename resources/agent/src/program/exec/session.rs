//! [`Session`]: the bytes between a running command and who asked for it.
//!
//! One loop over `poll`; every descriptor is non-blocking, nothing in it waits on one side only. What is held is bounded:
//!
//! - Output is read only while less than [`MAX_OUT`] waits for the other side: a command whose output is not read waits.
//! - Frames are read only while no more than [`WINDOW`] of input waits for the command. Whoever heeds that window is always heard: signals
//!   and sizes get through to a command that does not read. Whoever does not waits with them like the input before. Leaving is always
//!   noticed.
//!
//! When the command has ended, what it wrote is carried to the end. What children of its write that still hold its pipes is carried for
//! [`AFTERWARDS`] more. When the other side leaves, the command is hung up, and killed [`GRACE`] later; one that it has released runs on.

use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::frame::{self, Frame, MAX_FRAME};
use agent::message::{Control, Heard};

use super::pty;
use super::spawn::{Io, Started};
use crate::children::Child;
use crate::stream::Stream;
use crate::sys::{self, polled};

/// Bytes for the other side that may wait.
const MAX_OUT: usize = 256 * 1024;
/// Bytes for the command that may wait.
pub const WINDOW: usize = 1 << 20;
/// Bytes that it has taken before the other side is told, unless nothing waits.
const TELL: usize = 64 * 1024;
/// How long, and how much of, the output of a command that has ended is awaited. A pipe holds no more than this.
const AFTERWARDS: Duration = Duration::from_millis(100);
const MAX_AFTERWARDS: usize = 1 << 20;
/// From SIGHUP to SIGKILL, and from there to giving up.
const GRACE: Duration = Duration::from_secs(5);

/// Bytes in a row, put in at the end and taken from the front.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    taken: usize,
}

impl Queue {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.rest().len()
    }

    fn take(&mut self, count: usize) {
        self.taken = self.taken.saturating_add(count);
        // What was taken is at least as much as what is moved: each byte is moved once.
        if self.taken >= self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        } else if self.taken >= self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Something that the command writes.
#[derive(Debug)]
struct Source {
    file: Option<File>,
    stream: frame::Stream,
    /// Bytes since the command has ended.
    afterwards: usize,
}

/// Read what there is, at most [`MAX_FRAME`], to where it stays.
fn read_behind(from: impl AsFd, bytes: &mut Vec<u8>) -> io::Result<usize> {
    bytes.reserve(MAX_FRAME);
    let room = bytes.spare_capacity_mut().get_mut(..MAX_FRAME).unwrap_or_default();
    let (read, _) = rustix::io::read(from, room)?;
    let (count, len) = (read.len(), bytes.len());
    // SAFETY: so many bytes behind the last have been written, and there is room for them.
    unsafe { bytes.set_len(len.saturating_add(count)) };
    Ok(count)
}

/// A running command and who asked for it.
#[derive(Debug)]
pub struct Session {
    /// `None` once the other side has left.
    stream: Option<Stream>,
    /// What has come and is no whole frame yet.
    received: Queue,
    /// Frames for the other side.
    out: Queue,
    child: Arc<Child>,
    /// The command's terminal, or its standard input.
    input: Option<File>,
    terminal: bool,
    /// For the command.
    pending: Queue,
    /// Bytes that have come for it, less those that the other side knows to be taken.
    untold: usize,
    /// Nothing follows what is pending.
    input_ended: bool,
    sources: [Source; 2],
    /// When the command's end was noticed.
    ended: Option<Instant>,
    /// When the other side's end was noticed.
    left: Option<Instant>,
    /// The command is not to end for that.
    released: bool,
    killed: bool,
}

impl Session {
    /// Carry the bytes of what was `started`; `accepted` is said first. Without `takes_input` all input is dropped.
    pub fn new(stream: Stream, started: Started, takes_input: bool, accepted: &Frame) -> io::Result<Self> {
        sys::set_blocking(&stream, false)?;
        let terminal = matches!(started.io, Io::Terminal(_));
        let (input, output, error) = match started.io {
            Io::Terminal(master) => {
                (takes_input.then(|| master.try_clone()).transpose()?, Some(master), None)
            }
            Io::Pipes { input, output, error } => (input, Some(output), Some(error)),
            Io::Detached => (None, None, None),
        };
        let file = |fd: Option<OwnedFd>| -> io::Result<Option<File>> {
            fd.as_ref().map(|fd| sys::set_blocking(fd, false)).transpose()?;
            Ok(fd.map(File::from))
        };
        let mut out = Queue::default();
        accepted.write(&mut out.bytes)?;
        Ok(Self {
            stream: Some(stream),
            received: Queue::default(),
            out,
            child: started.child,
            input: file(input)?,
            terminal,
            pending: Queue::default(),
            untold: 0,
            input_ended: false,
            sources: [
                Source { file: file(output)?, stream: frame::Stream::Output, afterwards: 0 },
                Source { file: file(error)?, stream: frame::Stream::Error, afterwards: 0 },
            ],
            ended: None,
            left: None,
            released: false,
            killed: false,
        })
    }

    /// Until the command has ended and the other side knows all of it, or has left. Returns the connection in the first case.
    ///
    /// # Errors
    /// If `poll` fails. The command is hung up then, too.
    pub fn run(mut self) -> io::Result<Option<Stream>> {
        loop {
            if let Err(error) = self.turn() {
                self.child.signal(libc::SIGKILL);
                return Err(error);
            }
            self.note_the_end();
            match (self.left, self.ended) {
                (Some(_), Some(_)) => return Ok(None),
                (Some(_), None) if self.released => {}
                (Some(since), None) if self.killed && since.elapsed() > GRACE.saturating_mul(2) => {
                    return Ok(None);
                }
                (Some(since), None) if !self.killed && since.elapsed() >= GRACE => {
                    self.killed = true;
                    self.child.signal(libc::SIGKILL);
                }
                (None, Some(_)) if self.sources.iter().all(|source| source.file.is_none()) => break,
                _ => {}
            }
        }
        if let Some(how) = self.child.how() {
            Frame::message(&how)?.write(&mut self.out.bytes)?;
        }
        while self.left.is_none() && self.out.len() > 0 {
            let gone = libc::POLLRDHUP;
            let stream = self.stream.as_ref().map(|stream| stream.as_fd());
            let mut files = [polled(stream, libc::POLLOUT | gone)];
            sys::poll(&mut files, -1)?;
            self.send();
            if files[0].revents & (gone | libc::POLLERR | libc::POLLHUP) != 0 && self.out.len() > 0 {
                self.leave();
            }
        }
        Ok(self.stream)
    }

    /// Wait for something and do it.
    fn turn(&mut self) -> io::Result<()> {
        let mut socket = libc::POLLRDHUP;
        let hear = self.pending.len() <= WINDOW;
        if hear {
            socket |= libc::POLLIN;
        }
        if self.out.len() > 0 {
            socket |= libc::POLLOUT;
        }
        let room = self.out.len() < MAX_OUT;
        let input = self.input.as_ref().filter(|_| self.pending.len() > 0);
        let [output, error] =
            [0, 1].map(|at| self.sources.get(at).and_then(|source| source.file.as_ref()).filter(|_| room));
        let mut files = [
            polled(self.stream.as_ref().map(|stream| stream.as_fd()), socket),
            polled(input.map(|file| file.as_fd()), libc::POLLOUT),
            polled(output.map(|file| file.as_fd()), libc::POLLIN),
            polled(error.map(|file| file.as_fd()), libc::POLLIN),
            polled(self.ended.is_none().then(|| self.child.as_fd()), libc::POLLIN),
        ];
        sys::poll(&mut files, self.timeout())?;
        let [socket, input, output, error, _] = files.map(|file| file.revents);
        if input != 0 {
            self.feed();
        }
        if output != 0 {
            self.read(0);
        }
        if error != 0 {
            self.read(1);
        }
        self.tell();
        if self.out.len() > 0 {
            self.send();
        }
        if hear && socket & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
            self.hear();
        } else if socket & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0 {
            self.leave();
        }
        Ok(())
    }

    fn timeout(&self) -> i32 {
        let due = match (self.left, self.ended) {
            (Some(_), None) if self.released => None,
            (Some(since), _) if self.killed => Some((since, GRACE.saturating_mul(2))),
            (Some(since), _) => Some((since, GRACE)),
            // Who does not read is waited for: what the command has written is theirs.
            (None, Some(since)) if self.out.len() < MAX_OUT => Some((since, AFTERWARDS)),
            (None, _) => None,
        };
        due.map_or(-1, |(since, period)| {
            let rest = period.saturating_sub(since.elapsed()).as_millis().saturating_add(1);
            i32::try_from(rest).unwrap_or(i32::MAX)
        })
    }

    /// See whether the command has ended, and afterwards whether its pipes have.
    fn note_the_end(&mut self) {
        let Some(since) = self.ended else {
            if self.child.how().is_some() {
                self.ended = Some(Instant::now());
                self.input = None;
                self.pending.clear();
            }
            return;
        };
        if since.elapsed() < AFTERWARDS {
            return;
        }
        for at in 0..self.sources.len() {
            // Nothing is left in it, or more than the command can have written.
            let waits = self.out.len() < MAX_OUT && !self.read(at);
            if let Some(source) = self.sources.get_mut(at)
                && (waits || source.afterwards > MAX_AFTERWARDS)
            {
                source.file = None;
            }
        }
    }

    /// Read from the command. Says whether there was something, the end included.
    fn read(&mut self, at: usize) -> bool {
        let Some(source) = self.sources.get_mut(at) else { return false };
        let Some(file) = source.file.as_ref() else { return false };
        let put = |bytes: &mut Vec<u8>| read_behind(file, bytes);
        match Frame::append(source.stream, &mut self.out.bytes, put) {
            Ok(count) if count > 0 => {
                if self.ended.is_some() {
                    source.afterwards = source.afterwards.saturating_add(count);
                }
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted) => true,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => false,
            // A terminal that nobody has open any more is an error.
            Ok(_) | Err(_) => {
                source.file = None;
                true
            }
        }
    }

    /// Write to the command.
    fn feed(&mut self) {
        if let Some(input) = self.input.as_mut().filter(|_| self.pending.len() > 0) {
            match input.write(self.pending.rest()) {
                Ok(count) => self.pending.take(count),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                // It does not read any more. That is no fault, and the rest of the input is dropped.
                Err(_) => self.input = None,
            }
        }
        self.end_input();
    }

    /// Once all of the input is with the command: the end of it.
    fn end_input(&mut self) {
        if self.input.is_none() {
            self.pending.clear();
        } else if self.input_ended && self.pending.len() == 0 && !self.terminal {
            self.input = None;
        }
    }

    /// Tell the other side how much of its input has gone to the command, or is of no use to it any more.
    fn tell(&mut self) {
        let taken = self.untold.saturating_sub(self.pending.len());
        if taken >= TELL || (taken > 0 && self.pending.len() == 0) {
            self.untold = self.untold.saturating_sub(taken);
            if let Ok(frame) = Frame::message(&Heard::Taken(taken as u64)) {
                let _ = frame.write(&mut self.out.bytes);
            }
        }
    }

    /// Write to the other side.
    fn send(&mut self) {
        let Some(stream) = self.stream.as_mut() else { return self.out.clear() };
        match stream.write(self.out.rest()) {
            Ok(count) => self.out.take(count),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.leave(),
        }
    }

    /// Read from the other side, and do what is whole.
    fn hear(&mut self) {
        let Some(stream) = self.stream.as_ref() else { return };
        match read_behind(stream, &mut self.received.bytes) {
            Ok(count) if count > 0 => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            Ok(_) | Err(_) => return self.leave(),
        }
        loop {
            if let Some((bytes, len)) = Frame::split_input(self.received.rest()) {
                self.untold = self.untold.saturating_add(bytes.len());
                if self.input.is_some() && !self.input_ended {
                    self.pending.bytes.extend_from_slice(bytes);
                }
                self.received.take(len);
                continue;
            }
            // What has come so far is the command's before anything that was said after it.
            self.feed();
            match Frame::split(self.received.rest()) {
                Ok(Some((frame, len))) => {
                    self.received.take(len);
                    self.obey(frame);
                }
                Ok(None) => return,
                // Where the next frame begins cannot be known any more.
                Err(_) => return self.leave(),
            }
        }
    }

    fn obey(&mut self, frame: Frame) {
        match frame {
            Frame::InputEnd if !self.input_ended => {
                self.input_ended = true;
                if let Some(terminal) = self.input.as_ref().filter(|_| self.terminal) {
                    self.pending.bytes.push(pty::end_of_input(terminal));
                    self.feed();
                }
                self.end_input();
            }
            Frame::Message(_) => match frame.read_as() {
                Ok(Control::Signal(signal)) if (1..=64).contains(&signal) => self.child.signal(signal),
                Ok(Control::Resize { rows, columns }) if self.terminal => {
                    if let Some(terminal) = self.sources.first().and_then(|source| source.file.as_ref()) {
                        let _ = pty::resize(terminal, rows, columns);
                    }
                }
                Ok(Control::Release) => self.released = true,
                // A host that is newer may say more.
                Ok(_) | Err(_) => {}
            },
            _ => {}
        }
    }

    /// The other side has left: hang up.
    fn leave(&mut self) {
        if self.left.is_some() {
            return;
        }
        self.left = Some(Instant::now());
        self.stream = None;
        self.out.clear();
        self.pending.clear();
        self.received.clear();
        if self.released {
            // What it prints is read and dropped, so that it can go on.
            return;
        }
        if self.ended.is_none() {
            self.child.signal(libc::SIGHUP);
            // A stopped one would not hear it.
            self.child.signal(libc::SIGCONT);
        }
        self.input = None;
        self.sources.iter_mut().for_each(|source| source.file = None);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_queue_gives_what_was_put_in(steps in proptest::collection::vec((0usize..50, 0usize..50), 0..60)) {
            let (mut queue, mut put, mut got) = (Queue::default(), Vec::new(), Vec::new());
            for (more, less) in steps {
                let bytes: Vec<u8> = (0..more).map(|at| (put.len() + at) as u8).collect();
                queue.bytes.extend_from_slice(&bytes);
                put.extend(bytes);
                let less = less.min(queue.len());
                got.extend_from_slice(&queue.rest()[..less]);
                queue.take(less);
            }
            got.extend_from_slice(queue.rest());
            prop_assert_eq!(got, put);
        }
    }
}
