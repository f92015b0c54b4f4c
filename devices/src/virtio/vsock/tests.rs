//! The whole device, between a guest that says what a driver says (or what none would) and programs of the host.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::hub::LARGE;
use super::packet::{HEADER_LEN, HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::{TransportReset, Vsock, VsockListener};
use crate::counters::Counters;
use crate::virtio::testing::{Buf, Guest, GuestQueue, Kind, PATIENCE, RAM, eventually};

const CID: u32 = 5;
/// The guest's buffer for a connection.
const BUFFER: u32 = 100_000;
/// Bytes of one of its packets, header and all.
const PACKET: u64 = 4096;
/// Where it puts what it sends: RAM that nobody allocates.
const SCRATCH: u64 = RAM[1].0;

struct Bench {
    guest: Guest,
    queues: Vec<GuestQueue>,
    /// Where each posted buffer is, by the head of its chain.
    posted: Vec<(u32, u64)>,
    path: PathBuf,
    counters: Arc<Counters>,
    reset: TransportReset,
    _directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        let listener = Arc::new(VsockListener::bind(&path).unwrap());
        let counters = Arc::<Counters>::default();
        let mut device = Vsock::new("vsock0", CID, listener, Arc::clone(&counters)).unwrap();
        device.answer = Duration::from_secs(2);
        let reset = device.transport_reset();
        let mut guest = Guest::new(Kind::Mmio, Box::new(device));
        let queues = guest.start(u64::MAX);
        Self { guest, queues, posted: Vec::new(), path, counters, reset, _directory: directory }
    }

    /// With buffers for packets.
    fn ready() -> Self {
        let mut bench = Self::new();
        bench.post(8, PACKET as u32);
        bench
    }

    fn post(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            let at = self.guest.alloc(len.into());
            self.post_at(at, len);
        }
    }

    fn post_at(&mut self, at: u64, len: u32) {
        let head = self.queues[0].add(&[Buf::writable(at, len)]);
        self.posted.push((head.into(), at));
        self.guest.registers.notify(0);
    }

    /// The next packet to the guest, which gives its buffer anew.
    fn next(&mut self) -> (Header, Vec<u8>) {
        let (at, header, payload) = self.take();
        self.post_at(at, PACKET as u32);
        (header, payload)
    }

    fn take(&mut self) -> (u64, Header, Vec<u8>) {
        let used = self.queues[0].wait_used();
        self.read(used)
    }

    fn read(&mut self, (head, len): (u32, u32)) -> (u64, Header, Vec<u8>) {
        let index = self.posted.iter().position(|(posted, _)| *posted == head).unwrap();
        let (_, at) = self.posted.remove(index);
        let bytes = self.guest.get(at, len as usize);
        let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().unwrap();
        let header = Header::parse(header);
        assert_eq!(header.len as usize, payload.len());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID.into()));
        (at, header, payload.to_vec())
    }

    fn expect(&mut self, op: u16) -> Header {
        let (header, _) = self.next();
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    /// The next packet, if there is one once the device has done all there is to do.
    fn poll(&mut self) -> Option<(Header, Vec<u8>)> {
        self.guest.transport().pause();
        let used = self.queues[0].take_used();
        self.guest.transport().resume();
        let (at, header, payload) = self.read(used?);
        self.post_at(at, PACKET as u32);
        Some((header, payload))
    }

    /// The guest is told nothing more.
    fn expect_silence(&mut self) {
        // Stopping waits until everything is done.
        self.guest.transport().pause();
        let silent = self.queues[0].take_used().is_none();
        self.guest.transport().resume();
        assert!(silent);
    }

    fn send(&mut self, header: &Header, payload: &[u8]) {
        let mut bytes = header.bytes().to_vec();
        bytes.extend_from_slice(payload);
        // It is used when the call returns.
        self.guest.ram.write_slice(&bytes, GuestAddress(SCRATCH)).unwrap();
        self.guest.request(&mut self.queues[1], &[Buf::readable(SCRATCH, bytes.len() as u32)]);
    }

    /// A connection of a client, and the guest's side of it as the guest would say it.
    fn call_from_host(&mut self) -> (UnixStream, Header) {
        let mut client = UnixStream::connect(&self.path).unwrap();
        client.write_all(b"CONNECT 52\n").unwrap();
        let request = self.expect(op::REQUEST);
        assert_eq!((request.dst_port, request.kind), (52, TYPE_STREAM));
        let mine = packet(request.src_port, 52);
        self.send(&Header { op: op::RESPONSE, ..mine }, &[]);
        let said = format!("OK {}\n", request.src_port);
        assert_eq!(hear(&mut client, said.len()), said.as_bytes());
        (client, mine)
    }

    /// Who answers the guest on `port`.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }

    /// A connection of the guest to `port`, on which `listener` listens.
    fn call_from_guest(&mut self, listener: &UnixListener, port: u32) -> (UnixStream, Header) {
        let mine = packet(port, 900);
        self.send(&Header { op: op::REQUEST, ..mine }, &[]);
        self.expect(op::RESPONSE);
        (listener.accept().unwrap().0, mine)
    }
}

