//! A client's end of the control socket.

use std::io::{self, BufReader, ErrorKind, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::line::{LineError, read_line};
use super::types::{Attach, Ended, Frame, Request, Response};
use crate::agent::Agent;
use crate::control::{VmAction, VmReply};

/// The longest answer that is read, in bytes: the figures of a VM with very many devices are the largest.
const MAX_ANSWER: usize = 4 << 20;

/// The VM could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection broke: the VM has most likely ended.
    #[error("the VM does not answer: it has ended, or is about to")]
    Io(#[source] io::Error),
    /// It took longer than the stream's time limit.
    #[error("the VM does not answer in time: it is very busy, or hangs; skiff kill ends it")]
    Silent,
    /// The answer makes no sense: another version of skiff runs it.
    #[error("the VM's answer cannot be understood ({0}): it was started by another version of skiff")]
    Answer(String),
    /// It says that it cannot.
    #[error("{0}")]
    Refused(String),
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // What a socket's time limit looks like.
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Silent,
            _ => Self::Io(error),
        }
    }
}

/// What came first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The agent takes requests.
    Ready(Agent),
    /// The VM has ended.
    Ended(Ended),
}

/// A connection to a VM.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Talk over a connected socket.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { reader: BufReader::new(stream) }
    }

    /// Ask for `action`. [`VmReply::Ended`] is an answer like others.
    ///
    /// # Errors
    /// If the VM cannot be asked, or refuses ([`ClientError::Refused`]; never a [`VmReply::Refused`]).
    pub fn act(&mut self, action: VmAction) -> Result<VmReply, ClientError> {
        self.act_and_watch(action, |_, _| {})
    }

    /// Ask for `action`, and hear how far it is: `progress(done, total)`, in bytes.
    ///
    /// # Errors
    /// As [`Client::act`].
    pub fn act_and_watch(
        &mut self,
        action: VmAction,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<VmReply, ClientError> {
        let mut response = self.ask(&Request::Act(action))?;
        loop {
            response = match response {
                Response::Reply(VmReply::Progress { done, total }) => {
                    progress(done, total);
                    self.answer()?
                }
                Response::Reply(VmReply::Refused(why)) => return Err(ClientError::Refused(why)),
                Response::Reply(reply) => return Ok(reply),
                other => return Err(unexpected(other)),
            };
        }
    }

    /// Wait until the VM has ended.
    ///
    /// # Errors
    /// If the VM cannot be asked, or its process died.
    pub fn wait(mut self) -> Result<Ended, ClientError> {
        match self.ask(&Request::Wait)? {
            Response::Ended(ended) => Ok(ended),
            other => Err(unexpected(other)),
        }
    }

    /// Wait until the agent in the guest takes requests.
    ///
    /// # Errors
    /// If the VM cannot be asked, its process died, or its guest can have no agent ([`ClientError::Refused`]).
    pub fn wait_ready(&mut self) -> Result<Waited, ClientError> {
        match self.ask(&Request::WaitReady)? {
            Response::Ready(agent) => Ok(Waited::Ready(agent)),
            Response::Ended(ended) => Ok(Waited::Ended(ended)),
            other => Err(unexpected(other)),
        }
    }

    /// Join the console.
    ///
    /// # Errors
    /// If the VM cannot be asked, or has no console that leads to `stdio`.
    pub fn attach(mut self, how: Attach) -> Result<Frames, ClientError> {
        match self.ask(&Request::Attach(how))? {
            Response::Attached => Ok(Frames::over(self.reader)?),
            other => Err(unexpected(other)),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
        line.push(b'\n');
        // It may have said why it does not listen before it stopped listening.
        let sent = self.reader.get_ref().write_all(&line);
        match (self.answer(), sent) {
            (Err(ClientError::Io(gone)), Err(error)) if gone.kind() == ErrorKind::UnexpectedEof => {
                Err(error.into())
            }
            (answer, _) => answer,
        }
    }

    /// The next answer.
    fn answer(&mut self) -> Result<Response, ClientError> {
        let answer = match read_line(&mut self.reader, MAX_ANSWER) {
            Ok(Some(line)) if line.ends_with(b"\n") => line,
            Ok(_) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Err(LineError::Io(error)) => return Err(error.into()),
            Err(error @ LineError::TooLong(_)) => return Err(ClientError::Answer(error.to_string())),
        };
        serde_json::from_slice(&answer).map_err(|error| ClientError::Answer(error.to_string()))
    }
}

fn unexpected(response: Response) -> ClientError {
    match response {
        Response::Error(why) => ClientError::Refused(why),
        other => ClientError::Answer(format!("{other:?} does not answer what was asked")),
    }
}

/// An attached console. Clones share the connection, so that one thread can read and others write: frames stay whole.
#[derive(Clone, Debug)]
pub struct Frames {
    reader: Arc<Mutex<BufReader<UnixStream>>>,
    writer: Arc<Mutex<UnixStream>>,
    stream: Arc<UnixStream>,
}

impl Frames {
    /// A connection that speaks frames already.
    ///
    /// # Errors
    /// If the host has no more file descriptors.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Self::over(BufReader::new(stream))
    }

    fn over(reader: BufReader<UnixStream>) -> io::Result<Self> {
        let writer = reader.get_ref().try_clone()?;
        let stream = reader.get_ref().try_clone()?;
        Ok(Self {
            reader: Arc::new(Mutex::new(reader)),
            writer: Arc::new(Mutex::new(writer)),
            stream: Arc::new(stream),
        })
    }

    /// Wait for the next frame. `None` at the end.
    ///
    /// # Errors
    /// If the connection breaks, or carries no frames.
    pub fn read(&self) -> io::Result<Option<Frame>> {
        Frame::read(&mut *self.reader.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Send a frame. Blocks while the VM takes none, as when its guest does not read what is typed.
    ///
    /// # Errors
    /// If the connection breaks, or the frame's content is longer than [`MAX_FRAME`](super::types::MAX_FRAME).
    pub fn write(&self, frame: &Frame) -> io::Result<()> {
        frame.write(&mut *self.writer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Send what a user types, unless the VM takes nothing at the moment, when it is dropped. Says which. Does not
    /// block, and leaves room for a later frame that is not typed, as [`Frame::Detach`]: a user can leave a guest that hangs.
    ///
    /// # Errors
    /// As [`Frames::write`].
    pub fn offer(&self, frame: &Frame) -> io::Result<bool> {
        // Writable is a Unix socket of which no more than a quarter is used (unix_writable in the kernel), not one that
        // has any room.
        let room = poll(&mut [PollFd::new(&*self.stream, PollFlags::OUT)], Some(&Timespec::default()))? > 0;
        if room {
            self.write(frame)?;
        }
        Ok(room)
    }

    /// Give up no read and no write for lack of patience, if whoever connected had set limits.
    ///
    /// # Errors
    /// Never, on a connected socket.
    pub fn wait_for_ever(&self) -> io::Result<()> {
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)
    }

    /// End the connection, whoever reads or writes it.
    pub fn close(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client makes of a VM that answers so, and then closes.
    fn asked(answer: &[u8]) -> Result<VmReply, ClientError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        Client::new(ours).act(VmAction::State)
    }

    #[test]
    fn a_vm_that_goes_away_is_told_from_one_of_another_version() {
        assert_eq!(asked(b"{\"reply\":\"done\"}\n").unwrap(), VmReply::Done);
        for gone in [&b""[..], b"{\"reply\":", b"{\"reply\":\"done\"}"] {
            assert!(matches!(asked(gone), Err(ClientError::Io(_))));
        }
        for strange in [&b"HTTP/1.1 400\r\n"[..], b"{\"reply\":\"exploded\"}\n", b"\"attached\"\n", b"\xff\n"]
        {
            assert!(matches!(asked(strange), Err(ClientError::Answer(_))));
        }
        let refused = asked(b"{\"error\":\"why\"}\n").unwrap_err();
        assert!(matches!(&refused, ClientError::Refused(why) if why == "why"));
        let refused = asked(b"{\"reply\":{\"refused\":\"why\"}}\n").unwrap_err();
        assert!(matches!(&refused, ClientError::Refused(why) if why == "why"));
    }

    #[test]
    fn who_asks_hears_how_far_it_is_before_the_last_word() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        for done in [1, 2] {
            let line = format!("{{\"reply\":{{\"progress\":{{\"done\":{done},\"total\":2}}}}}}\n");
            theirs.write_all(line.as_bytes()).unwrap();
        }
        theirs.write_all(b"{\"reply\":\"done\"}\n{\"reply\":\"ended\"}\n").unwrap();
        let mut client = Client::new(ours);
        let mut seen = Vec::new();
        let last = client.act_and_watch(VmAction::State, |done, total| seen.push((done, total)));
        assert_eq!((last.unwrap(), seen), (VmReply::Done, vec![(1, 2), (2, 2)]));
        assert_eq!(client.act(VmAction::State).unwrap(), VmReply::Ended);
    }

    #[test]
    fn an_answer_without_end_is_not_gathered() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let endless = std::thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
        assert!(matches!(Client::new(ours).wait(), Err(ClientError::Answer(_))));
        endless.join().unwrap();
    }

    #[test]
    fn frames_that_follow_the_answer_at_once_are_not_lost() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"\"attached\"\n").unwrap();
        Frame::Output(b"printed".to_vec()).write(&mut theirs).unwrap();
        let frames = Client::new(ours).attach(Attach::default()).unwrap();
        assert_eq!(frames.read().unwrap(), Some(Frame::Output(b"printed".to_vec())));
        let reader = frames.clone();
        let reading = std::thread::spawn(move || reader.read());
        frames.close();
        assert!(matches!(reading.join().unwrap(), Ok(None) | Err(_)));
    }
}
