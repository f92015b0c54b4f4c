//! The VM's end, for every thread that waits for it or for something else that may come first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::api::types::Ended;

/// Set once. Its descriptor is readable from then on.
pub(super) struct End {
    event: OwnedFd,
    ended: OnceLock<Ended>,
}

impl End {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, ended: OnceLock::new() })
    }

    pub(super) fn set(&self, ended: Ended) {
        // The first is the one that counts.
        let _ = self.ended.set(ended);
        // Fails only with the counter at its maximum, which is as readable.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    pub(super) fn get(&self) -> Option<&Ended> {
        self.ended.get()
    }

    /// Wait until the VM has ended, or the other end of `stream` is closed (`None`). A client that has said all it wants
    /// to say (`shutdown`) still listens.
    pub(super) fn wait(&self, stream: &UnixStream) -> io::Result<Option<&Ended>> {
        loop {
            let mut fds = [PollFd::new(stream, PollFlags::empty()), PollFd::new(&self.event, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) if self.get().is_some() => return Ok(self.get()),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(None),
                Ok(_) => {}
            }
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