/// A packet of the guest.
fn packet(host: u32, guest: u32) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        kind: TYPE_STREAM,
        buf_alloc: BUFFER,
        ..Header::default()
    }
}

fn data(mine: &Header, payload: &[u8]) -> Header {
    Header { op: op::RW, len: payload.len() as u32, ..*mine }
}

fn hear(client: &mut UnixStream, len: usize) -> Vec<u8> {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut heard = vec![0; len];
    client.read_exact(&mut heard).unwrap();
    heard
}

fn hear_out(client: &mut UnixStream) -> Vec<u8> {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut heard = Vec::new();
    // One that is reset has ended as well.
    let _ = client.read_to_end(&mut heard);
    heard
}

fn numbers(len: u32) -> Vec<u8> {
    (0..len / 4).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn bytes_go_both_ways() {
    let mut bench = Bench::ready();
    let (mut client, mine) = bench.call_from_host();
    client.write_all(b"to the guest").unwrap();
    let (header, payload) = bench.next();
    assert_eq!((header.op, payload.as_slice()), (op::RW, b"to the guest".as_slice()));
    bench.send(&data(&mine, b"to the host"), b"to the host");
    assert_eq!(hear(&mut client, 11), b"to the host");
    assert_eq!((bench.counters.to_guest.get(), bench.counters.from_guest.get()), (12, 11));
    drop(client);
    assert_eq!(bench.expect(op::SHUTDOWN).flags, SHUTDOWN_BOTH);
}

#[test]
fn packets_that_belong_to_nobody_are_refused_or_dropped() {
    let mut bench = Bench::ready();
    let stray = packet(7, 8);
    for op in [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 99] {
        bench.send(&Header { op, ..stray }, &[]);
        let answer = bench.expect(op::RST);
        assert_eq!((answer.src_port, answer.dst_port, answer.kind), (7, 8, TYPE_STREAM));
    }
    // A datagram: the answer is of its type.
    bench.send(&Header { op: op::REQUEST, kind: 3, ..stray }, &[]);
    assert_eq!(bench.expect(op::RST).kind, 3);
    // Nobody listens there.
    bench.send(&Header { op: op::REQUEST, ..stray }, &[]);
    bench.expect(op::RST);
    let errors = bench.counters.errors.get();
    for (src_cid, dst_cid) in [(CID.into(), 1), (CID.into(), 1 << 32 | 2), (4, HOST_CID), (0, 0)] {
        bench.send(&Header { op: op::REQUEST, src_cid, dst_cid, ..stray }, &[]);
    }
    bench.send(&Header { op: op::RST, ..stray }, &[]);
    bench.expect_silence();
    assert_eq!(bench.counters.errors.get(), errors + 4);
    assert!(!bench.guest.broken());
}

#[test]
fn packets_that_are_none_break_the_device() {
    let wrong: [fn(&mut Bench); 4] = [
        |bench| {
            let at = bench.guest.put(&data(&packet(7, 8), &[0; 10]).bytes());
            // 10 bytes are said to follow, 9 do.
            bench.queues[1].add(&[Buf::readable(at, HEADER_LEN as u32 + 9)]);
            bench.guest.registers.notify(1);
        },
        |bench| {
            bench.queues[1].add(&[Buf::readable(0x1000, HEADER_LEN as u32 - 1)]);
            bench.guest.registers.notify(1);
        },
        |bench| bench.post(1, HEADER_LEN as u32 - 1),
        |bench| {
            bench.queues[2].add(&[Buf::writable(0x1000, 3)]);
            bench.guest.registers.notify(2);
        },
    ];
    for (index, wrong) in wrong.into_iter().enumerate() {
        let mut bench = Bench::new();
        wrong(&mut bench);
        assert!(eventually(|| bench.guest.broken()), "{index}");
    }
}

/// Send `piece` again and again while the host has room, as the guest hears it. Returns how often.
fn send_while_there_is_room(bench: &mut Bench, mine: &Header, piece: &[u8]) -> u32 {
    let (mut sent, mut forwarded) = (0_u32, 0);
    let len = piece.len() as u32;
    loop {
        while sent - forwarded + len <= LARGE {
            bench.send(&data(mine, piece), piece);
            sent += len;
        }
        bench.send(&Header { op: op::CREDIT_REQUEST, ..*mine }, &[]);
        let before = forwarded;
        // What was said unasked is older.
        while let Some(packet) = bench.poll() {
            assert_eq!(packet.0.op, op::CREDIT_UPDATE);
            forwarded = packet.0.fwd_cnt;
        }
        if forwarded == before && sent - forwarded + len > LARGE {
            return sent / len;
        }
    }
}

#[test]
fn who_sends_more_than_there_is_room_for_loses_the_connection() {
    let mut bench = Bench::ready();
    let (mut client, mine) = bench.call_from_host();
    let piece = vec![7; 1 << 16];
    // The client reads nothing: there is room in its socket and in the connection's buffer.
    let sent = send_while_there_is_room(&mut bench, &mine, &piece);
    bench.send(&data(&mine, &piece), &piece);
    bench.expect(op::RST);
    assert!(!bench.guest.broken(), "the others go on");
    bench.call_from_host();
    assert!(hear_out(&mut client).len() <= sent as usize * piece.len());
}

#[test]
fn what_a_slow_client_does_not_take_waits_and_outlives_the_guests_end() {
    let mut bench = Bench::ready();
    let listener = bench.listen(1);
    let (mut client, mine) = bench.call_from_guest(&listener, 1);
    let piece = numbers(1 << 15);
    let sent = send_while_there_is_room(&mut bench, &mine, &piece);
    assert!(sent * (1 << 15) > LARGE, "its socket has room as well");
    bench.send(&Header { op: op::SHUTDOWN, flags: SHUTDOWN_BOTH, ..mine }, &[]);
    // Taken over: the guest need not wait.
    bench.expect(op::RST);
    let heard = hear_out(&mut client);
    assert!(heard == piece.repeat(sent as usize), "{} of {} bytes", heard.len(), sent << 15);
}

#[test]
fn the_guest_hears_of_room_when_the_client_reads() {
    let mut bench = Bench::ready();
    let (mut client, mine) = bench.call_from_host();
    let piece = numbers(1 << 15);
    let sent = send_while_there_is_room(&mut bench, &mine, &piece);
    let heard = hear(&mut client, (sent << 15) as usize);
    assert!(heard == piece.repeat(sent as usize));
    let mut forwarded = 0;
    assert!(eventually(|| {
        forwarded = bench.poll().map_or(forwarded, |(header, _)| header.fwd_cnt);
        (sent << 15) - forwarded <= LARGE / 2
    }));
}

#[test]
fn the_guest_is_given_no_more_than_it_has_room_for() {
    let mut bench = Bench::ready();
    let (client, mine) = bench.call_from_host();
    let all = numbers(3 * BUFFER);
    let words = all.clone();
    let writer = std::thread::spawn(move || {
        let mut client = client;
        client.write_all(&words).unwrap();
    });
    let (mut heard, mut forwarded, mut asked) = (Vec::new(), 0_u32, 0);
    while heard.len() < all.len() {
        let (header, payload) = bench.next();
        match header.op {
            op::RW => heard.extend(payload),
            op::CREDIT_REQUEST => {
                asked += 1;
                assert_eq!(heard.len() as u32 - forwarded, BUFFER, "all room is used");
                forwarded = heard.len() as u32;
                bench.send(&Header { op: op::CREDIT_UPDATE, fwd_cnt: forwarded, ..mine }, &[]);
            }
            _ => {}
        }
        assert!(heard.len() as u32 - forwarded <= BUFFER);
    }
    assert!(heard == all);
    assert_eq!(asked, 2);
    writer.join().unwrap();
}

#[test]
fn buffers_of_any_shape_are_filled_in_order() {
    let mut bench = Bench::new();
    let mut client = UnixStream::connect(&bench.path).unwrap();
    client.write_all(b"CONNECT 52\n").unwrap();
    let header = HEADER_LEN as u32;
    bench.post(1, header);
    let (_, request, _) = bench.take();
    let mine = packet(request.src_port, 52);
    client.write_all(&numbers(400)).unwrap();
    bench.send(&Header { op: op::RESPONSE, ..mine }, &[]);
    let mut heard = Vec::new();
    // One without room for payload is given a packet without.
    for room in [1, 0, 3, 0, 0, 100, 7, 1000] {
        let at = bench.guest.alloc(4096);
        let pieces = [Buf::writable(at, 20), Buf::writable(at + 20, header - 20 + room)];
        let head = bench.queues[0].add(&pieces);
        bench.posted.push((head.into(), at));
        bench.guest.registers.notify(0);
    }
    while heard.len() < 400 {
        heard.extend(bench.take().2);
    }
    assert!(heard == numbers(400));
}

#[test]
fn the_guest_that_does_not_answer_is_not_waited_for() {
    let mut bench = Bench::ready();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = UnixStream::connect(&bench.path).unwrap();
        client.write_all(b"CONNECT 52\n").unwrap();
        bench.expect(op::REQUEST);
        clients.push(client);
    }
    for mut client in clients {
        assert_eq!(hear_out(&mut client), b"");
        bench.expect(op::RST);
    }
    // One that is told no is gone at once.
    let mut client = UnixStream::connect(&bench.path).unwrap();
    client.write_all(b"CONNECT 52\n").unwrap();
    let request = bench.expect(op::REQUEST);
    bench.send(&Header { op: op::RST, ..packet(request.src_port, 52) }, &[]);
    assert_eq!(hear_out(&mut client), b"");
}

