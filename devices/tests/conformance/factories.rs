//! The devices under test.

use std::io;

use devices::virtio::console::{Console, ConsoleSize};
use devices::virtio::device::{DeviceKind, VirtioDevice};
use devices::virtio::rng::Rng;
use devices::virtio::testing::{Buf, Guest};

/// A fresh device.
pub struct Made {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Gives it something to say to the guest, where it says nothing unasked.
    pub poke: Box<dyn Fn()>,
}

/// Looks at a request that came back.
pub type Check = Box<dyn Fn(&Guest, u32)>;

/// A request that keeps the rules.
pub struct Request {
    /// Its buffers.
    pub buffers: Vec<Buf>,
    /// Given how many bytes the device says it wrote.
    pub check: Check,
}

/// A device under test.
#[derive(Clone, Copy)]
pub struct Factory {
    /// Its name.
    pub name: &'static str,
    /// What it says it is.
    pub kind: DeviceKind,
    /// How many queues it has.
    pub queues: u16,
    /// Makes one.
    pub make: fn() -> Made,
    /// A good request for one of its queues.
    pub request: fn(&mut Guest, u16) -> Request,
}

/// All of them.
pub fn all_devices() -> Vec<Factory> {
    vec![console(), rng()]
}

fn rng() -> Factory {
    Factory {
        name: "rng",
        kind: DeviceKind::Rng,
        queues: 1,
        make: || Made { device: Box::new(Rng::new("rng0")), poke: Box::new(|| {}) },
        request: |guest, _| {
            let addr = guest.alloc(64);
            Request {
                buffers: vec![Buf::writable(addr, 40), Buf::writable(addr + 40, 24)],
                check: Box::new(move |guest, len| {
                    assert_eq!(len, 64);
                    assert_ne!(guest.get(addr, 64), [0; 64]);
                }),
            }
        },
    }
}

fn console() -> Factory {
    Factory {
        name: "console",
        kind: DeviceKind::Console,
        queues: 2,
        make: || {
            let size = ConsoleSize { columns: 80, rows: 25 };
            let (device, input) = Console::new("con0", Box::new(io::sink()), Some(size)).expect("a console");
            let poke = Box::new(move || assert!(input.push(b"hello") == 5));
            Made { device: Box::new(device), poke }
        },
        request: |guest, queue| {
            if queue == 0 {
                let addr = guest.alloc(5);
                return Request {
                    buffers: vec![Buf::writable(addr, 2), Buf::writable(addr + 2, 3)],
                    check: Box::new(move |guest, len| {
                        // A reset in between may have left input that another request took a part of.
                        assert!((1..=5).contains(&len));
                        assert!(guest.get(addr, len as usize).iter().all(|byte| b"helo".contains(byte)));
                    }),
                };
            }
            let addr = guest.put(b"from the guest");
            Request {
                buffers: vec![Buf::readable(addr, 4), Buf::readable(addr + 4, 10)],
                check: Box::new(|_, len| assert_eq!(len, 0)),
            }
        },
    }
}
