//! The thread `dev:<id>`: moves packets between the three queues and the [`Hub`], and sleeps on everything at once.
//!
//! ```text
//!            ┌───────────────────── there is more ─────────────────────┐
//!            ▼                                                         │
//!  events ─► hub ─► transmitq (a ring full) ─► receiveq (a ring full) ─► clients, event, interrupts ─► ask for kicks ─► sleep
//! ```
//!
//! Everything is watched edge-triggered and remembered, so that what cannot be served now (no buffers of the guest, no
//! credit, no room in a socket) does not wake the thread again until something changes.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use arch::memory::SharedRam;

use super::hub::{Hub, Outgoing};
use super::link::Due;
use super::packet::{HEADER_LEN, Header};
use crate::ratelog::Chained;
use crate::virtio::buffers::Buffers;
use crate::virtio::chain::Chain;
use crate::virtio::device::Interrupt;
use crate::virtio::queue::{Queue, QueueError};

/// Tokens of the thread's events. Connections have larger ones, by [`FIRST_ID`].
const KICK_RECEIVE: u64 = 0;
const KICK_TRANSMIT: u64 = 1;
const KICK_EVENT: u64 = 2;
const CLIENTS: u64 = 3;
const RESET: u64 = 4;
/// The number of the first connection.
pub(super) const FIRST_ID: u64 = 16;
const KILL: u64 = u64::MAX;

/// Payload that one connection is read at once, in bytes, before it is the turn of the next.
const READ_AT_ONCE: u64 = 128 << 10;
/// Buffers of the guest that are filled by one read.
const BUFFERS_AT_ONCE: usize = 64;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (5.10.6.7), as `struct virtio_vsock_event`.
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// The guest broke the rules.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A packet that is cut off.
    #[error("a packet of {len} bytes and a header is in buffers of {buffers} bytes")]
    Cut { len: u32, buffers: u64 },
    /// A buffer into which nothing can be put.
    #[error("a buffer of {0} bytes is too small for what it is for")]
    Small(u64),
}

/// What the thread owns.
pub(super) struct State {
    pub id: String,
    pub ram: SharedRam,
    pub interrupt: Interrupt,
    pub receive: Queue,
    pub transmit: Queue,
    pub event: Queue,
    pub hub: Hub,
    /// Written when the guest is to be told that its connections are void.
    pub reset: EventFd,
}

/// What the thread remembers between its turns.
#[derive(Default)]
struct Turn {
    /// For each queue, by its index: something was used and the guest was not told.
    untold: [bool; 3],
    /// There is something for the guest and no buffer of it.
    starving: bool,
    /// Where the payload at hand lies, kept for its room alone.
    iovecs: Vec<libc::iovec>,
}

/// A buffer of receiveq.
struct Room {
    head: u16,
    buffers: Buffers,
    /// For payload, in bytes.
    payload: u64,
}

impl State {
    /// Watch what wakes the thread, apart from the connections.
    pub(super) fn watch(&self) -> io::Result<()> {
        let kicks =
            [(&self.receive, KICK_RECEIVE), (&self.transmit, KICK_TRANSMIT), (&self.event, KICK_EVENT)];
        for (queue, token) in kicks {
            self.watch_one(queue.kick.as_raw_fd(), token)?;
        }
        self.watch_one(self.hub.listener.as_raw_fd(), CLIENTS)?;
        self.watch_one(self.reset.as_raw_fd(), RESET)
    }

    fn watch_one(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
        self.hub.epoll.ctl(ControlOperation::Add, fd, event)
    }

    /// The thread's body: serve until `kill`.
    pub(super) fn run(&mut self, kill: &EventFd) {
        let served = self.watch_one(kill.as_raw_fd(), KILL).and_then(|()| self.turns());
        if let Err(error) = served {
            self.interrupt.needs_reset(&self.id, &format_args!("the host's events failed: {error}"));
        }
    }

