//! The host's end of a box: passes input and output between the user and the agent, and ends the box.
//!
//! One thread, the caller's, waits for everything:
//!
//! ```text
//! booting --Hello--> running --Exit--> done
//!    |                  |
//!    +------------------+--QEMU ends, time limit, signal--> done
//! ```

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::PollFlags;

use super::qemu::{self, Qemu};
use super::signals::Signals;
use super::terminal::{self, RawTerminal};
use super::wire::{Frame, Job};
use super::{INTERRUPTED, Io, Options, Outcome, TIMED_OUT, wait};
use crate::progress::Step;

/// Bytes kept for the box or for our own output before their source is left alone.
const PENDING: usize = 256 * 1024;
/// How often a box that runs its command is interrupted. When its processor enters a guest, the emulator changes the word of pending interrupts
/// without a lock (QEMU 7.2, `helper_vmrun`), and one that comes just then can be lost until the next one comes, whichever that is. If it was the
/// timer's, the box itself would never bring another.
const BEAT: Duration = Duration::from_secs(1);
/// What a box whose time is up has to say what its programs do.
const LOOK: Duration = Duration::from_secs(10);
/// A pipe that polls writable takes this much without blocking (PIPE_BUF).
const WRITE: usize = 4096;

/// One run of a box.
pub struct Session<'a> {
    options: &'a Options,
    io: Io,
    qemu: Qemu,
    signals: Signals,
    /// Shown until the command starts.
    booting: Option<Step>,
    job: Option<Job>,
    terminal: Option<RawTerminal>,
    from_box: Vec<u8>,
    to_box: Vec<u8>,
    input_open: bool,
    /// What is to be shown yet.
    output: Vec<u8>,
    error: Vec<u8>,
    kept: Vec<u8>,
    interrupts: Interrupts,
    last_beat: Instant,
}

/// What a turn of the loop may end with.
type Done = Option<u8>;

impl<'a> Session<'a> {
    /// A session for a box that has just been started.
    pub fn new(options: &'a Options, io: Io, job: Job, qemu: Qemu, signals: Signals) -> Session<'a> {
        Session {
            options,
            io,
            qemu,
            signals,
            booting: Some(Step::fleeting("starting the box")),
            job: Some(job),
            terminal: None,
            from_box: Vec::new(),
            to_box: Vec::new(),
            input_open: io.input,
            output: Vec::new(),
            error: Vec::new(),
            kept: Vec::new(),
            interrupts: Interrupts::default(),
            last_beat: Instant::now(),
        }
    }

    /// Runs to the command's end, the box's, or the time limit's.
    ///
    /// # Errors
    /// When the box ends before its command does.
    pub fn run(mut self) -> Result<Outcome> {
        let deadline = Instant::now() + self.options.timeout;
        let code = loop {
            let until = deadline.min(Instant::now() + BEAT);
            if let Some(code) = self.turn(until)? {
                break code;
            }
            if Instant::now() >= deadline {
                break self.give_up()?;
            }
            self.beat();
        };
        self.qemu.kill();
        // A reader that has gone away is none of our failures.
        let _ = io::stdout().write_all(&self.output).and_then(|()| io::stdout().flush());
        let _ = io::stderr().write_all(&self.error);
        Ok(Outcome { code, output: self.kept })
    }

    /// Interrupts a box that runs its command, unless one of our interrupts is on its way.
    fn beat(&mut self) {
        if self.job.is_none() && self.to_box.is_empty() && self.last_beat.elapsed() >= BEAT {
            Frame::Beat.encode(&mut self.to_box);
            self.last_beat = Instant::now();
        }
    }

    /// The time is up: says what the box was doing, if it can tell. It may yet end by itself.
    fn give_up(&mut self) -> Result<u8> {
        self.booting = None;
        self.terminal = None;
        let seconds = self.options.timeout.as_secs();
        eprintln!(
            "kvmbox: not done after {seconds} s, so ended. The end of its kernel's log:{}",
            self.qemu.last_words()
        );
        Frame::Look.encode(&mut self.to_box);
        let until = Instant::now() + LOOK;
        while Instant::now() < until {
            if let Some(code) = self.turn(until)? {
                return Ok(code);
            }
        }
        Ok(TIMED_OUT)
    }

    fn turn(&mut self, deadline: Instant) -> Result<Done> {
        let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
        let room = self.output.len() < PENDING && self.error.len() < PENDING;
        let mut port_flags = PollFlags::empty();
        port_flags.set(PollFlags::IN, room);
        port_flags.set(PollFlags::OUT, !self.to_box.is_empty());
        let wants_input = self.input_open && self.job.is_none() && self.to_box.len() < PENDING;
        let shown = |bytes: &[u8]| if bytes.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let [signal, ended, port, input_ready, output_ready, error_ready] = wait::ready(
            [
                (Some(self.signals.as_fd()), PollFlags::IN),
                (Some(self.qemu.ended().as_fd()), PollFlags::IN),
                (Some(self.qemu.port.as_fd()), port_flags),
                (wants_input.then(|| input.as_fd()), PollFlags::IN),
                (Some(output.as_fd()), shown(&self.output)),
                (Some(error.as_fd()), shown(&self.error)),
            ],
            Some(deadline),
        )?;
        if !output_ready.is_empty() {
            write_some(output.as_fd(), &mut self.output);
        }
        if !error_ready.is_empty() {
            write_some(error.as_fd(), &mut self.error);
        }
        if !signal.is_empty()
            && let Some(code) = self.take_signals()
        {
            return Ok(Some(code));
        }
        if !input_ready.is_empty() && self.take_input()? {
            return Ok(Some(INTERRUPTED));
        }
        if port.intersects(PollFlags::OUT) {
            write_some(self.qemu.port.as_fd(), &mut self.to_box);
        }
        // Frames first: the last one may lie behind QEMU's end.
        if port.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) || !ended.is_empty() {
            return self.take_frames();
        }
        Ok(None)
    }

