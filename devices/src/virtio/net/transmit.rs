//! What the guest sends: one chain a frame, straight from its memory to the port.

use std::io;
use std::time::Instant;

use crate::limit::Gate;
use crate::net::frame::Frame;
use crate::net::{HEADER, Offloads, Port};
use crate::ratelog;
use crate::virtio::chain::Chain;
use crate::virtio::queue::Queue;

use super::header::{self, BadHeader};
use super::pair::{Common, End, Fault, MAX_BYTES, MAX_FRAMES, PUBLISH, Turn};

/// The guest's transmit queue.
pub(super) struct Transmitter {
    pub queue: Queue,
    /// What the guest may leave undone.
    agreed: Offloads,
    gate: Gate,
    frame: Frame,
}

/// What became of a chain.
enum Sent {
    /// The port took it, or it was dropped: the guest has it back.
    Used,
    /// The port has no room.
    Later,
    /// The limit lets it go then.
    Limited(Instant),
    /// The port is gone, and the frame with it.
    Gone,
}

impl Transmitter {
    pub(super) fn new(queue: Queue, agreed: Offloads, gate: Gate, common: &Common) -> Self {
        Self { queue, agreed, gate, frame: Frame::new(&common.ram) }
    }

    /// Send some of what the guest has made available. Without a port it is dropped.
    pub(super) fn turn(
        &mut self,
        common: &Common,
        mut port: Option<&mut (dyn Port + 'static)>,
    ) -> Result<Turn, Fault> {
        let mut turn = Turn { moved: false, end: End::More };
        let mut bytes = 0;
        let mut drained = Ok(());
        for frame in 1..=MAX_FRAMES {
            let chain = match self.queue.pop(&common.ram) {
                Ok(Some(chain)) => chain,
                Ok(None) => {
                    turn.end = End::Guest;
                    break;
                }
                Err(error) => {
                    drained = Err(error.into());
                    break;
                }
            };
            match self.send(common, port.as_deref_mut(), &chain) {
                Ok(Sent::Used) => {}
                Ok(Sent::Gone) => turn.end = End::Gone,
                Ok(Sent::Later) => {
                    self.queue.unpop();
                    turn.end = End::Port;
                    break;
                }
                Ok(Sent::Limited(at)) => {
                    self.queue.unpop();
                    turn.end = End::Limit(at);
                    break;
                }
                Err(fault) => {
                    drained = Err(fault);
                    break;
                }
            }
            self.queue.put_used(&common.ram, chain.head, 0)?;
            turn.moved = true;
            bytes += self.frame.total();
            if frame % PUBLISH == 0 {
                self.queue.publish_used(&common.ram)?;
            }
            if turn.end == End::Gone || bytes >= MAX_BYTES {
                break;
            }
        }
        // What was served before a fault is given back all the same.
        common.tell(&mut self.queue, turn.moved)?;
        drained.map(|()| turn)
    }

    /// Send the frame in `chain`.
    fn send(
        &mut self,
        common: &Common,
        port: Option<&mut (dyn Port + 'static)>,
        chain: &Chain,
    ) -> Result<Sent, Fault> {
        let whole = chain.readable_len();
        if whole < HEADER as u64 || !chain.writable.is_empty() {
            return Err(Fault::Driver("a frame to send that is no header and what follows it, all readable"));
        }
        let len = whole - HEADER as u64;
        self.frame.clear();
        for segment in &chain.readable {
            if !self.frame.push(*segment)? {
                // No driver has reason to cut a frame into a thousand pieces.
                return Ok(dropped(common, &BadHeader::Length(len)));
            }
        }
        // Copied once: the guest may write it again meanwhile.
        let mut header = [0; HEADER];
        self.frame.fetch(0, &mut header)?;
        self.frame.advance(HEADER as u64);
        let header = match header::check(header, len, self.agreed) {
            Ok(header) => header,
            Err(bad) => return Ok(dropped(common, &bad)),
        };
        let Some(port) = port else {
            common.counters.requests.add(1);
            common.counters.errors.add(1);
            return Ok(Sent::Used);
        };
        if let Err(at) = self.gate.pass(len) {
            return Ok(Sent::Limited(at));
        }
        let sent = match port.send(&header, &self.frame) {
            Ok(()) => {
                common.counters.from_guest.add(len);
                common.link(true, "");
                Sent::Used
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    self.gate.postpone(len);
                    return Ok(Sent::Later);
                }
                io::ErrorKind::NetworkDown => {
                    common.counters.errors.add(1);
                    common.link(false, "the host's side is down");
                    Sent::Used
                }
                io::ErrorKind::UnexpectedEof => {
                    common.counters.errors.add(1);
                    Sent::Gone
                }
                _ => return Ok(dropped(common, &error)),
            },
        };
        common.counters.requests.add(1);
        Ok(sent)
    }
}

fn dropped(common: &Common, why: &dyn std::fmt::Display) -> Sent {
    common.counters.requests.add(1);
    common.counters.errors.add(1);
    ratelog::warn(format_args!("{}: a frame of the guest is dropped: {why}", common.device));
    Sent::Used
}
