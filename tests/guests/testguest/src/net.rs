//! virtio-net: by the `virtio-drivers` crate where it can do it, else by hand. The host is at the other end of the tap, with
//! frames of a type that nobody else uses.

use alloc::string::String;
use alloc::vec::Vec;

use rt::memory::{Machine, pages};
use rt::ring::{Device, F_EVENT_IDX};
use rt::virtio::{Found, find};
use rt::{clock, println};
use virtio_drivers::device::net::VirtIONet;
use virtio_drivers::transport::{DeviceType, SomeTransport, Transport};

use crate::block::text;
use crate::{Outcome, check};

/// Features (virtio 1.2, 5.1.3).
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_MQ: u64 = 1 << 22;

/// For local experiments (IEEE 802).
const TYPE: [u8; 2] = [0x88, 0xb5];
/// How many frames come back.
const FRAMES: usize = 20;

type Driver = VirtIONet<Machine, SomeTransport<'static>, 16>;

fn first() -> Result<Found, String> {
    find(DeviceType::Network).first().copied().ok_or_else(|| "no network".into())
}

/// The next of the host's frames.
fn receive(net: &mut Driver) -> Result<Vec<u8>, String> {
    loop {
        check!(clock::until(clock::PATIENCE, || net.can_recv()), "nothing came in");
        let buffer = net.receive().map_err(text)?;
        let frame = buffer.packet().to_vec();
        net.recycle_rx_buffer(buffer).map_err(text)?;
        // The host's kernel may have something to say as well.
        if frame.get(12..14) == Some(&TYPE) {
            return Ok(frame);
        }
    }
}

/// The host's frames come back from the guest's address, with each byte inverted.
pub fn echo() -> Outcome {
    let mut net = Driver::new(first()?.transport(), 2048).map_err(text)?;
    let mac = net.mac_address();
    println!("mac {:x?}", mac);
    println!("ready");
    for _ in 0..FRAMES {
        let frame = receive(&mut net)?;
        let mut answer = net.new_tx_buffer(frame.len());
        let bytes = answer.packet_mut();
        bytes[..6].copy_from_slice(&frame[6..12]);
        bytes[6..12].copy_from_slice(&mac);
        bytes[12..14].copy_from_slice(&TYPE);
        for (to, from) in bytes[14..].iter_mut().zip(&frame[14..]) {
            *to = !from;
        }
        net.send(answer).map_err(text)?;
    }
    Ok(())
}

/// A frame to everybody with one byte of payload, its header before it. The address and the length of it.
fn broadcast(payload: u8) -> (u64, u32) {
    let mut bytes = Vec::from([0; 12]);
    bytes.extend([0xff; 6]);
    bytes.extend([2, 0, 0, 0, 0, 1]);
    bytes.extend(TYPE);
    bytes.resize(72, payload);
    let at = pages(1);
    // SAFETY: a page of our own, and the bytes are fewer.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    (at as u64, bytes.len() as u32)
}

/// Every queue pair sends, once it is turned on.
pub fn queues() -> Outcome {
    let mut net = Device::start(&first()?, F_MQ | F_CTRL_VQ | F_EVENT_IDX, 64);
    check!(net.features & F_MQ != 0, "the device does not say that it has several queues");
    let pairs: u16 = net.transport.read_config_space(8).map_err(text)?;
    check!(net.rings.len() == 2 * usize::from(pairs) + 1, "{pairs} pairs in {} queues", net.rings.len());
    println!("pairs {pairs}");
    println!("ready");
    let command = pages(1);
    for (asked, answer) in [(pairs + 1, 1), (0, 1), (1, 0), (pairs, 0)] {
        let [low, high] = asked.to_le_bytes();
        // SAFETY: a page of our own: class, command, how many, and room for the answer.
        unsafe { command.cast::<[u8; 5]>().write_volatile([4, 0, low, high, 0xee]) };
        let at = command as u64;
        let done = net.request(2 * pairs, &[(at, 4, false), (at + 4, 1, true)]);
        // SAFETY: as above.
        let said = unsafe { command.add(4).read_volatile() };
        check!((done, said) == (Some(1), answer), "to {asked} pairs the device says {said} ({done:?})");
    }
    for pair in 0..pairs {
        let (at, len) = broadcast(pair as u8);
        check!(net.request(2 * pair + 1, &[(at, len, false)]).is_some(), "pair {pair} does not send");
    }
    Ok(())
}

/// Wait until the link is up or down. Sends all the while: what is lost by that is seen.
fn wait_link(net: &mut Device, up: bool) -> Outcome {
    let (at, len) = broadcast(0);
    let seen = clock::until(clock::PATIENCE, || {
        let status: u16 = net.transport.read_config_space(6).unwrap_or(0xffff);
        if status == u16::from(up) {
            return true;
        }
        let sent = net.request(1, &[(at, len, false)]);
        sent.is_none()
    });
    let status: u16 = net.transport.read_config_space(6).map_err(text)?;
    check!(seen && status == u16::from(up), "the link's status is {status}");
    println!("{}", if up { "up" } else { "down" });
    Ok(())
}

/// The tap goes down, comes up, and goes away.
pub fn link() -> Outcome {
    let mut net = Device::start(&first()?, F_STATUS, 64);
    println!("ready");
    wait_link(&mut net, true)?;
    wait_link(&mut net, false)?;
    // Nothing is sent meanwhile, as a system does whose link is down.
    let up = clock::until(clock::PATIENCE, || net.transport.read_config_space::<u16>(6) == Ok(1));
    check!(up, "the link does not come back");
    println!("back");
    wait_link(&mut net, false)?;
    let (at, len) = broadcast(0);
    for _ in 0..10 {
        check!(net.request(1, &[(at, len, false)]).is_some(), "a frame is not given back");
    }
    Ok(())
}
