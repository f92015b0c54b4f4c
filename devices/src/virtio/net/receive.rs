//! What the guest receives: frames from the port straight into the buffers that the guest has made available.
//!
//! How long a frame is shows when it has been read, so there must be room for the largest first. With mergeable
//! buffers (virtio 1.2, 5.1.6.4) that is as many chains as it takes; those that a frame did not need are kept for the next, and go
//! back to the ring at the end. Where the guest has given less than that, the frame is read into memory of
//! the host's own, and copied, or kept until there is room.
//!
//! ```text
//!  ring ──pop──► hand (chains) = room (their bytes) ──receive──► used: the first n chains
//!                    ▲ what is left ─────────────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::io;

use crate::limit::Gate;
use crate::net::frame::Frame;
use crate::net::{HEADER, Port};
use crate::ratelog;
use crate::virtio::chain::Chain;
use crate::virtio::queue::Queue;
use crate::virtio::state::ReceiveState;

use super::header::MAX_FRAME;
use super::pair::{Common, End, Fault, MAX_BYTES, MAX_FRAMES, PUBLISH, Turn};

/// Where `num_buffers` is in the header.
const NUM_BUFFERS: u64 = 10;
/// What a frame can have beside its packet: an Ethernet header and a VLAN tag.
const LINK_HEADER: u64 = 18;

/// The longest frame with its header, in bytes.
pub(super) const MAX_RECEIVED: usize = HEADER + MAX_FRAME as usize;

/// What the guest has agreed to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepts {
    /// Frames in several chains.
    pub mergeable: bool,
    /// Frames larger than the network's.
    pub large: bool,
    /// The largest packet otherwise.
    pub mtu: u16,
}

/// The guest's receive queue.
pub(super) struct Receiver {
    pub queue: Queue,
    gate: Gate,
    mergeable: bool,
    /// The room that any frame fits in.
    want: u64,
    /// Chains that were popped and not used.
    hand: VecDeque<Chain>,
    /// Their writable bytes.
    room: Frame,
    /// Not all of the hand is in the room: it has too many pieces.
    cut: bool,
    /// The most chains that the guest has ever given at once.
    most: u16,
    /// Where frames go first when there is less room than that, and how long the one is that waits there.
    scratch: Option<Frame>,
    parked: Option<u64>,
    /// Frames given since the used index was published.
    unseen: u16,
}

impl Receiver {
    pub(super) fn new(queue: Queue, accepts: Accepts, gate: Gate, common: &Common) -> Self {
        let largest = if accepts.large { MAX_FRAME } else { u64::from(accepts.mtu.max(1500)) + LINK_HEADER };
        Self {
            queue,
            gate,
            mergeable: accepts.mergeable,
            want: HEADER as u64 + largest,
            hand: VecDeque::new(),
            room: Frame::new(&common.ram),
            cut: false,
            most: 0,
            scratch: None,
            parked: None,
            unseen: 0,
        }
    }

    /// Put what was not used back in the ring, in its order.
    pub(super) fn put_back(&mut self) {
        // There are no more than the ring has entries.
        self.queue.unpop_all(self.hand.len() as u16);
        self.hand.clear();
        self.room.clear();
        self.cut = false;
    }

    /// What another receiver needs to go on for this one, of queue pair `pair`. A frame that is longer than any has been cut, and is
    /// nobody's loss.
    pub(super) fn save(&self, pair: u16) -> ReceiveState {
        let bytes = self.scratch.as_ref().map(Frame::bytes).unwrap_or_default();
        let len = self.parked.and_then(|len| usize::try_from(len).ok());
        let frame = len.and_then(|len| bytes.get(..len)).map(|frame| frame.to_vec().into());
        ReceiveState { pair, most: self.most, frame }
    }

    /// Go on where another receiver was.
    pub(super) fn restore(&mut self, state: &ReceiveState, common: &Common) {
        self.most = state.most;
        let Some(frame) = &state.frame else { return };
        let scratch = self.scratch.get_or_insert_with(|| Frame::scratch(&common.ram, MAX_RECEIVED));
        if scratch.fill(0, &frame.0).is_ok() {
            self.parked = Some(frame.0.len() as u64);
        }
    }

    /// Take chains into the hand until any frame fits. Whether one does: if not, all that the guest has given is in the hand.
    pub(super) fn gather(&mut self, common: &Common) -> Result<bool, Fault> {
        while !self.enough() {
            let Some(chain) = self.queue.pop(&common.ram)? else {
                self.most = self.most.max(self.queue.outstanding(&common.ram)?);
                return Ok(false);
            };
            if !chain.readable.is_empty() || chain.writable_len() < HEADER as u64 {
                return Err(Fault::Driver("a receive buffer that is readable, or too small for a header"));
            }
            self.cut |= !add(&mut self.room, &chain)?;
            self.hand.push_back(chain);
        }
        Ok(true)
    }

    /// How many chains were popped and not used.
    pub(super) fn in_hand(&self) -> usize {
        self.hand.len()
    }

    fn enough(&self) -> bool {
        if self.mergeable { self.cut || self.room.total() >= self.want } else { !self.hand.is_empty() }
    }

