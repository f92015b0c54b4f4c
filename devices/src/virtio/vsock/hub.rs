//! All connections of a device, between the guest's packets ([`super::guest`]) and the host's sockets.
//!
//! [`Hub`] belongs to the device's thread while the device is active, and to the device while it is stopped: connections
//! outlive a pause, not a reset. It is bounded in every direction: connections for each side that opens them, bytes that
//! wait in all of them together, answers that wait for the guest.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::host::{HostEnd, Read};
use super::link::{Due, Link, Phase, Ports};
use super::listener::VsockListener;
use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::counters::Counters;
use crate::descriptors;
use crate::ratelog;

/// Answers to packets of no connection that wait for the guest to make room. No more packets are looked at then.
const MOST_STRAYS: usize = 256;
/// The buffer of a connection, in bytes, and of one that comes when [`POOL`] is given out.
pub(super) const LARGE: u32 = 256 << 10;
const SMALL: u32 = 16 << 10;
/// How much is given out in large buffers. With all connections there are, 64 MiB is the most that can ever wait.
const POOL: u32 = 32 << 20;
/// The ports that the host's clients come from.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;
/// The longest line with which a client can ask for a port, in bytes.
const LONGEST_LINE: usize = 64;
/// Clients that are let in before something else is looked at.
const ACCEPT_AT_ONCE: usize = 32;

/// How long a client may take to say what it wants.
const GREETING: Duration = Duration::from_secs(60);
/// How long the guest may take to accept a connection: one that is very busy takes seconds.
pub(super) const ANSWER: Duration = Duration::from_secs(20);
/// When a listener of the host that had no room is tried again, and how often.
const REDIAL: Duration = Duration::from_millis(10);
const REDIALS: u16 = 200;
/// How long a client that takes nothing is given what the guest sent before it was done.
const LINGER: Duration = Duration::from_secs(30);
/// How long the guest may do nothing on a connection whose host is gone.
const CLOSING: Duration = Duration::from_secs(60);
/// When clients are let in again after the host was out of file descriptors.
const RELIEF: Duration = Duration::from_millis(100);

/// Not the number of a connection, in deadlines: time to let clients in.
const ACCEPT_AGAIN: u64 = 0;

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opener {
    Guest = 0,
    Host = 1,
}

/// What there is of a connection on the guest's side.
pub(super) enum GuestEnd {
    /// Nothing yet: the client has said this of what it wants.
    Greeting(Vec<u8>),
    /// The guest asked, and the host's listener was tried so often.
    Dialing(Link, u16),
    /// A connection, or one that the guest is asked for.
    Link(Link),
    /// Nothing any more: the client is given what it did not take yet.
    Gone,
}

/// One connection.
pub(super) struct Connection {
    pub(super) host: HostEnd,
    pub(super) guest: GuestEnd,
    opener: Opener,
    buffer: u32,
    /// It is in [`Hub::ready`].
    queued: bool,
    deadline: Option<Instant>,
}

/// What the guest is to be given next.
pub(super) enum Outgoing {
    /// A packet without payload.
    Packet(Header),
    /// What the socket of this connection has, at most so many bytes: [`Hub::read`].
    Data(u64, u32),
}

/// All connections of a device.
pub(super) struct Hub {
    pub(super) cid: u64,
    pub(super) listener: Arc<VsockListener>,
    pub(super) counters: Arc<Counters>,
    pub(super) epoll: Epoll,
    pub(super) connections: HashMap<u64, Connection>,
    pub(super) by_ports: HashMap<Ports, u64>,
    /// Connections that may have something for the guest, each once, served in turn.
    ready: VecDeque<u64>,
    /// Answers to packets of no connection.
    strays: VecDeque<Header>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Connections by who opened them.
    opened: [usize; 2],
    most: usize,
    granted: u32,
    next_id: u64,
    next_port: u32,
    /// There may be clients to let in.
    acceptable: bool,
    /// The guest is to be told that its connections are gone (5.10.6.7).
    pub(super) reset_due: bool,
    /// How long it may take to accept a connection.
    pub(super) answer: Duration,
}

