//! The guest's packets: what each does to the connections.

use std::path::Path;

use super::host::HostEnd;
use super::hub::{GuestEnd, Hub};
use super::link::{Ports, Verdict};
use super::packet::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op};
use crate::ratelog;
use crate::virtio::buffers::Buffers;

impl Hub {
    /// The guest sent this packet. `buffers` are all of it, the header first; they were found to be long enough.
    pub(super) fn receive(&mut self, header: &Header, buffers: &Buffers, iovecs: &mut Vec<libc::iovec>) {
        self.counters.requests.add(1);
        // From or to somebody that is not there: no answer could be delivered (5.10.6.5).
        if header.dst_cid != HOST_CID || header.src_cid != self.cid {
            self.counters.errors.add(1);
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let known = self.by_ports.get(&ports).copied().filter(|_| header.kind == TYPE_STREAM);
        match (known, header.op) {
            (Some(id), _) => self.receive_on(id, header, buffers, iovecs),
            (None, op::RST) => {}
            (None, op::REQUEST) if header.kind == TYPE_STREAM => self.open(header),
            (None, _) => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: &Header) {
        self.counters.errors.add(1);
        self.answer(header.refusal());
    }

    /// The guest asks for a connection.
    fn open(&mut self, header: &Header) {
        if !self.has_place_for_guest() {
            ratelog::warn(format_args!("vsock: the guest has too many connections: one more was refused"));
            return self.refuse(header);
        }
        let path = self.listener.path_of(header.dst_port);
        match unconnected(&path) {
            Some(host) => {
                let id = self.add_dialing(host, header);
                self.dial(id);
            }
            None => self.refuse(header),
        }
    }

    /// A packet of a connection that exists.
    fn receive_on(&mut self, id: u64, header: &Header, buffers: &Buffers, iovecs: &mut Vec<libc::iovec>) {
        let Some(link) = self.link(id) else { return };
        let verdict = link.receive(header);
        let closing = link.is_closing();
        match verdict {
            Verdict::Noted => self.enqueue(id),
            Verdict::Accepted => self.accepted(id),
            Verdict::Data => self.deliver(id, header.len, buffers, iovecs),
            Verdict::Narrowed => self.narrowed(id),
            Verdict::Finished => {
                let answer = link.reset();
                self.answer(answer);
                self.guest_left(id);
            }
            Verdict::Gone => self.guest_left(id),
            Verdict::Refused => {
                self.counters.errors.add(1);
                self.reset(id);
            }
        }
        if closing {
            // It still reads what it was sent.
            self.renew(id);
        }
    }

    /// The guest accepts a client.
    fn accepted(&mut self, id: u64) {
        self.set_deadline(id, None);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let GuestEnd::Link(link) = &connection.guest {
            connection.host.greet(link.ports.host);
        }
        self.settle(id);
    }

    /// `len` bytes of payload for the host: as much as its socket takes straight from guest memory, and the rest, which the
    /// guest's credit keeps small, when there is room.
    fn deliver(&mut self, id: u64, len: u32, buffers: &Buffers, iovecs: &mut Vec<libc::iovec>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (host, len) = (&mut connection.host, u64::from(len));
        self.counters.from_guest.add(len);
        iovecs.clear();
        let pointed = buffers.point_on(HEADER_LEN as u64, len, iovecs);
        let written = if pointed.is_ok_and(|count| count > 0) {
            // SAFETY: they point into guest memory, which `buffers` keep mapped and to which nothing has a reference.
            unsafe { host.write(iovecs) as u64 }
        } else {
            0
        };
        let mut gone = written;
        if host.refuses() {
            // The guest is told (or was) that nobody reads; until it knows, this is lost as it would be in a socket.
            gone = len;
        } else if written < len {
            // At most a connection's buffer: the credit was checked.
            let mut rest = vec![0; (len - written) as usize];
            // RAM does not shrink: it cannot fail.
            let _ = buffers.fetch(HEADER_LEN as u64 + written, &mut rest);
            host.write_later(rest);
        }
        if let GuestEnd::Link(link) = &mut connection.guest {
            link.credit.forwarded(gone as u32);
        }
        self.settle(id);
    }

    /// The guest sends or receives nothing more.
    fn narrowed(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let GuestEnd::Link(link) = &connection.guest
            && !link.guest_receives()
        {
            connection.host.end_reading();
        }
        self.settle(id);
    }
}

/// A socket for a connection to `path`.
fn unconnected(path: &Path) -> Option<HostEnd> {
    match HostEnd::unconnected() {
        Ok(host) => Some(host),
        Err(error) => {
            ratelog::warn(format_args!("vsock: cannot connect to {}: {error}", path.display()));
            None
        }
    }
}
