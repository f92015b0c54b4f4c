//! Requests to the agent in a guest, from any process that can reach the VM's vsock socket.
//!
//! [`Connection::to_guest`] asks the vsock device for the agent's port, [`Connection::ask`] opens a request, and [`Talk`] is what follows:
//! frames both ways. A talk can be read by one thread while others write.

use std::io::{self, BufReader, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::agent::frame::Frame;
use ::agent::message::{Answer, Control, Ended, Exec, Heard, Open, Refusal, Request};
use serde::Serialize;

use super::readiness::skew;

/// The longest line with which the vsock device answers, in bytes: `OK 4294967295`.
const MAX_LINE: usize = 16;
/// How much is read at once, in bytes.
const READ: usize = 128 * 1024;

/// The agent does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody listens in the guest.
    #[error("no agent answers in the guest")]
    Nobody,
    /// It took longer than the time limit.
    #[error("the guest does not answer in time: it is very busy, or hangs")]
    Silent,
    /// It is of another version.
    #[error("{}", skew(version, *protocol))]
    Skew {
        /// Its skiff's version.
        version: String,
        /// What it speaks.
        protocol: u32,
    },
    /// There is no such command.
    #[error("{0}")]
    NotFound(String),
    /// The command cannot be run.
    #[error("{0}")]
    NotExecutable(String),
    /// It cannot, for this reason.
    #[error("{0}")]
    Failed(String),
    /// The connection ended before the last word.
    #[error("the connection to the guest's agent broke: the agent has ended, or the guest was reset")]
    Broken(#[source] io::Error),
}

impl From<io::Error> for AgentError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // What a socket's time limit looks like.
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Silent,
            _ => Self::Broken(error),
        }
    }
}

/// A connection to the agent, on which nothing has been asked.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// How long an answer may take.
    limit: Option<Duration>,
}

impl Connection {
    /// To the agent of the guest whose vsock socket `stream` is connected to. The guest may take `limit` for each answer.
    ///
    /// # Errors
    /// [`AgentError::Nobody`] if no agent listens; others if the guest or its VM does not answer.
    pub fn to_guest(stream: UnixStream, limit: Duration) -> Result<Self, AgentError> {
        stream.set_write_timeout(Some(limit))?;
        (&stream).write_all(format!("CONNECT {}\n", ::agent::AGENT_PORT).as_bytes())?;
        let mut reader = Timely::new(stream.try_clone()?, Some(limit));
        let mut line = Vec::new();
        // What follows the line is the agent's: it is read byte by byte.
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            match reader.read(&mut byte) {
                Ok(0) => return Err(AgentError::Nobody),
                Ok(_) if line.len() < MAX_LINE => line.push(byte[0]),
                Ok(_) => return Err(io::Error::from(ErrorKind::InvalidData).into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // How a socket ends whose guest has nobody at that port.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(AgentError::Nobody),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { stream, limit: Some(limit) })
    }

    /// One that leads to the agent itself, which may take its time.
    #[must_use]
    pub fn direct(stream: UnixStream) -> Self {
        Self { stream, limit: None }
    }

    /// Ask for something. From then on there is no time limit.
    ///
    /// # Errors
    /// If it is refused, or the connection breaks.
    pub fn ask(self, request: &Request) -> Result<Talk, AgentError> {
        let open = Open {
            protocol: ::agent::PROTOCOL,
            version: ::agent::VERSION.to_owned(),
            request: serde_json::to_value(request).map_err(io::Error::from)?,
        };
        let mut stream = &self.stream;
        Frame::message(&open)?.write(&mut stream)?;
        let mut reader = BufReader::with_capacity(READ, Timely::new(self.stream.try_clone()?, self.limit));
        let answer = Frame::read(&mut reader)?.ok_or(ErrorKind::UnexpectedEof).map_err(io::Error::from)?;
        let (pid, window) = match answer.read_as()? {
            Answer::Accepted { pid, window } => (pid, window),
            Answer::Refused { protocol, version, why } => return Err(refused(protocol, version, why)),
        };
        reader.get_mut().until(None)?;
        self.stream.set_write_timeout(None)?;
        // Who takes an archive takes all of it as it comes: a window would let the guest keep this end waiting.
        let window = if matches!(request, Request::Exec(Exec { stdin: true, .. })) { window } else { 0 };
        let sender = Sender { stream: self.stream.into(), credit: Arc::new(Credit::new(window)), pid };
        Ok(Talk { reader, sender })
    }
}

fn refused(protocol: u32, version: String, why: Refusal) -> AgentError {
    match why {
        Refusal::Skew => AgentError::Skew { version, protocol },
        Refusal::NotFound(why) => AgentError::NotFound(plain(why)),
        Refusal::NotExecutable(why) => AgentError::NotExecutable(plain(why)),
        Refusal::Failed(why) => AgentError::Failed(plain(why)),
    }
}

/// A guest's words drive no terminal.
fn plain(text: String) -> String {
    if text.contains(char::is_control) { text.replace(char::is_control, " ") } else { text }
}

/// A socket that is read until some time, however little comes at once.
#[derive(Debug)]
struct Timely {
    stream: UnixStream,
    until: Option<Instant>,
}

impl Timely {
    fn new(stream: UnixStream, limit: Option<Duration>) -> Self {
        Self { stream, until: limit.and_then(|limit| Instant::now().checked_add(limit)) }
    }

    /// From now on until then, or without end.
    fn until(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.until = limit.and_then(|limit| Instant::now().checked_add(limit));
        if self.until.is_none() { self.stream.set_read_timeout(None) } else { Ok(()) }
    }
}

impl io::Read for Timely {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Some(until) = self.until {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(rest))?;
        }
        self.stream.read(into)
    }
}