    fn take_frames(&mut self) -> Result<Done> {
        let mut bytes = vec![0; 64 * 1024];
        let length = self.qemu.port.read(&mut bytes).unwrap_or(0);
        if length == 0 {
            self.booting = None;
            self.terminal = None;
            let end = qemu::describe(self.qemu.kill());
            bail!(
                "{end} before the command was done. The end of its kernel's log:{}",
                self.qemu.last_words()
            );
        }
        self.from_box.extend_from_slice(&bytes[..length]);
        while let Some(frame) = Frame::take(&mut self.from_box).context("the box's port is out of step")? {
            match frame {
                Frame::Hello => self.start_command()?,
                Frame::Output(bytes) => self.take_output(&bytes),
                Frame::Error(bytes) => self.error.extend(bytes),
                Frame::Exit(code) => return Ok(Some(code)),
                _ => {}
            }
        }
        Ok(None)
    }

    fn take_output(&mut self, bytes: &[u8]) {
        if self.io.show {
            self.output.extend_from_slice(bytes);
        }
        if self.io.keep {
            self.kept.extend_from_slice(bytes);
        }
    }

    fn start_command(&mut self) -> Result<()> {
        self.booting = None;
        if let Some(job) = self.job.take() {
            if job.terminal.is_some() {
                self.terminal = Some(RawTerminal::enter().context("cannot set up the terminal")?);
            }
            Frame::Job(job).encode(&mut self.to_box);
            if !self.input_open {
                Frame::InputEnd.encode(&mut self.to_box);
            }
        }
        Ok(())
    }

    /// Reads what the user typed or piped. Returns whether it asks for the box's end.
    fn take_input(&mut self) -> Result<bool> {
        let mut bytes = vec![0; 32 * 1024];
        let length = rustix::io::read(io::stdin(), &mut bytes).unwrap_or(0);
        bytes.truncate(length);
        if bytes.is_empty() {
            self.input_open = false;
            Frame::InputEnd.encode(&mut self.to_box);
            return Ok(false);
        }
        let enough = self.terminal.is_some() && self.interrupts.enough(&bytes);
        Frame::Input(bytes).encode(&mut self.to_box);
        Ok(enough)
    }

    fn take_signals(&mut self) -> Done {
        while let Some(signal) = self.signals.next() {
            if signal == libc::SIGWINCH {
                Frame::Size(terminal::size()).encode(&mut self.to_box);
            } else {
                return Some(128 + u8::try_from(signal).unwrap_or(0));
            }
        }
        None
    }
}

/// On a terminal, Ctrl-C goes to the command, which may ignore it; three within a second end the box.
#[derive(Default)]
struct Interrupts {
    times: [Option<Instant>; 2],
}

impl Interrupts {
    fn enough(&mut self, typed: &[u8]) -> bool {
        for _ in typed.iter().filter(|byte| **byte == 3) {
            let now = Instant::now();
            if self.times[0].is_some_and(|time| now - time < Duration::from_secs(1)) {
                return true;
            }
            self.times = [self.times[1], Some(now)];
        }
        false
    }
}

/// Writes a piece that does not block; what cannot be written for good is dropped.
fn write_some(to: BorrowedFd<'_>, bytes: &mut Vec<u8>) {
    let piece = &bytes[..bytes.len().min(WRITE)];
    match rustix::io::write(to, piece) {
        Ok(written) => drop(bytes.drain(..written)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
        Err(_) => bytes.clear(),
    }
}

/// Whether the user's terminal goes to the command, and its error output too.
pub fn terminal_wanted(io: Io) -> bool {
    io.input && io.show && io::stdin().is_terminal() && io::stdout().is_terminal()
}