#[test]
fn a_pause_keeps_connections_and_a_reset_does_not() {
    let mut bench = Bench::ready();
    let (mut client, mine) = bench.call_from_host();
    bench.guest.transport().pause();
    client.write_all(b"while it stood still").unwrap();
    let mut late = UnixStream::connect(&bench.path).unwrap();
    late.write_all(b"CONNECT 53\n").unwrap();
    bench.guest.transport().resume();
    let mut seen = [bench.next(), bench.next()];
    seen.sort_by_key(|(header, _)| header.op);
    assert_eq!((seen[0].0.op, seen[0].0.dst_port), (op::REQUEST, 53));
    assert_eq!(seen[1].1, b"while it stood still");
    bench.send(&data(&mine, b"so it did"), b"so it did");
    assert_eq!(hear(&mut client, 9), b"so it did");

    bench.guest.registers.write_status(0);
    assert_eq!(hear_out(&mut client), b"");
    assert_eq!(hear_out(&mut late), b"");
    // Who comes while there is no driver waits for one.
    let mut early = UnixStream::connect(&bench.path).unwrap();
    early.write_all(b"CONNECT 54\n").unwrap();
    bench.queues = bench.guest.start(u64::MAX);
    bench.posted.clear();
    bench.post(8, PACKET as u32);
    assert_eq!(bench.expect(op::REQUEST).dst_port, 54);
}

