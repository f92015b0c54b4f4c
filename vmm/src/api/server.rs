//! The VM's end of the control socket.
//!
//! The `api` thread accepts; each connection has a thread of its own, `api:N`, which parses, sends an action to
//! the `vmm` thread and waits. An attached console has a second one, `view:N`, which sends what the guest prints; what
//! all of them type goes to the guest by one thread, `typing`. Only the VM's own user (and root) is served.
//!
//! No client can hurt the VM: lines, queues and connections are bounded, and no thread of the VM waits for one.

mod attached;
mod connection;
mod end;
mod typing;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use devices::worker::named_thread;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use self::end::End;
use self::typing::Typing;
use super::types::{Ended, Response};
use crate::control::Controller;

/// How many clients are served at once. For one more, one that asks nothing is closed.
const MAX_CONNECTIONS: usize = 64;
/// How long clients may take to hear of the VM's end.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long `api` rests when the host is out of something that a connection needs.
const REST: Duration = Duration::from_millis(100);

/// The connection to the program that started the VM and stands in the foreground for it.
#[derive(Debug)]
pub struct Owner {
    /// A connection that speaks [`Frame`](super::types::Frame)s from the start, as after an attach. What the guest prints does not go over it,
    /// but straight to [`Setup::stdout`](crate::machine::Setup::stdout), which is closed when the connection ends.
    pub stream: UnixStream,
    /// If the connection ends without [`Frame::Detach`](super::types::Frame::Detach), so does the VM.
    pub ends_vm: bool,
}

/// A running server. Dropping it leaves it running; [`Server::finish`] is its end.
pub struct Server {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

/// What the server's threads share.
struct Shared {
    controller: Controller,
    typing: Typing,
    end: End,
    open: Mutex<Open>,
    /// A connection was closed.
    closed: Condvar,
}

/// The connections.
#[derive(Default)]
struct Open {
    next: u64,
    /// By number: the oldest first.
    clients: BTreeMap<u64, Arc<Client>>,
}

/// One connection.
struct Client {
    stream: UnixStream,
    /// It asks nothing at the moment.
    idle: AtomicBool,
}

/// A place among the connections, given back when it is dropped.
struct Place {
    shared: Arc<Shared>,
    number: u64,
    client: Arc<Client>,
}

impl Place {
    fn stream(&self) -> &UnixStream {
        &self.client.stream
    }

    fn set_idle(&self, idle: bool) {
        self.client.idle.store(idle, Ordering::SeqCst);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.open().clients.remove(&self.number);
        self.shared.closed.notify_all();
    }
}

/// Serve `listener`, and `owner` if there is one, until [`Server::finish`]. To be called once the VM runs: nothing of
/// this is to delay the guest.
///
/// # Errors
/// If the host has no more threads or file descriptors.
pub fn start(controller: Controller, listener: UnixListener, owner: Option<Owner>) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let typing = Typing::start(controller.clone())?;
    let (open, closed) = Default::default();
    let shared = Arc::new(Shared { controller, typing, end: End::new()?, open, closed });
    if let Some(Owner { stream, ends_vm }) = owner {
        stream.set_nonblocking(false)?;
        let place = shared.place(stream).map_err(io::Error::other)?;
        place.set_idle(false);
        named_thread("api:owner").spawn(move || attached::owner(&place, ends_vm))?;
    }
    let accepting = Arc::clone(&shared);
    let accepting = named_thread("api").spawn(move || accepting.accept(&listener))?;
    Ok(Server { shared, accepting })
}

impl Server {
    /// The VM has ended: tell everybody who waits for it, end every connection, and return within a second or little
    /// more, when the process may end.
    pub fn finish(self, ended: Ended) {
        let shared = &self.shared;
        shared.end.set(ended);
        shared.controller.console().hub().close();
        shared.typing.close();
        // What was asked before is answered still; nothing more is asked.
        shared.shutdown(Shutdown::Read);
        let _ = self.accepting.join();
        if !shared.wait_until_closed() {
            log::info!("not every client of the control socket could be told of the VM's end");
            shared.shutdown(Shutdown::Both);
            shared.wait_until_closed();
        }
    }
}