    /// Receive some of what the port has.
    pub(super) fn turn(&mut self, common: &Common, port: &mut (dyn Port + 'static)) -> Result<Turn, Fault> {
        let mut turn = Turn { moved: false, end: End::More };
        let before = common.counters.to_guest.get();
        let mut drained = Ok(());
        for _ in 0..MAX_FRAMES {
            match self.receive(common, port) {
                Ok(None) => turn.moved = true,
                Ok(Some(end)) => {
                    turn.end = end;
                    break;
                }
                Err(fault) => {
                    drained = Err(fault);
                    break;
                }
            }
            if common.counters.to_guest.get().wrapping_sub(before) >= MAX_BYTES {
                break;
            }
        }
        self.unseen = 0;
        common.tell(&mut self.queue, turn.moved)?;
        drained.map(|()| turn)
    }

    /// Receive one frame. `None` if there was one, or else why not.
    fn receive(&mut self, common: &Common, port: &mut (dyn Port + 'static)) -> Result<Option<End>, Fault> {
        let any_fits = self.gather(common)?;
        if let Some(len) = self.parked {
            return self.unpark(common, len);
        }
        if self.hand.is_empty() {
            return Ok(Some(End::Guest));
        }
        if let Err(at) = self.gate.check() {
            return Ok(Some(End::Limit(at)));
        }
        let received = if any_fits {
            port.receive(&self.room)
        } else {
            port.receive(self.scratch.get_or_insert_with(|| Frame::scratch(&common.ram, MAX_RECEIVED)))
        };
        let len = match received {
            Ok(len) => len as u64,
            Err(error) => {
                return Ok(match error.kind() {
                    io::ErrorKind::WouldBlock => Some(End::Port),
                    io::ErrorKind::UnexpectedEof => Some(End::Gone),
                    io::ErrorKind::NetworkDown => {
                        common.link(false, "the host's side is down");
                        Some(End::Port)
                    }
                    // A port that says so for ever must not be asked for ever.
                    _ => {
                        self.lost(common, &error);
                        Some(End::Port)
                    }
                });
            }
        };
        self.gate.charge(len.saturating_sub(HEADER as u64));
        common.link(true, "");
        if !any_fits {
            self.parked = Some(len);
            return self.unpark(common, len);
        }
        self.give(common, len)?;
        Ok(None)
    }

    /// Give the guest the frame in the scratch memory, if there is room for it by now.
    fn unpark(&mut self, common: &Common, len: u64) -> Result<Option<End>, Fault> {
        let fits = len <= self.room.total();
        if !fits && usize::from(self.most) > self.hand.len() && !self.enough() {
            // The guest has had more to give: it will again.
            return Ok(Some(End::Guest));
        }
        self.parked = None;
        let scratch = self.scratch.as_ref().map(Frame::bytes).unwrap_or_default();
        match usize::try_from(len).ok().and_then(|len| scratch.get(..len)) {
            Some(bytes) => {
                self.room.fill(0, bytes)?;
                self.give(common, len)?;
            }
            None => self.lost(common, &format_args!("{len} bytes are more than any frame has")),
        }
        Ok(None)
    }

    /// The first `len` bytes of the room are a frame and its header: give the guest the chains that they are in.
    fn give(&mut self, common: &Common, len: u64) -> Result<(), Fault> {
        if len > self.room.total() || len < HEADER as u64 {
            self.lost(common, &format_args!("{len} bytes, and room for {}", self.room.total()));
            return Ok(());
        }
        let (mut left, mut chains, mut taken) = (len, 0_u16, 0);
        for chain in &self.hand {
            let size = chain.writable_len();
            chains = chains.saturating_add(1);
            taken += size;
            // Both fit: a frame is far shorter than 4 GiB.
            self.queue.put_used(&common.ram, chain.head, left.min(size) as u32)?;
            left = left.saturating_sub(size);
            if left == 0 {
                break;
            }
        }
        self.room.fill(NUM_BUFFERS, &chains.to_le_bytes())?;
        self.hand.drain(..usize::from(chains));
        if self.cut {
            self.room.clear();
            self.cut = false;
            for chain in &self.hand {
                self.cut |= !add(&mut self.room, chain)?;
            }
        } else {
            self.room.advance(taken);
        }
        self.unseen += chains;
        if self.unseen >= PUBLISH {
            self.unseen = 0;
            self.queue.publish_used(&common.ram)?;
        }
        common.counters.requests.add(1);
        common.counters.to_guest.add(len - HEADER as u64);
        Ok(())
    }

    /// A frame from the network was lost.
    fn lost(&self, common: &Common, why: &dyn std::fmt::Display) {
        common.counters.requests.add(1);
        common.counters.errors.add(1);
        ratelog::warn(format_args!("{}: a frame for the guest is dropped: {why}", common.device));
    }
}

/// Add a chain's writable bytes to the room. False if not all of them have a place.
fn add(room: &mut Frame, chain: &Chain) -> Result<bool, Fault> {
    for segment in &chain.writable {
        if !room.push(*segment)? {
            return Ok(false);
        }
    }
    Ok(true)
}