/// A request that the agent does.
#[derive(Debug)]
pub struct Talk {
    reader: BufReader<Timely>,
    sender: Sender,
}

/// What the agent says of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// From a command's standard output, or an archive.
    Output(Vec<u8>),
    /// From a command's standard error.
    Error(Vec<u8>),
    /// The last word, which is no [`Ended::Failed`].
    Ended(Ended),
    /// The one message that answers a question.
    Message(Frame),
}

impl Talk {
    /// The process ID of the command in the guest.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.sender.pid
    }

    /// A way to say something, for other threads.
    #[must_use]
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The one message that answers a question, which may take so long.
    ///
    /// # Errors
    /// As for [`Talk::next`], and [`AgentError::Silent`]. [`AgentError::Failed`] if the agent says something else.
    pub fn answer(&mut self, limit: Duration) -> Result<Frame, AgentError> {
        self.reader.get_mut().until(Some(limit))?;
        match self.next()? {
            Said::Message(frame) => Ok(frame),
            _ => Err(AgentError::Failed("the guest's agent answers with nonsense".to_owned())),
        }
    }

    /// Wait for what comes next.
    ///
    /// # Errors
    /// [`AgentError::Failed`] with the agent's reason; others if the connection breaks, or carries nonsense.
    #[expect(clippy::should_implement_trait, reason = "it has no end that is not said or an error")]
    pub fn next(&mut self) -> Result<Said, AgentError> {
        loop {
            let frame = match Frame::read(&mut self.reader) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Err(AgentError::Broken(ErrorKind::UnexpectedEof.into())),
                Err(error) => return Err(error.into()),
            };
            match frame {
                Frame::Output(bytes) => return Ok(Said::Output(bytes)),
                Frame::Error(bytes) => return Ok(Said::Error(bytes)),
                Frame::Message(_) => match frame.read_as() {
                    Ok(Heard::Taken(bytes)) => self.sender.credit.give(bytes),
                    Ok(Heard::Ended(Ended::Failed(why))) => return Err(AgentError::Failed(plain(why))),
                    Ok(Heard::Ended(ended)) => return Ok(Said::Ended(ended)),
                    Err(_) => return Ok(Said::Message(frame)),
                },
                Frame::Input(_) | Frame::InputEnd => {
                    return Err(AgentError::Broken(ErrorKind::InvalidData.into()));
                }
            }
        }
    }
}

/// A way to say something to the agent. Clones share the connection; frames stay whole.
#[derive(Clone, Debug)]
pub struct Sender {
    stream: Arc<UnixStream>,
    credit: Arc<Credit>,
    pid: Option<u32>,
}

impl Sender {
    /// Put in `bytes`. Waits while the other end has taken too little of what was put in before.
    ///
    /// # Errors
    /// If the request has ended, or the connection broke.
    pub fn input(&self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(::agent::frame::MAX_FRAME) {
            let _turn = self.credit.take(piece.len())?;
            Frame::Input(piece.to_vec()).write(&mut &*self.stream)?;
        }
        Ok(())
    }

    /// Nothing more is put in.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn input_end(&self) -> io::Result<()> {
        let _turn = self.credit.turn();
        Frame::InputEnd.write(&mut &*self.stream)
    }

    /// Say something to a command.
    ///
    /// # Errors
    /// If the connection broke.
    pub fn control(&self, control: Control) -> io::Result<()> {
        self.message(&control)
    }

    fn message(&self, message: &impl Serialize) -> io::Result<()> {
        let frame = Frame::message(message)?;
        let _turn = self.credit.turn();
        frame.write(&mut &*self.stream)
    }

    /// End the connection, whoever reads or writes it.
    pub fn close(&self) {
        // It may be closed already. First this, which ends a write that has the lock.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.credit.close();
    }
}

/// How much may be put in, and whose turn it is to write. Its lock is held over a write, which the other end always reads, whatever the
/// command does.
#[derive(Debug)]
struct Credit {
    window: u64,
    state: Mutex<Balance>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Balance {
    /// Put in and not taken, in bytes.
    on_the_way: u64,
    closed: bool,
}

impl Credit {
    fn new(window: u64) -> Self {
        Self { window, state: Mutex::default(), changed: Condvar::new() }
    }

    fn turn(&self) -> MutexGuard<'_, Balance> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait until `len` more bytes may be on their way. With a window smaller than that, until none is.
    fn take(&self, len: usize) -> io::Result<MutexGuard<'_, Balance>> {
        let len = len as u64;
        let full = |balance: &mut Balance| {
            let after = balance.on_the_way.saturating_add(len);
            !balance.closed && self.window != 0 && after > self.window && balance.on_the_way != 0
        };
        let waited = self.changed.wait_while(self.turn(), full);
        let mut balance = waited.unwrap_or_else(PoisonError::into_inner);
        if balance.closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        balance.on_the_way = balance.on_the_way.saturating_add(len);
        Ok(balance)
    }

    fn give(&self, bytes: u64) {
        let mut balance = self.turn();
        balance.on_the_way = balance.on_the_way.saturating_sub(bytes);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.turn().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