impl Open {
    /// Close the oldest connection that asks nothing. Says whether there was one.
    fn make_room(&mut self) -> bool {
        let oldest = self.clients.iter().find(|(_, client)| client.idle.load(Ordering::SeqCst));
        let Some((&number, client)) = oldest else { return false };
        // Its thread finds out and ends.
        let _ = client.stream.shutdown(Shutdown::Both);
        self.clients.remove(&number);
        true
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// If there is none, why not.
    fn place(self: &Arc<Self>, stream: UnixStream) -> Result<Place, String> {
        let mut open = self.open();
        // Looked at with the lock held: `finish` ends every connection that it finds after it has set the end.
        if self.end.get().is_some() {
            return Err("the VM has ended".to_owned());
        }
        if open.clients.len() >= MAX_CONNECTIONS && !open.make_room() {
            return Err(format!(
                "{MAX_CONNECTIONS} clients are connected to this VM, which is all that it serves: close some"
            ));
        }
        let number = open.next;
        open.next = open.next.wrapping_add(1);
        let client = Arc::new(Client { stream, idle: AtomicBool::new(true) });
        open.clients.insert(number, Arc::clone(&client));
        Ok(Place { shared: Arc::clone(self), number, client })
    }

    fn shutdown(&self, how: Shutdown) {
        for client in self.open().clients.values() {
            // It may be gone already.
            let _ = client.stream.shutdown(how);
        }
    }

    /// Within [`FAREWELL`]. Says whether all are.
    fn wait_until_closed(&self) -> bool {
        let some = |open: &mut Open| !open.clients.is_empty();
        let waited = self.closed.wait_timeout_while(self.open(), FAREWELL, some);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// The `api` thread.
    fn accept(self: Arc<Self>, listener: &UnixListener) {
        while self.end.get().is_none() {
            match listener.accept() {
                Ok((stream, _)) => self.welcome(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut fds = [
                        PollFd::new(listener, PollFlags::IN),
                        PollFd::from_borrowed_fd(self.end.as_fd(), PollFlags::IN),
                    ];
                    if let Err(error) = poll(&mut fds, None)
                        && error != Errno::INTR
                    {
                        log::warn!("the control socket rests: {error}");
                        std::thread::sleep(REST);
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    log::warn!("the control socket rests: {error}");
                    std::thread::sleep(REST);
                }
            }
        }
    }

    /// Give a new client a thread of its own, or tell it why it gets none. Never blocks.
    fn welcome(self: &Arc<Self>, stream: UnixStream) {
        if let Err(why) = self.admit(&stream) {
            turn_away(stream, why);
        }
    }

    fn admit(self: &Arc<Self>, stream: &UnixStream) -> Result<(), String> {
        let failed = |error: io::Error| format!("the VM cannot serve this connection: {error}");
        let peer = rustix::net::sockopt::socket_peercred(stream).map_err(|error| failed(error.into()))?;
        if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
            return Err("this VM belongs to another user: ask as that user, or as root".to_owned());
        }
        let clone = stream.try_clone().map_err(failed)?;
        let place = self.place(clone)?;
        let name = format!("api:{}", place.number);
        named_thread(name).spawn(move || connection::serve(&place)).map_err(failed)?;
        Ok(())
    }
}

/// Say why this client is not served. A new connection has room for that; if not, it is not said.
fn turn_away(mut stream: UnixStream, why: String) {
    let Ok(mut line) = serde_json::to_vec(&Response::Error(why)) else { return };
    line.push(b'\n');
    if stream.set_nonblocking(true).is_ok() {
        let _ = stream.write_all(&line);
    }
}

#[cfg(test)]
mod tests;
