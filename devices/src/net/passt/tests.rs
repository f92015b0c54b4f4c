//! The port against a peer that the test plays itself.

use std::io::{ErrorKind, Read, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::chain::Segment;
use arch::memory::{GuestRam, SharedRam};

/// A network, and passt's end of its socket.
fn pair() -> (Passt, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let network = Passt::new();
    network.connect(ours).unwrap();
    (network, theirs)
}

fn port(network: &Passt) -> Box<dyn Port> {
    network.port(0).unwrap()
}

fn ram() -> SharedRam {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

/// Guest memory at `at`, in pieces of these lengths that do not touch.
fn memory(ram: &SharedRam, at: u64, lens: &[u32]) -> Frame {
    let mut frame = Frame::new(ram);
    let mut next = at;
    for len in lens {
        assert!(frame.push(Segment { addr: GuestAddress(next), len: *len }).unwrap());
        next += u64::from(*len) + 8;
    }
    frame
}

/// Guest memory that holds `frame`, in pieces of up to `piece` bytes.
fn frame_in(ram: &SharedRam, bytes: &[u8], piece: usize) -> Frame {
    let lens: Vec<u32> = bytes.chunks(piece).map(|piece| piece.len() as u32).collect();
    let frame = memory(ram, 0x1000, &lens);
    frame.fill(0, bytes).unwrap();
    frame
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn message(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

fn read_message(peer: &mut UnixStream) -> Vec<u8> {
    let mut prefix = [0; PREFIX];
    peer.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    peer.read_exact(&mut frame).unwrap();
    frame
}

const CLEAR: [u8; HEADER] = [0; HEADER];

#[test]
fn a_frame_goes_out_after_its_length_and_without_its_header() {
    let (network, mut peer) = pair();
    let mut port = port(&network);
    let ram = ram();
    // In one piece, and in as many as a frame can have.
    for (len, piece) in [(60, 4096), (1514, 16), (65535, 65536), (65535, 65), (14, 1)] {
        let frame = pattern(len);
        port.send(&CLEAR, &frame_in(&ram, &frame, piece)).unwrap();
        assert_eq!(read_message(&mut peer), frame, "{len} bytes in pieces of {piece}");
    }
}

#[test]
fn what_passt_would_not_take_is_refused_and_harms_nothing() {
    let (network, mut peer) = pair();
    let mut port = port(&network);
    let ram = ram();
    let refused = |result: io::Result<()>| assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
    for len in [0, 1, 13, 65536, 100_000] {
        refused(port.send(&CLEAR, &frame_in(&ram, &pattern(len), 4096)));
    }
    let frame = frame_in(&ram, &pattern(100), 4096);
    refused(port.send(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &frame));
    refused(port.send(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &frame));
    port.send(&CLEAR, &frame).unwrap();
    assert_eq!(read_message(&mut peer), pattern(100));
}

#[test]
fn a_frame_is_received_with_a_clear_header_into_scattered_memory() {
    let (network, mut peer) = pair();
    let mut port = port(&network);
    let ram = ram();
    let frame = pattern(3000);
    peer.write_all(&message(&frame)).unwrap();
    let room = memory(&ram, 0x2000, &[5, 100, 4000]);
    room.fill(0, &[0xff; 4105]).unwrap();
    assert_eq!(port.receive(&room).unwrap(), HEADER + frame.len());
    let mut got = vec![0; HEADER + frame.len() + 1];
    room.fetch(0, &mut got).unwrap();
    assert_eq!(got, [&CLEAR[..], &frame, &[0xff]].concat(), "and nothing after it is touched");
    assert_eq!(port.receive(&room).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_frame_larger_than_the_room_is_cut_off_and_the_next_is_whole() {
    let (network, mut peer) = pair();
    let mut port = port(&network);
    let ram = ram();
    peer.write_all(&message(&pattern(1000))).unwrap();
    peer.write_all(&message(&pattern(64))).unwrap();
    let room = memory(&ram, 0x2000, &[100]);
    assert_eq!(port.receive(&room).unwrap(), HEADER + 1000);
    let mut after = [0; 8];
    ram.read_slice(&mut after, GuestAddress(0x2000 + 100)).unwrap();
    assert_eq!(after, [0; 8]);
    assert_eq!(port.receive(&room).unwrap(), HEADER + 64);
    let mut got = [0; HEADER + 64];
    room.fetch(0, &mut got).unwrap();
    assert_eq!(got[HEADER..], pattern(64));
}

#[test]
fn nothing_of_a_frame_is_taken_until_there_is_room_for_all_of_it() {
    let (network, mut peer) = pair();
    let mut port = port(&network);
    let ram = ram();
    let frame = pattern(65535);
    let memory = frame_in(&ram, &frame, 65536);
    for _ in 0..3 {
        let mut sent = 0;
        let error = loop {
            match port.send(&CLEAR, &memory) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(sent >= 1);
        assert!(!writable(&*port), "a device that waits for it must not wake up at once");
        for n in 0..sent {
            assert_eq!(read_message(&mut peer), frame);
            // As soon as it is called writable, a frame is taken.
            if writable(&*port) {
                port.send(&CLEAR, &memory).unwrap();
                (n..sent).for_each(|_| assert_eq!(read_message(&mut peer), frame));
                break;
            }
        }
        peer.set_nonblocking(true).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "no more than was sent");
        peer.set_nonblocking(false).unwrap();
    }
}

fn writable(port: &dyn Port) -> bool {
    let fd = port.fd();
    let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

#[test]
fn a_length_that_no_frame_has_ends_the_connection() {
    for len in [0, 13, 65536, u32::MAX] {
        let (network, mut peer) = pair();
        let mut port = port(&network);
        peer.write_all(&len.to_be_bytes()).unwrap();
        peer.write_all(&pattern(200)).unwrap();
        let room = memory(&ram(), 0, &[4096]);
        for _ in 0..2 {
            let error = port.receive(&room).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
            assert!(error.to_string().contains(&len.to_string()));
        }
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "passt sees the end too");
    }
}

#[test]
fn a_port_that_is_dropped_within_a_frame_leaves_it_to_the_next() {
    let (network, mut peer) = pair();
    let ram = ram();
    let room = memory(&ram, 0, &[4096]);
    let frame = pattern(1000);
    let (begin, end) = (message(&pattern(60)), message(&frame));
    let (cut, rest) = end.split_at(500);
    peer.write_all(&[&begin, cut].concat()).unwrap();
    let mut first = port(&network);
    assert_eq!(first.receive(&room).unwrap(), HEADER + 60);
    assert_eq!(first.receive(&room).unwrap_err().kind(), ErrorKind::WouldBlock);
    let busy = network.port(0).err().unwrap();
    assert_eq!(busy.kind(), ErrorKind::ResourceBusy, "it has one port");
    drop(first);
    peer.write_all(rest).unwrap();
    assert_eq!(port(&network).receive(&room).unwrap(), HEADER + 1000);
    let mut got = vec![0; HEADER + 1000];
    room.fetch(0, &mut got).unwrap();
    assert_eq!(got[HEADER..], frame);
}

#[test]
fn passts_death_is_seen_by_its_port_and_the_next_passt_gets_a_new_one() {
    let (network, mut peer) = pair();
    let ram = ram();
    let room = memory(&ram, 0, &[4096]);
    let mut old = port(&network);
    // What came before is delivered; a frame of which only a part came is not.
    peer.write_all(&message(&pattern(60))).unwrap();
    peer.write_all(&message(&pattern(70))[..20]).unwrap();
    drop(peer);
    assert_eq!(old.receive(&room).unwrap(), HEADER + 60);
    assert_eq!(old.receive(&room).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    let lost = old.send(&CLEAR, &frame_in(&ram, &pattern(60), 4096)).unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::UnexpectedEof);
    network.disconnect();
    assert_eq!(network.port(0).err().unwrap().kind(), ErrorKind::NotConnected);

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    network.connect(ours).unwrap();
    let mut new = port(&network);
    theirs.write_all(&message(&pattern(80))).unwrap();
    assert_eq!(old.receive(&room).unwrap_err().kind(), ErrorKind::UnexpectedEof, "the old one stays dead");
    drop(old);
    assert_eq!(new.receive(&room).unwrap(), HEADER + 80);
}

#[test]
fn a_death_with_unread_frames_is_the_end_as_well() {
    let (network, peer) = pair();
    let ram = ram();
    let mut port = port(&network);
    port.send(&CLEAR, &frame_in(&ram, &pattern(60), 4096)).unwrap();
    drop(peer);
    let error = port.receive(&memory(&ram, 0, &[4096])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn a_disconnected_port_ends_although_passts_socket_is_open_somewhere() {
    let (network, _leaked) = pair();
    let mut port = port(&network);
    network.disconnect();
    assert_eq!(port.receive(&memory(&ram(), 0, &[4096])).unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn it_has_one_queue_pair_and_no_offload() {
    let (network, _peer) = pair();
    assert_eq!((network.queue_pairs(), network.offloads()), (1, Offloads::default()));
    assert_eq!(network.port(1).err().unwrap().kind(), ErrorKind::InvalidInput);
}
