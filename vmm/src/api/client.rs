//! A client's end of the control socket.

use std::io;
use std::os::unix::net::UnixStream;

use super::types::{Attach, Ended, Frame};
use crate::control::{VmAction, VmReply};

/// The VM could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection broke: the VM has most likely ended.
    #[error("the VM does not answer: it has ended, or is about to")]
    Io(#[from] io::Error),
    /// The answer makes no sense: another version of skiff runs it.
    #[error("the VM's answer cannot be understood: it was started by another version of skiff")]
    Answer(String),
    /// It says that it cannot.
    #[error("{0}")]
    Refused(String),
}

/// A connection to a VM.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Talk over a connected socket.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Ask for `action`.
    ///
    /// # Errors
    /// If the VM cannot be asked, or refuses ([`ClientError::Refused`]; never a [`VmReply::Refused`]).
    pub fn act(&mut self, _action: VmAction) -> Result<VmReply, ClientError> {
        Err(ClientError::Refused("not yet".to_owned()))
    }

    /// Wait until the VM has ended.
    ///
    /// # Errors
    /// If the VM cannot be asked, or its process died.
    pub fn wait(self) -> Result<Ended, ClientError> {
        Err(ClientError::Refused("not yet".to_owned()))
    }

    /// Join the console.
    ///
    /// # Errors
    /// If the VM cannot be asked, or has no console that leads to `stdio`.
    pub fn attach(self, _how: Attach) -> Result<Frames, ClientError> {
        Ok(Frames::new(self.stream))
    }
}

/// An attached console. Clones share the connection, so that one thread can read and another write.
#[derive(Debug)]
pub struct Frames {
    stream: UnixStream,
}

impl Frames {
    /// A connection that speaks frames already.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// For another thread.
    ///
    /// # Errors
    /// If the host has no more file descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()? })
    }

    /// Wait for the next frame. `None` at the end.
    ///
    /// # Errors
    /// If the connection breaks, or carries no frames.
    pub fn read(&mut self) -> io::Result<Option<Frame>> {
        Ok(None)
    }

    /// Send a frame.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn write(&mut self, _frame: &Frame) -> io::Result<()> {
        Ok(())
    }
}
