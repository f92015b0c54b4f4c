//! The guest's end of one connection: what it said, and what it is to be told next. No sockets in here.
//!
//! ```text
//!  the guest's REQUEST ─► Dialing ── the host's socket answers: RESPONSE ──┐
//!                                                                          ▼
//!  the host's CONNECT ─► Requesting ── REQUEST ─► Requested ── RESPONSE ─► Open ── SHUTDOWN both, RST ─► gone
//!                                                     └── RST, or no answer ─► gone
//! ```

use super::credit::Credit;
use super::packet::{HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest asks; the host's socket is not connected yet.
    Dialing,
    /// The host asks; the guest was not told yet.
    Requesting,
    /// The host asks; the guest has not answered yet.
    Requested,
    /// Both agree.
    Open,
}

/// What a packet of the guest means to whoever holds the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look whether there is something to tell the guest.
    Noted,
    /// The guest accepts what the host asked for.
    Accepted,
    /// Its payload is for the host.
    Data,
    /// The guest sends nothing more, receives nothing more, or both of these at different times.
    Narrowed,
    /// The guest is done with the connection and waits for its RST.
    Finished,
    /// The guest has no such connection any more.
    Gone,
    /// The packet breaks the rules: answer RST and drop the connection.
    Refused,
}

/// What the guest is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Request,
    Response,
    CreditUpdate,
    CreditRequest,
    /// The host may have payload, and the guest has room for this much.
    Data(u32),
    /// These flags.
    Shutdown(u32),
}

/// The guest's end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Link {
    cid: u64,
    pub(super) ports: Ports,
    pub(super) phase: Phase,
    pub(super) credit: Credit,
    response_due: bool,
    update_due: bool,
    /// The guest was asked for room and has not had any since.
    asked: bool,
    /// What the guest will not do any more ([`SHUTDOWN_SEND`], [`SHUTDOWN_RECEIVE`]).
    guest_shut: u32,
    /// What the host will not do any more.
    host_shut: u32,
    /// What of that the guest knows.
    told_shut: u32,
}

impl Link {
    /// The guest asks for a connection, by this packet.
    pub(super) fn asked_for(request: &Header, buf_alloc: u32) -> Self {
        let ports = Ports { host: request.dst_port, guest: request.src_port };
        let mut link = Self::new(request.src_cid, ports, Phase::Dialing, buf_alloc);
        link.credit.update(request.buf_alloc, request.fwd_cnt);
        link
    }

    /// The host asks the guest `cid` for a connection.
    pub(super) fn asking(cid: u64, ports: Ports, buf_alloc: u32) -> Self {
        Self::new(cid, ports, Phase::Requesting, buf_alloc)
    }

    fn new(cid: u64, ports: Ports, phase: Phase, buf_alloc: u32) -> Self {
        Self {
            cid,
            ports,
            phase,
            credit: Credit::new(buf_alloc),
            response_due: false,
            update_due: false,
            asked: false,
            guest_shut: 0,
            host_shut: 0,
            told_shut: 0,
        }
    }

    /// The host's socket is connected, as the guest asked.
    pub(super) fn connected(&mut self) {
        self.phase = Phase::Open;
        self.response_due = true;
    }

    /// The host's side does no more of `flags`.
    pub(super) fn host_ends(&mut self, flags: u32) {
        self.host_shut |= flags;
    }

    /// Whether the guest still receives.
    pub(super) fn guest_receives(&self) -> bool {
        self.guest_shut & SHUTDOWN_RECEIVE == 0
    }

    /// Whether the guest still sends.
    pub(super) fn guest_sends(&self) -> bool {
        self.guest_shut & SHUTDOWN_SEND == 0
    }

    /// The host is gone and the guest was told.
    pub(super) fn is_closing(&self) -> bool {
        self.told_shut == SHUTDOWN_BOTH
    }

    /// The guest has heard of the connection.
    pub(super) fn is_known(&self) -> bool {
        self.phase != Phase::Requesting
    }

    /// The guest sent this packet.
    pub(super) fn receive(&mut self, header: &Header) -> Verdict {
        self.credit.update(header.buf_alloc, header.fwd_cnt);
        if self.credit.peer_free() > 0 {
            self.asked = false;
        }
        match (self.phase, header.op) {
            (_, op::RST) => Verdict::Gone,
            (Phase::Requested, op::RESPONSE) => {
                self.phase = Phase::Open;
                Verdict::Accepted
            }
            (Phase::Open, op::RW) if self.guest_sends() => match self.credit.received(header.len) {
                Ok(()) => Verdict::Data,
                Err(_) => Verdict::Refused,
            },
            (Phase::Open | Phase::Dialing, op::CREDIT_UPDATE) => Verdict::Noted,
            (Phase::Open | Phase::Dialing, op::CREDIT_REQUEST) => {
                self.update_due = true;
                Verdict::Noted
            }
            (Phase::Open | Phase::Dialing, op::SHUTDOWN) => {
                self.guest_shut |= header.flags & SHUTDOWN_BOTH;
                if self.guest_shut == SHUTDOWN_BOTH { Verdict::Finished } else { Verdict::Narrowed }
            }
            _ => Verdict::Refused,
        }
    }

    /// What the guest is to be told next. `readable`: the host's socket may have payload, or its end.
    pub(super) fn due(&self, readable: bool) -> Option<Due> {
        match self.phase {
            Phase::Dialing | Phase::Requested => return None,
            Phase::Requesting => return Some(Due::Request),
            Phase::Open => {}
        }
        if self.response_due {
            return Some(Due::Response);
        }
        if self.update_due || self.credit.stale() {
            return Some(Due::CreditUpdate);
        }
        if readable && self.guest_receives() {
            match self.credit.peer_free() {
                0 if self.asked => {}
                0 => return Some(Due::CreditRequest),
                room => return Some(Due::Data(room)),
            }
        }
        // The end of what the host sends is known once all of it was sent.
        (self.host_shut != self.told_shut).then_some(Due::Shutdown(self.host_shut))
    }

    /// The packet that says `due`, which counts as said from now on. Payload is said by [`Link::data`].
    pub(super) fn say(&mut self, due: Due) -> Header {
        match due {
            Due::Request => {
                self.phase = Phase::Requested;
                self.header(op::REQUEST, 0, 0)
            }
            Due::Response => {
                self.response_due = false;
                self.header(op::RESPONSE, 0, 0)
            }
            Due::CreditUpdate | Due::Data(_) => self.header(op::CREDIT_UPDATE, 0, 0),
            Due::CreditRequest => {
                self.asked = true;
                self.header(op::CREDIT_REQUEST, 0, 0)
            }
            Due::Shutdown(flags) => {
                self.told_shut = flags;
                self.header(op::SHUTDOWN, 0, flags)
            }
        }
    }

    /// The header of `len` bytes of payload.
    pub(super) fn data(&mut self, len: u32) -> Header {
        self.credit.sent(len);
        self.header(op::RW, len, 0)
    }

    /// The packet that ends the connection at once.
    pub(super) fn reset(&mut self) -> Header {
        self.header(op::RST, 0, 0)
    }

    fn header(&mut self, op: u16, len: u32, flags: u32) -> Header {
        // Every packet tells it.
        self.update_due = false;
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
