//! virtio-vsock by the `virtio-drivers` crate. The host's half of each test is in tests/tests/bare_metal/vsock.rs.
//!
//! The guest listens on port [`SERVICE`]; the host listens for it on [`ECHO`], [`BULK`] and [`HALF`].

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use rt::entropy::Random;
use rt::memory::Machine;
use rt::virtio::find;
use rt::{clock, println, pvh};
use virtio_drivers::Error;
use virtio_drivers::device::socket::{
    ConnectionInfo, DisconnectReason, SocketError, StreamShutdown, VMADDR_CID_HOST, VirtIOSocket, VsockAddr,
    VsockConnectionManager, VsockEvent, VsockEventType,
};
use virtio_drivers::transport::{DeviceType, SomeTransport};

use crate::block::text;
use crate::{Outcome, check};

/// Where the guest listens.
const SERVICE: u32 = 1000;
/// Where the host gives back what it is given.
const ECHO: u32 = 2000;
/// Where nobody listens.
const NOBODY: u32 = 2001;
/// Where the host takes and gives much.
const BULK: u32 = 2002;
/// Where the host answers after the guest's last word.
const HALF: u32 = 2003;

/// One of the guest's buffers for packets, header and all.
const PACKET: usize = 64 << 10;
/// Its buffer for a connection.
const BUFFER: u32 = 256 << 10;
/// How long is waited for anything.
const PATIENCE: u64 = 20_000;

type Driver = VirtIOSocket<Machine, SomeTransport<'static>, PACKET>;
type Manager = VsockConnectionManager<Machine, SomeTransport<'static>, PACKET>;

fn driver() -> Result<Driver, String> {
    let found = find(DeviceType::Socket).first().copied().ok_or("no vsock")?;
    let driver = Driver::new(found.transport()).map_err(text)?;
    println!("cid {}", driver.guest_cid());
    Ok(driver)
}

fn manager() -> Result<Manager, String> {
    Ok(Manager::new_with_capacity(driver()?, BUFFER))
}

fn host(port: u32) -> VsockAddr {
    VsockAddr { cid: VMADDR_CID_HOST, port }
}

fn connections() -> usize {
    pvh::number("connections").unwrap_or(1) as usize
}

/// The next event of any connection.
fn next(manager: &mut Manager) -> Result<VsockEvent, String> {
    let mut event = Ok(None);
    let came = clock::until(PATIENCE, || {
        event = manager.poll();
        !matches!(event, Ok(None))
    });
    check!(came, "nothing happens");
    event.map_err(text)?.ok_or_else(|| "nothing happened".into())
}

/// Send all of `bytes`, as the host has room for them.
fn send(manager: &mut Manager, to: VsockAddr, port: u32, mut bytes: &[u8]) -> Outcome {
    let mut result = Ok(());
    let sent = clock::until(PATIENCE, || {
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(bytes.len().min(PACKET));
            match manager.send(to, port, piece) {
                Ok(()) => bytes = rest,
                Err(Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer)) => {
                    // Takes in what the host says of its room.
                    let event = manager.poll();
                    if let Err(error) = event {
                        result = Err(text(error));
                        return true;
                    }
                    return false;
                }
                Err(error) => {
                    result = Err(text(error));
                    return true;
                }
            }
        }
        true
    });
    check!(sent, "the host takes nothing for a long time");
    result
}

/// What has arrived on a connection.
fn receive(manager: &mut Manager, from: VsockAddr, port: u32) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; BUFFER as usize];
    let count = manager.recv(from, port, &mut bytes).map_err(text)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// Give back what comes on `connections=` connections of the host, until each has ended.