#[test]
fn a_transport_reset_ends_what_the_guest_knows() {
    let mut bench = Bench::ready();
    let (mut client, mine) = bench.call_from_host();
    let at = bench.guest.alloc(8);
    bench.queues[2].add(&[Buf::writable(at, 8)]);
    bench.guest.registers.notify(2);
    bench.reset.send();
    assert_eq!(bench.queues[2].wait_used().1, 4);
    assert_eq!(bench.guest.get(at, 4), [0; 4]);
    assert_eq!(hear_out(&mut client), b"");
    bench.send(&data(&mine, b"x"), b"x");
    bench.expect(op::RST);
    bench.call_from_host();
}

#[test]
fn each_direction_ends_on_its_own() {
    let mut bench = Bench::ready();
    let listener = bench.listen(1);
    let (mut client, mine) = bench.call_from_guest(&listener, 1);
    bench.send(&data(&mine, b"last"), b"last");
    bench.send(&Header { op: op::SHUTDOWN, flags: SHUTDOWN_SEND, ..mine }, &[]);
    assert_eq!(hear_out(&mut client), b"last");
    client.write_all(b"answer").unwrap();
    assert_eq!(bench.next().1, b"answer");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    // Both are over now, which may be said at once or one after the other.
    while bench.expect(op::SHUTDOWN).flags != SHUTDOWN_BOTH {}
    bench.send(&Header { op: op::RST, ..mine }, &[]);
    bench.expect_silence();
}

