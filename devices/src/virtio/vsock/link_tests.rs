//! The guest's end of a connection, packet by packet.

use proptest::prelude::*;

use super::*;

const CID: u64 = 3;
const PORTS: Ports = Ports { host: 1000, guest: 52 };
const BUFFER: u32 = 1000;

/// A packet of the guest, which has a buffer of 500 bytes.
fn packet(op: u16) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: PORTS.guest,
        dst_port: PORTS.host,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 500,
        ..Header::default()
    }
}

fn shutdown(flags: u32) -> Header {
    Header { flags, ..packet(op::SHUTDOWN) }
}

fn data(len: u32) -> Header {
    Header { len, ..packet(op::RW) }
}

/// A connection that both sides agree on and that owes nobody anything.
fn open() -> Link {
    let mut link = Link::asked_for(&packet(op::REQUEST), BUFFER);
    link.connected();
    assert_eq!(link.due(false), Some(Due::Response));
    assert_eq!(link.say(Due::Response).op, op::RESPONSE);
    assert_eq!(link.due(false), None);
    link
}

#[test]
fn the_host_asks_and_the_guest_accepts() {
    let mut link = Link::asking(CID, PORTS, BUFFER);
    assert!(!link.is_known());
    assert_eq!(link.due(true), Some(Due::Request));
    let request = link.say(Due::Request);
    assert_eq!((request.src_cid, request.src_port, request.dst_cid, request.dst_port), (2, 1000, 3, 52));
    assert_eq!((request.kind, request.op, request.buf_alloc), (TYPE_STREAM, op::REQUEST, BUFFER));
    assert_eq!(link.due(true), None, "nothing more before the answer");
    assert_eq!(link.receive(&packet(op::RESPONSE)), Verdict::Accepted);
    assert_eq!(link.due(true), Some(Due::Data(500)));
    assert_eq!(link.receive(&packet(op::RESPONSE)), Verdict::Refused, "twice");
}

#[test]
fn the_guest_refuses() {
    let mut link = Link::asking(CID, PORTS, BUFFER);
    link.say(Due::Request);
    assert_eq!(link.receive(&packet(op::RST)), Verdict::Gone);
}

#[test]
fn the_guest_asks_and_is_answered_when_the_host_has() {
    let mut link = Link::asked_for(&packet(op::REQUEST), BUFFER);
    assert_eq!(link.due(true), None);
    link.connected();
    assert_eq!(link.due(true), Some(Due::Response));
    assert_eq!(link.say(Due::Response).buf_alloc, BUFFER);
    assert_eq!(link.due(true), Some(Due::Data(500)));
}

#[test]
fn packets_out_of_place_are_refused() {
    for op in [op::RESPONSE, op::RW, op::REQUEST, 0, 8, u16::MAX] {
        assert_eq!(Link::asking(CID, PORTS, BUFFER).receive(&packet(op)), Verdict::Refused, "unsent, {op}");
        let mut dialing = Link::asked_for(&packet(op::REQUEST), BUFFER);
        assert_eq!(dialing.receive(&packet(op)), Verdict::Refused, "dialing, {op}");
    }
    for op in [op::RESPONSE, op::REQUEST, 0, 8, u16::MAX] {
        assert_eq!(open().receive(&packet(op)), Verdict::Refused, "open, {op}");
    }
    let mut asked = Link::asking(CID, PORTS, BUFFER);
    asked.say(Due::Request);
    assert_eq!(asked.receive(&data(1)), Verdict::Refused, "not accepted yet");
}

#[test]
fn payload_is_sent_as_there_is_room() {
    let mut link = open();
    assert_eq!(link.due(true), Some(Due::Data(500)));
    assert_eq!(link.data(500).len, 500);
    assert_eq!(link.due(true), Some(Due::CreditRequest));
    link.say(Due::CreditRequest);
    assert_eq!(link.due(true), None, "asked once");
    assert_eq!(link.receive(&packet(op::CREDIT_UPDATE)), Verdict::Noted);
    assert_eq!(link.due(true), None, "still no room, and not asked again");
    link.receive(&Header { fwd_cnt: 200, ..packet(op::CREDIT_UPDATE) });
    assert_eq!(link.due(true), Some(Due::Data(200)));
    link.data(200);
    assert_eq!(link.due(true), Some(Due::CreditRequest));
}

