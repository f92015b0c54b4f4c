//! The hub without a device around it.

use std::os::unix::net::UnixListener;

use super::super::packet::{HOST_CID, TYPE_STREAM, op};
use super::*;
use crate::virtio::buffers::Buffers;
use arch::memory::GuestRam;
use vm_memory::GuestAddress;

#[test]
fn clients_ask_as_they_do_elsewhere() {
    let ask = |line: &str| parse_line(line.as_bytes());
    assert_eq!(ask("CONNECT 52\n"), Some(52));
    assert_eq!(ask("connect 4294967295\r\n"), Some(u32::MAX));
    assert_eq!(ask("CONNECT  7 \n"), Some(7));
    for wrong in ["\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT -1\n", "GET / HTTP\n"] {
        assert_eq!(ask(wrong), None, "{wrong:?}");
    }
    assert_eq!(parse_line(b"CONNECT \xff\n"), None);
}

#[test]
fn a_guest_that_takes_nothing_and_calls_without_end_fills_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sock");
    let listener = Arc::new(VsockListener::bind(&path).unwrap());
    let server = UnixListener::bind(format!("{}_1", path.display())).unwrap();
    let mut hub = Hub::new(3, listener, Arc::default(), 16).unwrap();
    let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap());
    let mut say = |op| {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 9,
            dst_port: 1,
            kind: TYPE_STREAM,
            op,
            ..Header::default()
        };
        hub.receive(&header, &Buffers::new(&ram, Vec::new()), &mut Vec::new());
        (hub.connections.len(), hub.ready.len(), hub.strays.len())
    };
    for _ in 0..100 {
        assert_eq!(say(op::REQUEST), (1, 1, 0));
        server.accept().unwrap();
        assert_eq!(say(op::RST), (0, 0, 0));
    }
}