    fn turns(&mut self) -> io::Result<()> {
        let mut turn = Turn::default();
        let mut events = [EpollEvent::default(); 64];
        let mut broken = false;
        let mut timeout = 0;
        loop {
            let count = match self.hub.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let events = events.get(..count).unwrap_or_default();
            if events.iter().any(|event| event.data() == KILL) {
                return Ok(());
            }
            if broken {
                continue;
            }
            timeout = match self.turn(events, &mut turn) {
                Ok(true) => 0,
                Ok(false) => self.hub.timeout(),
                Err(fault) => {
                    // Nobody serves the clients any more.
                    self.hub.clear();
                    self.interrupt.needs_reset(&self.id, &Chained(&fault));
                    broken = true;
                    -1
                }
            };
        }
    }

    /// Serve everything once. Whether there may be more to do at once.
    fn turn(&mut self, events: &[EpollEvent], turn: &mut Turn) -> Result<bool, Fault> {
        self.transmit.disable_kicks(&self.ram)?;
        for event in events {
            match event.data() {
                KICK_RECEIVE => self.look(KICK_RECEIVE)?,
                KICK_EVENT => self.look(KICK_EVENT)?,
                KICK_TRANSMIT => {}
                CLIENTS => self.hub.knock(),
                RESET => {
                    // Written by us alone, before it rang: it can be read.
                    if self.reset.read().is_ok() {
                        self.hub.transport_reset();
                    }
                }
                id => self.hub.host_event(id, event.event_set()),
            }
        }
        self.hub.expire();
        let served = self.serve_guest(turn).and_then(|more| Ok(self.serve_host(turn)? || more));
        self.hub.accept();
        self.tell_reset(turn)?;
        // What was used is told, whatever came behind it.
        self.interrupt_guest(turn)?;
        Ok(served? || self.hub.has_clients() || self.ask_for_kicks(turn)?)
    }

    /// The guest rang for a queue of buffers for the device: look at the first now, not when it is needed.
    fn look(&mut self, token: u64) -> Result<(), Fault> {
        let (queue, least) = match token {
            KICK_RECEIVE => (&mut self.receive, HEADER_LEN),
            _ => (&mut self.event, TRANSPORT_RESET.len()),
        };
        if let Some(chain) = queue.pop(&self.ram)? {
            check_room(&chain, least)?;
            queue.unpop();
        }
        Ok(())
    }

    /// Take packets from the guest, a ring full at most. Whether there may be more.
    fn serve_guest(&mut self, turn: &mut Turn) -> Result<bool, Fault> {
        for _ in 0..self.transmit.ring.size() {
            if self.hub.is_choked() {
                return Ok(false);
            }
            let Some(chain) = self.transmit.pop(&self.ram)? else { return Ok(false) };
            let head = chain.head;
            self.take(chain, &mut turn.iovecs)?;
            self.transmit.add_used(&self.ram, head, 0)?;
            turn.untold[1] = true;
        }
        Ok(true)
    }

    /// Take one packet.
    fn take(&mut self, chain: Chain, iovecs: &mut Vec<libc::iovec>) -> Result<(), Fault> {
        let mut bytes = [0; HEADER_LEN];
        let buffers = chain.readable_len();
        if chain.read(&self.ram, 0, &mut bytes) < HEADER_LEN {
            return Err(Fault::Small(buffers));
        }
        let header = Header::parse(&bytes);
        if buffers < HEADER_LEN as u64 + u64::from(header.len) {
            return Err(Fault::Cut { len: header.len, buffers });
        }
        self.hub.receive(&header, &Buffers::new(&self.ram, chain.readable), iovecs);
        Ok(())
    }

    /// Fill the guest's buffers as long as there are both, a ring full at most. Whether there may be more.
    fn serve_host(&mut self, turn: &mut Turn) -> Result<bool, Fault> {
        turn.starving = false;
        for _ in 0..self.receive.ring.size() {
            if !self.hub.has_outgoing() {
                return Ok(false);
            }
            let Some(room) = self.room()? else {
                turn.starving = true;
                return Ok(false);
            };
            match self.hub.next_outgoing() {
                None => self.receive.unpop(),
                Some(Outgoing::Packet(header)) => self.put(&room, &header, turn)?,
                Some(Outgoing::Data(id, most)) => self.put_data(id, most, room, turn)?,
            }
        }
        Ok(true)
    }

    /// The next buffer of the guest.
    fn room(&mut self) -> Result<Option<Room>, Fault> {
        let Some(chain) = self.receive.pop(&self.ram)? else { return Ok(None) };
        let payload = check_room(&chain, HEADER_LEN)?;
        Ok(Some(Room { head: chain.head, buffers: Buffers::new(&self.ram, chain.writable), payload }))
    }