pub fn serve() -> Outcome {
    let mut manager = manager()?;
    manager.listen(SERVICE);
    println!("listening");
    let (mut opened, mut ended) = (0, 0);
    while ended < connections() {
        let event = next(&mut manager)?;
        match event.event_type {
            VsockEventType::ConnectionRequest => {
                check!(event.source.cid == VMADDR_CID_HOST, "a request of {}", event.source.cid);
                opened += 1;
            }
            VsockEventType::Received { .. } => {
                let bytes = receive(&mut manager, event.source, SERVICE)?;
                send(&mut manager, event.source, SERVICE, &bytes)?;
                manager.update_credit(event.source, SERVICE).map_err(text)?;
            }
            VsockEventType::Disconnected { .. } => ended += 1,
            _ => {}
        }
    }
    println!("served {opened}");
    Ok(())
}

/// Connect to the host `connections=` times, all at once; what is said comes back on each. Nobody else answers.
pub fn connect() -> Outcome {
    let mut manager = manager()?;
    manager.connect(host(NOBODY), 77).map_err(text)?;
    let refused = next(&mut manager)?.event_type;
    let reset = VsockEventType::Disconnected { reason: DisconnectReason::Reset };
    check!(refused == reset, "a connection to nobody: {refused:?}");

    let count = connections() as u32;
    let mut left: Vec<Vec<u8>> = vec![Vec::new(); count as usize];
    for port in 0..count {
        manager.connect(host(ECHO), port).map_err(text)?;
    }
    let mut ended = 0;
    while ended < count {
        let event = next(&mut manager)?;
        let port = event.destination.port;
        let mine = left.get_mut(port as usize).ok_or("an event of no connection")?;
        match event.event_type {
            VsockEventType::Connected => {
                let mut said = vec![0; 3000];
                Random(port.into()).fill(&mut said);
                mine.clone_from(&said);
                send(&mut manager, host(ECHO), port, &said)?;
            }
            VsockEventType::Received { .. } => {
                let heard = receive(&mut manager, host(ECHO), port)?;
                check!(mine.starts_with(&heard), "what comes back on port {port} is not what was said");
                mine.drain(..heard.len());
                if mine.is_empty() {
                    manager.shutdown(host(ECHO), port).map_err(text)?;
                }
            }
            VsockEventType::Disconnected { .. } => {
                check!(mine.is_empty(), "connection {port} ended with {} bytes missing", mine.len());
                ended += 1;
            }
            _ => {}
        }
    }
    println!("connected {count}");
    Ok(())
}

/// `mib=` MiB to the host, then as many from it, on one connection. Each direction is a stream of random numbers that the
/// other side knows as well.
pub fn bulk() -> Outcome {
    const PORT: u32 = 5;
    let len = pvh::number("mib").unwrap_or(64) << 20;
    let mut manager = manager()?;
    manager.connect(host(BULK), PORT).map_err(text)?;
    let answer = next(&mut manager)?.event_type;
    check!(answer == VsockEventType::Connected, "the host answers {answer:?}");

    let mut piece = vec![0; PACKET];
    let mut stream = Random(1);
    let start = clock::nanos();
    for _ in 0..len / PACKET as u64 {
        stream.fill(&mut piece);
        send(&mut manager, host(BULK), PORT, &piece)?;
    }
    println!("to-host bytes {len} nanos {}", clock::nanos() - start);

    let mut stream = Stream { random: Random(2), value: [0; 8], at: 8 };
    let mut heard = vec![0; BUFFER as usize];
    let (mut done, mut untold) = (0, 0);
    let start = clock::nanos();
    while done < len {
        next(&mut manager)?;
        let count = manager.recv(host(BULK), PORT, &mut heard).map_err(text)?;
        check!(stream.continues_with(&heard[..count]), "the host's bytes after {done} are wrong");
        done += count as u64;
        untold += count;
        if untold >= BUFFER as usize / 2 {
            manager.update_credit(host(BULK), PORT).map_err(text)?;
            untold = 0;
        }
    }
    println!("to-guest bytes {len} nanos {}", clock::nanos() - start);
    manager.shutdown(host(BULK), PORT).map_err(text)?;
    loop {
        if let VsockEventType::Disconnected { .. } = next(&mut manager)?.event_type {
            return Ok(());
        }
    }
}