impl Hub {
    /// No connections. `first_id` is the number of the first one, above all other tokens of the thread.
    pub(super) fn new(
        cid: u32,
        listener: Arc<VsockListener>,
        counters: Arc<Counters>,
        first_id: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            cid: cid.into(),
            listener,
            counters,
            epoll: Epoll::new()?,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            strays: VecDeque::new(),
            deadlines: BTreeSet::new(),
            opened: [0; 2],
            most: descriptors::connections(),
            granted: 0,
            next_id: first_id.max(ACCEPT_AGAIN + 1),
            next_port: FIRST_PORT,
            acceptable: false,
            reset_due: false,
            answer: ANSWER,
        })
    }

    /// Watch the sockets anew, after the device was stopped. No time has passed for the connections.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        self.epoll = Epoll::new()?;
        let mut ids: Vec<u64> = self.connections.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let Some(connection) = self.connections.get(&id) else { continue };
            if !matches!(connection.guest, GuestEnd::Dialing(..)) {
                watch(&self.epoll, connection.host.as_raw_fd(), id)?;
            }
            if connection.deadline.is_some() {
                let time = connection.time_limit(self.answer);
                self.set_deadline(id, time);
            }
        }
        self.acceptable = true;
        Ok(())
    }

    /// Milliseconds until the next deadline, for epoll; -1 for ever.
    pub(super) fn timeout(&self) -> i32 {
        let Some((next, _)) = self.deadlines.first() else { return -1 };
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up, so that it has passed when it is looked at.
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX - 1) + 1
    }

    /// The listener may have clients.
    pub(super) fn knock(&mut self) {
        self.acceptable = true;
    }

    /// Whether clients wait that can be let in.
    pub(super) fn has_clients(&self) -> bool {
        self.acceptable && self.has_place(Opener::Host)
    }

    fn has_place(&self, opener: Opener) -> bool {
        self.opened.get(opener as usize).is_some_and(|count| *count < self.most)
    }

    /// Whether the guest can open a connection.
    pub(super) fn has_place_for_guest(&self) -> bool {
        self.has_place(Opener::Guest)
    }

    /// Whether too many answers wait to look at another packet.
    pub(super) fn is_choked(&self) -> bool {
        self.strays.len() >= MOST_STRAYS
    }

    /// Have this answered, whatever it belongs to.
    pub(super) fn answer(&mut self, header: Header) {
        self.strays.push_back(header);
    }

    /// Let clients in, some at a time.
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPT_AT_ONCE {
            if !self.has_clients() {
                return;
            }
            match self.listener.accept() {
                Ok(socket) => {
                    let guest = GuestEnd::Greeting(Vec::new());
                    let id = self.add(Opener::Host, HostEnd::new(socket), guest, 0);
                    self.watch(id);
                    self.set_deadline(id, Some(GREETING));
                }
                Err(Errno::AGAIN) => self.acceptable = false,
                Err(error) => {
                    ratelog::warn(format_args!("vsock: cannot let a client in: {error}"));
                    self.acceptable = false;
                    self.deadlines.insert((Instant::now() + RELIEF, ACCEPT_AGAIN));
                }
            }
        }
    }

    fn add(&mut self, opener: Opener, host: HostEnd, guest: GuestEnd, buffer: u32) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if let Some(count) = self.opened.get_mut(opener as usize) {
            *count += 1;
        }
        let connection = Connection { host, guest, opener, buffer, queued: false, deadline: None };
        self.connections.insert(id, connection);
        id
    }

    /// Add a connection that the guest asked for by `request`.
    pub(super) fn add_dialing(&mut self, host: HostEnd, request: &Header) -> u64 {
        let buffer = self.grant();
        let link = Link::asked_for(request, buffer);
        let ports = link.ports;
        let id = self.add(Opener::Guest, host, GuestEnd::Dialing(link, 0), buffer);
        self.by_ports.insert(ports, id);
        id
    }

    /// The size of a new connection's buffer.
    fn grant(&mut self) -> u32 {
        let size = if self.granted.saturating_add(LARGE) <= POOL { LARGE } else { SMALL };
        self.granted = self.granted.saturating_add(size);
        size
    }

    /// Watch the socket of a connection, which is dropped if that cannot be.
    pub(super) fn watch(&mut self, id: u64) {
        let Some(connection) = self.connections.get(&id) else { return };
        if let Err(error) = watch(&self.epoll, connection.host.as_raw_fd(), id) {
            ratelog::warn(format_args!("vsock: cannot watch a socket: {error}"));
            self.reset(id);
        }
    }

    pub(super) fn set_deadline(&mut self, id: u64, time: Option<Duration>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Some(old) = connection.deadline.take() {
            self.deadlines.remove(&(old, id));
        }
        connection.deadline = time.map(|time| Instant::now() + time);
        self.deadlines.extend(connection.deadline.map(|at| (at, id)));
    }

    /// Act on what is overdue.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        while let Some((at, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, id));
            if id == ACCEPT_AGAIN {
                self.acceptable = true;
                continue;
            }
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.deadline = None;
            if matches!(connection.guest, GuestEnd::Dialing(..)) {
                self.dial(id);
            } else {
                self.reset(id);
            }
        }
    }

    /// Try to connect to who answers the guest's connections to its port.
    pub(super) fn dial(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let GuestEnd::Dialing(link, tries) = &mut connection.guest else { return };
        match connection.host.connect(&self.listener.path_of(link.ports.host)) {
            Ok(()) => {
                link.connected();
                connection.guest = GuestEnd::Link(link.clone());
                self.watch(id);
                self.settle(id);
            }
            Err(Errno::AGAIN | Errno::INTR) if *tries < REDIALS => {
                *tries += 1;
                self.set_deadline(id, Some(REDIAL));
            }
            Err(error) => {
                log::debug!("vsock: nobody answers port {}: {error}", link.ports.host);
                self.counters.errors.add(1);
                self.reset(id);
            }
        }
    }

    /// The socket of a connection has these events.
    pub(super) fn host_event(&mut self, id: u64, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.host.note(events);
        match connection.guest {
            GuestEnd::Greeting(_) => self.greet(id),
            GuestEnd::Dialing(..) => {}
            GuestEnd::Link(_) | GuestEnd::Gone => self.settle(id),
        }
    }

    /// Read what a client wants: `CONNECT PORT\n`, as Firecracker and Cloud Hypervisor have it.
    fn greet(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let GuestEnd::Greeting(line) = &mut connection.guest else { return };
        loop {
            match connection.host.read_line(line, LONGEST_LINE) {
                Read::Nothing => return,
                Read::End => break self.drop_connection(id),
                Read::Bytes(_) if line.last() == Some(&b'\n') => {
                    let port = parse_line(line);
                    break match port {
                        Some(port) => self.ask_guest(id, port),
                        None => self.drop_connection(id),
                    };
                }
                Read::Bytes(_) => {}
            }
        }
    }

    /// A client wants this port of the guest.
    fn ask_guest(&mut self, id: u64, port: u32) {
        let buffer = self.grant();
        let ports = self.free_ports(port);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.buffer = buffer;
        connection.guest = GuestEnd::Link(Link::asking(self.cid, ports, buffer));
        self.by_ports.insert(ports, id);
        self.set_deadline(id, Some(self.answer));
        self.enqueue(id);
    }

    /// A pair of ports that no connection has. There are far more than connections.
    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = if host == LAST_PORT { FIRST_PORT } else { host + 1 };
            let ports = Ports { host, guest };
            if !self.by_ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    /// Have a connection looked at if the guest may be told something.
    pub(super) fn enqueue(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let GuestEnd::Link(link) = &connection.guest else { return };
        if !connection.queued && link.due(connection.host.may_read()).is_some() {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Bring both ends together: what waits is written, and what one end does no more the other is told.
    pub(super) fn settle(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Connection { host, guest, .. } = connection;
        let flushed = host.flush();
        match guest {
            GuestEnd::Link(link) => {
                // Fits: what waits is what the guest was allowed to send.
                link.credit.forwarded(u32::try_from(flushed).unwrap_or(u32::MAX));
                if host.waiting() == 0 && !link.guest_sends() {
                    host.end_writing();
                }
                if link.phase == Phase::Open {
                    link.host_ends(ends(host, link));
                }
                self.enqueue(id);
            }
            GuestEnd::Gone if host.waiting() == 0 => self.drop_connection(id),
            GuestEnd::Gone if flushed > 0 => self.set_deadline(id, Some(LINGER)),
            _ => {}
        }
    }

    /// Whether there may be something for the guest.
    pub(super) fn has_outgoing(&self) -> bool {
        !self.strays.is_empty() || !self.ready.is_empty()
    }

    /// What the guest is to be given next, each connection in its turn.
    pub(super) fn next_outgoing(&mut self) -> Option<Outgoing> {
        if let Some(header) = self.strays.pop_front() {
            return Some(Outgoing::Packet(header));
        }
        loop {
            let id = self.ready.pop_front()?;
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            let GuestEnd::Link(link) = &mut connection.guest else { continue };
            let Some(due) = link.due(connection.host.may_read()) else { continue };
            if let Due::Data(room) = due {
                return Some(Outgoing::Data(id, room));
            }
            let header = link.say(due);
            let closing = link.is_closing();
            if closing {
                self.set_deadline(id, Some(CLOSING));
            }
            self.enqueue(id);
            return Some(Outgoing::Packet(header));
        }
    }

    /// Read from the socket of a connection into what `iovecs` point to. Returns how many bytes there were.
    ///
    /// # Safety
    /// As of [`HostEnd::read`].
    pub(super) unsafe fn read(&mut self, id: u64, iovecs: &mut [libc::iovec]) -> u64 {
        let Some(connection) = self.connections.get_mut(&id) else { return 0 };
        // SAFETY: the caller vouches for what they point to.
        match unsafe { connection.host.read(iovecs) } {
            Read::Bytes(count) => count as u64,
            Read::Nothing | Read::End => 0,
        }
    }

    /// The link of a connection.
    pub(super) fn link(&mut self, id: u64) -> Option<&mut Link> {
        match &mut self.connections.get_mut(&id)?.guest {
            GuestEnd::Link(link) | GuestEnd::Dialing(link, _) => Some(link),
            GuestEnd::Greeting(_) | GuestEnd::Gone => None,
        }
    }

    /// The guest still does something on a connection whose host is gone.
    pub(super) fn renew(&mut self, id: u64) {
        if self.link(id).is_some_and(|link| link.is_closing()) {
            self.set_deadline(id, Some(CLOSING));
        }
    }

    /// End a connection at once, and tell a guest that knows of it.
    pub(super) fn reset(&mut self, id: u64) {
        if let Some(link) = self.link(id)
            && link.is_known()
        {
            let header = link.reset();
            self.answer(header);
        }
        self.drop_connection(id);
    }

    /// The guest is done with a connection; the client is given what it did not take yet.
    pub(super) fn guest_left(&mut self, id: u64) {
        let Some(ports) = self.link(id).map(|link| link.ports) else { return };
        self.by_ports.remove(&ports);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.guest = GuestEnd::Gone;
        connection.host.flush();
        if connection.host.waiting() == 0 {
            self.drop_connection(id);
        } else {
            self.set_deadline(id, Some(LINGER));
        }
    }

    fn drop_connection(&mut self, id: u64) {
        self.set_deadline(id, None);
        if let Some(ports) = self.link(id).map(|link| link.ports) {
            self.by_ports.remove(&ports);
        }
        // Closing the socket ends its being watched.
        let Some(connection) = self.connections.remove(&id) else { return };
        if connection.queued {
            // A guest that takes nothing must not make this long.
            self.ready.retain(|queued| *queued != id);
        }
        self.granted = self.granted.saturating_sub(connection.buffer);
        if let Some(count) = self.opened.get_mut(connection.opener as usize) {
            *count = count.saturating_sub(1);
        }
    }

    /// The guest's connections are void, as after it was restored elsewhere (5.10.6.7). Those that it has not heard of stay.
    pub(super) fn transport_reset(&mut self) {
        let known = |connection: &Connection| match &connection.guest {
            GuestEnd::Link(link) | GuestEnd::Dialing(link, _) => link.is_known(),
            GuestEnd::Greeting(_) | GuestEnd::Gone => false,
        };
        let void: Vec<u64> = self.connections.iter().filter(|(_, c)| known(c)).map(|(id, _)| *id).collect();
        for id in void {
            self.guest_left(id);
        }
        self.strays.clear();
        self.reset_due = true;
    }

    /// Forget everything: the guest is not to be spoken to any more.
    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.ready.clear();
        self.strays.clear();
        self.deadlines.clear();
        self.opened = [0; 2];
        self.granted = 0;
    }
}

