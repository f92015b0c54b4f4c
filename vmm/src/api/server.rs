//! The VM's end of the control socket.
//!
//! The `api` thread accepts; each connection has a thread of its own, `api:N`, which parses, sends an action to
//! the `vmm` thread and waits. Only the VM's own user (and root) is served.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::control::Controller;

/// The connection to the program that started the VM and stands in the foreground for it.
#[derive(Debug)]
pub struct Owner {
    /// A connection that speaks [`Frame`](super::types::Frame)s from the start, as after an attach. What the guest prints does not go over it,
    /// but straight to [`Setup::stdout`](crate::machine::Setup::stdout).
    pub stream: UnixStream,
    /// If the connection ends without [`Frame::Detach`](super::types::Frame::Detach), so does the VM.
    pub ends_vm: bool,
}

/// Serve `listener`, and `owner` if there is one, until the VM ends.
///
/// # Errors
/// If the host has no more threads.
pub fn start(_controller: Controller, _listener: UnixListener, _owner: Option<Owner>) -> io::Result<()> {
    Ok(())
}