/// A stream of random numbers, byte by byte.
struct Stream {
    random: Random,
    value: [u8; 8],
    at: usize,
}

impl Stream {
    fn continues_with(&mut self, bytes: &[u8]) -> bool {
        bytes.iter().all(|byte| {
            if self.at == 8 {
                self.value = self.random.next_u64().to_le_bytes();
                self.at = 0;
            }
            self.at += 1;
            self.value[self.at - 1] == *byte
        })
    }
}

/// One connection of a driver without a manager, which would end both directions at the first word of the end.
struct Raw {
    driver: Driver,
    info: ConnectionInfo,
}

impl Raw {
    /// The next packet and its payload.
    fn next(&mut self) -> Result<(VsockEvent, Vec<u8>), String> {
        let mut payload = Vec::new();
        let mut packet = Ok(None);
        let came = clock::until(PATIENCE, || {
            packet = self.driver.poll(|event, body| {
                payload.extend_from_slice(body);
                Ok(Some(event))
            });
            !matches!(packet, Ok(None))
        });
        check!(came, "no packet comes");
        let event = packet.map_err(text)?.ok_or("no packet came")?;
        self.info.update_for_event(&event);
        Ok((event, payload))
    }

    fn expect(&mut self, want: &VsockEventType) -> Outcome {
        let (event, _) = self.next()?;
        check!(event.event_type == *want, "{:?} comes, not {want:?}", event.event_type);
        Ok(())
    }

    /// Payload until the host says that it sends no more.
    fn hear_out(&mut self) -> Result<Vec<u8>, String> {
        let mut heard = Vec::new();
        loop {
            let (event, payload) = self.next()?;
            match event.event_type {
                VsockEventType::Received { length } => {
                    heard.extend(payload);
                    self.info.done_forwarding(length);
                }
                VsockEventType::Disconnected { reason: DisconnectReason::Shutdown } => return Ok(heard),
                VsockEventType::Disconnected { reason: DisconnectReason::Reset } => {
                    return Err("the host ends at once".into());
                }
                _ => {}
            }
        }
    }

    fn say_last(&mut self, words: &[u8]) -> Outcome {
        self.driver.send(words, &mut self.info).map_err(text)?;
        self.driver.shutdown_with_hints(&self.info, StreamShutdown::SEND).map_err(text)
    }
}

/// One direction ends, and the other goes on: first the guest's, on a connection of its own, then the host's, on one of
/// the host's.
pub fn half() -> Outcome {
    let mut raw = Raw { driver: driver()?, info: ConnectionInfo::new(host(HALF), 9) };
    raw.info.buf_alloc = BUFFER;
    raw.driver.connect(&raw.info).map_err(text)?;
    raw.expect(&VsockEventType::Connected)?;
    raw.say_last(b"the guest's last word")?;
    let heard = raw.hear_out()?;
    check!(heard == b"the host's answer", "{}", String::from_utf8_lossy(&heard));
    raw.driver.force_close(&raw.info).map_err(text)?;

    println!("listening");
    // The host may say its end once more, for the connection before.
    let request = loop {
        let (event, _) = raw.next()?;
        if event.event_type == VsockEventType::ConnectionRequest {
            break event;
        }
    };
    raw.info = ConnectionInfo::new(request.source, SERVICE);
    raw.info.buf_alloc = BUFFER;
    raw.info.update_for_event(&request);
    raw.driver.accept(&raw.info).map_err(text)?;
    let heard = raw.hear_out()?;
    check!(heard == b"the host's last word", "{}", String::from_utf8_lossy(&heard));
    raw.say_last(b"the guest's answer")?;
    // The host closes, having read to the end.
    raw.expect(&VsockEventType::Disconnected { reason: DisconnectReason::Shutdown })?;
    raw.driver.force_close(&raw.info).map_err(text)
}