#[test]
fn the_guest_hears_of_room_when_it_asks_and_when_there_is_much() {
    let mut link = open();
    assert_eq!(link.receive(&packet(op::CREDIT_REQUEST)), Verdict::Noted);
    assert_eq!(link.due(false), Some(Due::CreditUpdate));
    link.say(Due::CreditUpdate);
    assert_eq!(link.due(false), None);
    assert_eq!(link.receive(&data(BUFFER)), Verdict::Data);
    link.credit.forwarded(BUFFER / 2);
    assert_eq!(link.due(false), Some(Due::CreditUpdate));
    assert_eq!(link.say(Due::CreditUpdate).fwd_cnt, BUFFER / 2);
    assert_eq!(link.due(false), None);
    assert_eq!(link.receive(&data(BUFFER / 2 + 1)), Verdict::Refused, "more than there is room for");
}

#[test]
fn each_direction_ends_on_its_own() {
    let mut link = open();
    assert_eq!(link.receive(&shutdown(SHUTDOWN_SEND)), Verdict::Narrowed);
    assert!(!link.guest_sends() && link.guest_receives());
    assert_eq!(link.receive(&data(1)), Verdict::Refused, "it said that it sends nothing more");
    assert_eq!(link.due(true), Some(Due::Data(500)), "it still receives");
    assert_eq!(link.receive(&shutdown(SHUTDOWN_RECEIVE)), Verdict::Finished, "both by now");

    let mut link = open();
    assert_eq!(link.receive(&shutdown(SHUTDOWN_RECEIVE)), Verdict::Narrowed);
    assert_eq!(link.due(true), None, "it receives nothing more");
    assert_eq!(link.receive(&data(1)), Verdict::Data);
    assert_eq!(open().receive(&shutdown(SHUTDOWN_BOTH)), Verdict::Finished);
    assert_eq!(open().receive(&shutdown(0xffff_fffc)), Verdict::Narrowed, "flags that mean nothing");
}

#[test]
fn the_host_ends_behind_its_last_byte() {
    let mut link = open();
    link.host_ends(SHUTDOWN_SEND);
    assert_eq!(link.due(false), Some(Due::Shutdown(SHUTDOWN_SEND)));
    assert_eq!(link.say(Due::Shutdown(SHUTDOWN_SEND)).flags, SHUTDOWN_SEND);
    assert_eq!(link.due(false), None);
    assert!(!link.is_closing());
    assert_eq!(link.receive(&data(10)), Verdict::Data, "the other direction goes on");
    link.host_ends(SHUTDOWN_RECEIVE);
    assert_eq!(link.due(false), Some(Due::Shutdown(SHUTDOWN_BOTH)));
    link.say(Due::Shutdown(SHUTDOWN_BOTH));
    assert!(link.is_closing());
    assert_eq!(link.receive(&packet(op::RST)), Verdict::Gone);
}

proptest! {
    /// Whatever the guest says in whatever order: nothing is held beyond the buffer, nothing is sent beyond the guest's room,
    /// and there is an end to what it is told.
    #[test]
    fn any_guest_is_survived(
        host_asks in any::<bool>(),
        packets in proptest::collection::vec((0_u16..9, 0_u32..5, any::<u32>(), any::<u32>(), 0_u32..2000), 0..60),
    ) {
        let mut link = if host_asks {
            Link::asking(CID, PORTS, BUFFER)
        } else {
            let mut link = Link::asked_for(&packet(op::REQUEST), BUFFER);
            link.connected();
            link
        };
        for (op, flags, buf_alloc, fwd_cnt, len) in packets {
            let mut said = 0;
            while let Some(due) = link.due(true) {
                if let Due::Data(room) = due {
                    prop_assert_eq!(room, link.credit.peer_free());
                    link.data(room);
                } else {
                    link.say(due);
                }
                said += 1;
                prop_assert!(said < 10, "it is told for ever: {:?}", due);
            }
            let verdict = link.receive(&Header { flags, buf_alloc, fwd_cnt, len, ..packet(op) });
            prop_assert!(link.credit.held() <= BUFFER);
            if matches!(verdict, Verdict::Gone | Verdict::Finished | Verdict::Refused) {
                link.reset();
                break;
            }
            link.credit.forwarded(len / 2);
            link.host_ends(flags & SHUTDOWN_BOTH);
        }
    }
}