    /// Complete a buffer, its payload already in place.
    fn put(&mut self, room: &Room, header: &Header, turn: &mut Turn) -> Result<(), Fault> {
        // RAM does not shrink: it cannot fail.
        let _ = room.buffers.fill(0, &header.bytes());
        let len = (HEADER_LEN as u32).saturating_add(header.len);
        self.receive.add_used(&self.ram, room.head, len)?;
        self.hub.counters.requests.add(1);
        self.hub.counters.to_guest.add(header.len.into());
        turn.untold[0] = true;
        Ok(())
    }

    /// Read what a connection's socket has, up to `most` bytes, straight into the guest's buffers, of which `first` is one.
    fn put_data(&mut self, id: u64, most: u32, first: Room, turn: &mut Turn) -> Result<(), Fault> {
        if first.payload == 0 {
            // A buffer for packets without payload: it is given one.
            let header = self.hub.link(id).map(|link| link.say(Due::CreditUpdate));
            self.hub.enqueue(id);
            return header.map_or(Ok(()), |header| self.put(&first, &header, turn));
        }
        let most = u64::from(most).min(READ_AT_ONCE);
        turn.iovecs.clear();
        let mut left = most;
        let mut rooms = Vec::new();
        let mut next = Some(first);
        while let Some(room) = next.take() {
            let wanted = room.payload.min(left);
            let pointed = room.buffers.point_on(HEADER_LEN as u64, wanted, &mut turn.iovecs).unwrap_or(0);
            rooms.push((room, pointed));
            left -= pointed;
            if pointed == wanted && left > 0 && rooms.len() < BUFFERS_AT_ONCE {
                next = self.room()?;
            }
        }
        // SAFETY: they point into guest memory, which `rooms` keep mapped and to which nothing has a reference.
        let mut read = unsafe { self.hub.read(id, &mut turn.iovecs) };
        for (room, pointed) in rooms {
            if read == 0 {
                // The last that were popped: none behind them is in use.
                self.receive.unpop();
                continue;
            }
            let len = read.min(pointed);
            read -= len;
            // At most READ_AT_ONCE.
            if let Some(header) = self.hub.link(id).map(|link| link.data(len as u32)) {
                self.put(&room, &header, turn)?;
            }
        }
        self.hub.settle(id);
        Ok(())
    }

    /// Tell the guest that its connections are void, if it is to know and has a buffer for it.
    fn tell_reset(&mut self, turn: &mut Turn) -> Result<(), Fault> {
        if !self.hub.reset_due {
            return Ok(());
        }
        let Some(chain) = self.event.pop(&self.ram)? else { return Ok(()) };
        check_room(&chain, TRANSPORT_RESET.len())?;
        let len = chain.write(&self.ram, 0, &TRANSPORT_RESET);
        self.event.add_used(&self.ram, chain.head, len as u32)?;
        self.hub.reset_due = false;
        turn.untold[2] = true;
        Ok(())
    }

    /// One interrupt a queue for all that was used in a turn.
    fn interrupt_guest(&mut self, turn: &mut Turn) -> Result<(), Fault> {
        let queues = [&mut self.receive, &mut self.transmit, &mut self.event];
        for (queue, untold) in queues.into_iter().zip(&mut turn.untold) {
            if std::mem::take(untold) && queue.wants_interrupt(&self.ram)? {
                self.interrupt.used(queue.index);
            }
        }
        Ok(())
    }

    /// Before sleep. Whether the guest made something available meanwhile that is waited for.
    fn ask_for_kicks(&mut self, turn: &Turn) -> Result<bool, Fault> {
        let packets = self.transmit.enable_kicks(&self.ram)? && !self.hub.is_choked();
        let buffers = self.receive.enable_kicks(&self.ram)? && turn.starving;
        let events = self.event.enable_kicks(&self.ram)? && self.hub.reset_due;
        Ok(packets || buffers || events)
    }
}

/// How much more than `least` bytes can be written to a chain.
fn check_room(chain: &Chain, least: usize) -> Result<u64, Fault> {
    let len = chain.writable_len();
    len.checked_sub(least as u64).ok_or(Fault::Small(len))
}
