//! How fast virtio-vsock is, by a driver of its own that keeps both rings full and copies nothing.

use alloc::string::String;
use alloc::vec::Vec;

use rt::memory::pages;
use rt::ring::{Buffer, Device, F_EVENT_IDX};
use rt::virtio::find;
use rt::{clock, println, pvh};
use virtio_drivers::transport::{DeviceType, Transport};

use crate::{Outcome, check};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Bytes of a header (virtio 1.2, 5.10.6).
const HEADER: u32 = 44;
/// Payload of one packet to the host, as Linux sends it at most.
const PIECE: u32 = 64 << 10;
/// Packets on their way to the host.
const SLOTS: u64 = 16;
/// Buffers for packets from it, and their size.
const ROOMS: u64 = 64;
const ROOM: u32 = 64 << 10;
/// This side's buffer for the connection.
const BUFFER: u32 = 2 << 20;
const PATIENCE: u64 = 20_000;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

/// One connection and the device under it.
struct Link {
    device: Device,
    cid: u64,
    host_port: u32,
    /// The headers of the packets to the host, one a slot, and a payload that they share.
    headers: u64,
    payload: u64,
    in_flight: u64,
    next_slot: u64,
    /// Where each posted buffer is, by its place in the ring.
    rooms: Vec<u64>,
    sent: u32,
    received: u32,
    told: u32,
    peer_room: u32,
    peer_forwarded: u32,
}

impl Link {
    fn start(host_port: u32) -> Result<Self, String> {
        let found = find(DeviceType::Socket).first().copied().ok_or("no vsock")?;
        let device = Device::start(&found, F_EVENT_IDX, 256);
        let cid: u32 = device.transport.read_config_space(0).map_err(crate::block::text)?;
        let mut link = Self {
            device,
            cid: cid.into(),
            host_port,
            headers: pages(1) as u64,
            payload: pages(u64::from(PIECE) / 4096) as u64,
            in_flight: 0,
            next_slot: 0,
            rooms: Vec::new(),
            sent: 0,
            received: 0,
            told: 0,
            peer_room: 0,
            peer_forwarded: 0,
        };
        link.rooms.resize(256, 0);
        for _ in 0..ROOMS {
            link.post(pages(u64::from(ROOM) / 4096) as u64);
        }
        link.ring(RECEIVE);
        Ok(link)
    }

    fn ring(&mut self, queue: u16) {
        if self.device.rings[usize::from(queue)].publish(0) {
            self.device.transport.notify(queue);
        }
    }

    fn post(&mut self, at: u64) {
        let ring = &mut self.device.rings[usize::from(RECEIVE)];
        let head = ring.chain(&[(at, ROOM, true)]);
        ring.offer(head);
        self.rooms[usize::from(head)] = at;
    }

    /// Put a packet in the ring, when there is a slot.
    fn send(&mut self, op: u16, flags: u32, len: u32) -> Outcome {
        let free = clock::until(PATIENCE, || {
            self.reap();
            self.in_flight < SLOTS
        });
        check!(free, "the device takes no packet");
        let at = self.headers + 64 * (self.next_slot % SLOTS);
        self.next_slot += 1;
        let ports = u64::from(self.host_port) << 32 | 9;
        let kind = u32::from(op) << 16 | 1;
        self.told = self.received;
        let words = [len, kind, flags, BUFFER, self.received];
        // SAFETY: a slot of 64 bytes in a page of our own, which the device has given back.
        unsafe {
            (at as *mut [u64; 3]).write_volatile([self.cid, 2, ports]);
            ((at + 24) as *mut [u32; 5]).write_volatile(words);
        }
        let buffers: [Buffer; 2] = [(at, HEADER, false), (self.payload, len, false)];
        let ring = &mut self.device.rings[usize::from(TRANSMIT)];
        let head = ring.chain(if len == 0 { &buffers[..1] } else { &buffers });
        ring.offer(head);
        self.in_flight += 1;
        self.sent = self.sent.wrapping_add(len);
        self.ring(TRANSMIT);
        Ok(())
    }

    fn reap(&mut self) {
        while self.device.rings[usize::from(TRANSMIT)].take().is_some() {
            self.in_flight -= 1;
        }
    }

    /// Take a packet if there is one: what it is, and how long its payload.
    fn take(&mut self) -> Option<(u16, u32)> {
        let (head, _) = self.device.rings[usize::from(RECEIVE)].take()?;
        let at = self.rooms[head as usize];
        // SAFETY: a buffer of our own that the device has given back.
        let [len, kind, _, room, forwarded] = unsafe { ((at + 24) as *const [u32; 5]).read_volatile() };
        self.peer_room = room;
        self.peer_forwarded = forwarded;
        self.received = self.received.wrapping_add(len);
        self.post(at);
        self.ring(RECEIVE);
        Some(((kind >> 16) as u16, len))
    }

    fn next(&mut self) -> Result<(u16, u32), String> {
        let mut packet = None;
        clock::until(PATIENCE, || {
            packet = self.take();
            packet.is_some()
        });
        packet.ok_or_else(|| "nothing comes".into())
    }
}

/// `mib=` MiB to who listens on port 2002 of the host, then as many from there. What they are nobody looks at.
pub fn speed() -> Outcome {
    let len = pvh::number("mib").unwrap_or(256) << 20;
    let mut link = Link::start(2002)?;
    link.send(REQUEST, 0, 0)?;
    let (answer, _) = link.next()?;
    check!(answer == RESPONSE, "the host answers {answer}");

    let start = clock::nanos();
    for _ in 0..len / u64::from(PIECE) {
        while link.peer_room - link.sent.wrapping_sub(link.peer_forwarded) < PIECE {
            let (op, _) = link.next()?;
            check!(op == CREDIT_UPDATE, "{op} comes");
        }
        link.send(RW, 0, PIECE)?;
    }
    // The host's first byte says that it has them all.
    let mut done = 0;
    while done == 0 {
        done = u64::from(link.next()?.1);
    }
    println!("to-host bytes {len} nanos {}", clock::nanos() - start);

    let start = clock::nanos();
    while done < len {
        done += u64::from(link.next()?.1);
        if link.received.wrapping_sub(link.told) >= BUFFER / 2 {
            link.send(CREDIT_UPDATE, 0, 0)?;
        }
    }
    println!("to-guest bytes {len} nanos {}", clock::nanos() - start);
    link.send(SHUTDOWN, 3, 0)
}
