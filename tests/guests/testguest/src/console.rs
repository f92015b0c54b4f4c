//! virtio-console and virtio-rng, by the `virtio-drivers` crate.

use alloc::string::String;

use rt::memory::Machine;
use rt::virtio::{Found, find};
use rt::{clock, println};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::{DeviceType, SomeTransport};

use crate::block::text;
use crate::{Outcome, check};

fn first(kind: DeviceType) -> Result<Found, String> {
    find(kind).first().copied().ok_or_else(|| alloc::format!("no {kind:?}"))
}

fn console() -> Result<VirtIOConsole<Machine, SomeTransport<'static>>, String> {
    VirtIOConsole::new(first(DeviceType::Console)?.transport()).map_err(text)
}

/// Lines reach the host.
pub fn write() -> Outcome {
    let mut console = console()?;
    for line in 0..20 {
        let line = alloc::format!("console line {line}\n");
        console.send_bytes(line.as_bytes()).map_err(text)?;
    }
    println!("console size {:?}", console.size().map_err(text)?);
    Ok(())
}

/// A line from the host comes back in capitals.
pub fn echo() -> Outcome {
    let mut console = console()?;
    console.send_bytes(b"say something\n").map_err(text)?;
    let mut line = String::new();
    loop {
        let mut byte = None;
        clock::until(clock::PATIENCE, || {
            byte = console.recv(true).ok().flatten();
            byte.is_some()
        });
        match byte {
            Some(b'\n' | b'\r') => break,
            Some(byte) => line.push(char::from(byte)),
            None => return Err("nothing came in".into()),
        }
    }
    let line = alloc::format!("echo {}\n", line.to_ascii_uppercase());
    console.send_bytes(line.as_bytes()).map_err(text)
}

/// Random bytes: as many as asked for, and never the same.
pub fn rng() -> Outcome {
    let mut rng =
        VirtIORng::<Machine, _>::new(first(DeviceType::EntropySource)?.transport()).map_err(text)?;
    let mut before = [0; 64];
    for len in [1, 16, 64, 64] {
        let mut bytes = [0; 64];
        let got = rng.request_entropy(&mut bytes[..len]).map_err(text)?;
        check!((1..=len).contains(&got), "{got} bytes for {len}");
        check!(len < 16 || bytes != before, "the same bytes twice");
        check!(len < 64 || bytes[32..].iter().any(|&byte| byte != 0), "zeroes");
        before = bytes;
    }
    Ok(())
}
