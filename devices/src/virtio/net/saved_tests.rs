//! What of a network device its guest finds again on another machine.

use std::sync::Arc;

use super::*;
use crate::state::Hex;
use crate::virtio::testing::{Buf, FakeNet, Guest, GuestQueue, Kind, eventually};

const ALL: u64 = u64::MAX;

fn net(network: &Arc<FakeNet>, last: u8) -> Box<Net> {
    let options = NetOptions { mac: [2, 0, 0, 0, 0, last], mtu: Some(9000) };
    let backend = Arc::<FakeNet>::clone(network);
    Box::new(Net::new("net0".to_owned(), backend, options, Arc::default()).unwrap())
}

fn command(guest: &mut Guest, control: &mut GuestQueue, bytes: &[u8]) {
    let at = guest.put(&[bytes, &[0xee]].concat());
    let len = bytes.len() as u32;
    guest.request(control, &[Buf::readable(at, len), Buf::writable(at + u64::from(len), 1)]);
    assert_eq!(guest.get(at + u64::from(len), 1), [0]);
}

#[test]
fn what_the_driver_asked_for_is_asked_of_the_new_network() {
    let mut guest = Guest::new(Kind::Mmio, net(&FakeNet::new(2, FakeNet::ALL), 1));
    let mut queues = guest.start(ALL);
    let control = queues.last_mut().unwrap();
    // Checksums alone, and both pairs.
    command(&mut guest, control, &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    command(&mut guest, control, &[4, 0, 2, 0]);
    let state = guest.save();
    let network = FakeNet::new(2, FakeNet::ALL);
    guest.restore(net(&network, 9), &state).unwrap();
    assert_eq!(network.accepted(), Offloads::default());
    guest.transport().resume();
    assert_eq!(network.accepted(), Offloads { csum: true, ..Offloads::default() });
    assert!(eventually(|| network.is_open(0) && network.is_open(1)));
    // The address is the new one's: a clone is another machine in its network.
    let mut mac = [0; 6];
    guest.registers.read_config(0, &mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 9]);
    assert_eq!(guest.save(), state);
}

#[test]
fn a_frame_in_hand_reaches_the_guest_on_the_next_machine() {
    let network = FakeNet::new(1, FakeNet::ALL);
    let mut guest = Guest::new(Kind::Mmio, net(&network, 1));
    let mut queues = guest.start(ALL);
    let at = guest.alloc(50 * 1526);
    let receive = &mut queues[0];
    let mut post = |guest: &Guest, range: std::ops::Range<u64>| {
        for index in range {
            receive.add(&[Buf::writable(at + index * 1526, 1526)]);
        }
        guest.registers.notify(0);
        receive.used_index()
    };
    post(&guest, 0..40);
    assert!(network.give(0, [0; 12], &[7; 50_000]));
    assert!(eventually(|| post(&guest, 0..0) == 33));
    // Seven are left, which is not enough.
    let frame: Vec<u8> = (0..20_000_u32).map(|i| (i % 251) as u8).collect();
    assert!(network.give(0, [0; 12], &frame));
    let mut state = guest.save();
    let held = |state: &crate::virtio::transport::TransportState| match &state.device {
        DeviceState::Net(net) => net.receive.iter().filter(|state| state.frame.is_some()).count(),
        other => panic!("{other:?}"),
    };
    // It is taken from the network when the device gets to it.
    assert!(eventually(|| {
        guest.transport().resume();
        std::thread::sleep(std::time::Duration::from_millis(1));
        state = guest.save();
        held(&state) == 1
    }));
    let other = FakeNet::new(1, FakeNet::ALL);
    guest.restore(net(&other, 1), &state).unwrap();
    assert_eq!(held(&guest.save()), 1);
    guest.transport().resume();
    post(&guest, 40..50);
    assert!(eventually(|| post(&guest, 0..0) == 33 + 14));
    // The buffers lie one behind the other, and each is full but the last.
    let bytes = guest.get(at + 33 * 1526, 20_012);
    assert_eq!(bytes[10..12], [14, 0]);
    assert!(bytes[12..] == frame);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let network = FakeNet::new(2, FakeNet::ALL);
    let DeviceState::Net(good) = net(&network, 1).save() else { panic!("a network") };
    let frame = |pair, len| ReceiveState { pair, most: 1, frame: Some(Hex(vec![0; len])) };
    let wrong = [
        ("pairs", NetState { pairs: 0, ..good.clone() }),
        ("pairs", NetState { pairs: 3, ..good.clone() }),
        ("offloads", NetState { offloads: Some(1 << 40), ..good.clone() }),
        ("receive", NetState { receive: vec![frame(2, 100)], ..good.clone() }),
        ("receive", NetState { receive: vec![frame(0, 100), frame(0, 100)], ..good.clone() }),
        ("receive", NetState { receive: vec![frame(0, 11)], ..good.clone() }),
        ("receive", NetState { receive: vec![frame(0, 1 << 20)], ..good.clone() }),
    ];
    for (field, state) in wrong {
        let error = net(&network, 1).restore(&DeviceState::Net(state)).unwrap_err();
        assert_eq!((error.device.as_str(), error.field.as_str()), ("net0", field));
    }
    assert!(net(&network, 1).restore(&DeviceState::Net(good)).is_ok());
}