impl Connection {
    /// How long the state it is in may last, if the guest may take `answer` to accept it.
    fn time_limit(&self, answer: Duration) -> Option<Duration> {
        match &self.guest {
            GuestEnd::Greeting(_) => Some(GREETING),
            GuestEnd::Dialing(..) => Some(REDIAL),
            GuestEnd::Link(link) if link.is_closing() => Some(CLOSING),
            GuestEnd::Link(link) if link.phase != Phase::Open => Some(answer),
            GuestEnd::Link(_) => None,
            GuestEnd::Gone => Some(LINGER),
        }
    }
}

/// What the host's end does no more.
fn ends(host: &HostEnd, link: &Link) -> u32 {
    let mut flags = 0;
    if host.refuses() {
        flags |= SHUTDOWN_RECEIVE;
    }
    if host.has_ended() {
        flags |= SHUTDOWN_SEND;
    }
    // Whoever went away is first heard to the end, unless the guest does not want to.
    if host.has_hung_up() && (host.has_ended() || !link.guest_receives()) {
        flags |= SHUTDOWN_BOTH;
    }
    flags
}

/// The port that a client asks for.
fn parse_line(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let verb = words.next()?;
    let port = words.next()?;
    if verb.eq_ignore_ascii_case("connect") { port.parse().ok() } else { None }
}

/// Watch a socket for everything, edge-triggered.
fn watch(epoll: &Epoll, fd: RawFd, id: u64) -> io::Result<()> {
    let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, id))
}

#[cfg(test)]
#[path = "hub_tests.rs"]
mod tests;