#[test]
fn the_guest_has_a_bounded_number_of_connections() {
    let mut bench = Bench::ready();
    let listener = bench.listen(1);
    let mut clients = Vec::new();
    let refused = (0..1100).find(|port| {
        bench.send(&Header { op: op::REQUEST, ..packet(1, *port) }, &[]);
        let answer = bench.next().0.op;
        if answer == op::RESPONSE {
            clients.push(listener.accept().unwrap());
        }
        answer == op::RST
    });
    assert!(refused.is_some_and(|count| (64..=1024).contains(&count)), "{refused:?}");
    // A place that is free again is taken again.
    bench.send(&Header { op: op::RST, ..packet(1, 3) }, &[]);
    bench.send(&Header { op: op::REQUEST, ..packet(1, 5000) }, &[]);
    bench.expect(op::RESPONSE);
}

#[test]
fn connections_end_where_the_guest_is_restored_and_new_ones_begin() {
    let mut bench = Bench::ready();
    let (mut client, mine) = bench.call_from_host();
    let state = bench.guest.save();
    let path = bench._directory.path().join("other");
    let listener = Arc::new(VsockListener::bind(&path).unwrap());
    let device = Vsock::new("vsock0", CID, listener, Arc::default()).unwrap();
    bench.guest.restore(Box::new(device), &state).unwrap();
    bench.path = path;
    assert_eq!(hear_out(&mut client), b"", "the device of before is gone");
    bench.guest.transport().resume();
    let at = bench.guest.alloc(8);
    bench.queues[2].add(&[Buf::writable(at, 8)]);
    bench.guest.registers.notify(2);
    assert_eq!(bench.queues[2].wait_used().1, 4);
    assert_eq!(bench.guest.get(at, 4), [0; 4], "the transport was reset");
    // A guest that has not heard of that yet.
    bench.send(&data(&mine, b"late"), b"late");
    bench.expect(op::RST);
    let (mut client, mine) = bench.call_from_host();
    bench.send(&data(&mine, b"new"), b"new");
    assert_eq!(hear(&mut client, 3), b"new");
}
