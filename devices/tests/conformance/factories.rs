//! The devices under test.

use std::io::{self, Write};
use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use devices::disk::engine::EngineKind;
use devices::disk::layer::{self, Base, Format};
use devices::disk::{Disk, DiskOptions};
use devices::limit::{Limit, Limiter, Limits};
use devices::storage::HostStorage;
use devices::virtio::balloon::{Balloon, BalloonControl};
use devices::virtio::block::{Block, BlockOptions};
use devices::virtio::console::{Console, ConsoleSize};
use devices::virtio::device::{DeviceKind, VirtioDevice};
use devices::virtio::fs::{Folder, Fs, Owners};
use devices::virtio::net::{Net, NetLimiters, NetOptions};
use devices::virtio::rng::Rng;
use devices::virtio::testing::{Buf, FakeNet, Guest};
use devices::virtio::vsock::{Vsock, VsockListener};

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
    vec![
        console(),
        rng(),
        net("net", || net_device(NetLimiters::default())),
        net("limited net", || net_device(NetLimiters { receive: limiter(60, 1), transmit: limiter(60, 1) })),
        balloon(),
        block("block", || block_device(EngineKind::Auto)),
        block("plain block", || block_device(EngineKind::Plain)),
        block("limited block", limited_block),
        block("layered block", layered_block),
        vsock(),
        fs(),
    ]
}

fn rng() -> Factory {
    Factory {
        name: "rng",
        kind: DeviceKind::Rng,
        queues: 1,
        make: || Made { device: Box::new(Rng::new("rng0", Arc::default())), poke: Box::new(|| {}) },
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
            let (device, input) =
                Console::new("con0", Box::new(io::sink()), Some(size), Arc::default()).expect("a console");
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

/// What the network sends all the time.
const FRAME: [u8; 60] = [0x5a; 60];

fn net_device(limiters: NetLimiters) -> Made {
    let network = FakeNet::new(1, FakeNet::ALL);
    let options = NetOptions { mac: [2, 0, 0, 0, 0, 1], mtu: Some(1500) };
    let backend = Arc::<FakeNet>::clone(&network);
    let device = Net::new("net0".to_owned(), backend, options, Arc::default()).expect("a network");
    let poke = Box::new(move || {
        // If the guest takes none, they pile up.
        network.give(0, [0; 12], &FRAME);
        while network.take(0).is_some() {}
    });
    Made { device: Box::new(device.limited(limiters)), poke }
}

/// So tight that most requests have to wait for the clock.
fn limiter(bytes: u64, ops: u64) -> Option<Arc<Limiter>> {
    let limit = |rate, burst| Some(Limit { rate: NonZero::new(rate)?, burst: NonZero::new(burst)? });
    Limiter::new(Limits { bandwidth: limit(10 << 20, bytes), ops: limit(2000, ops) })
}

/// Receives on queue 0, sends on queue 1, and turns all offloads off on queue 2.
fn net(name: &'static str, make: fn() -> Made) -> Factory {
    Factory {
        name,
        kind: DeviceKind::Net,
        queues: 3,
        make,
        request: |guest, queue| match queue {
            0 => {
                let addr = guest.alloc(2048);
                Request {
                    buffers: vec![Buf::writable(addr, 20), Buf::writable(addr + 20, 1600)],
                    check: Box::new(move |guest, len| {
                        assert_eq!(len, 72);
                        assert_eq!(guest.get(addr, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
                        assert_eq!(guest.get(addr + 12, 60), FRAME);
                    }),
                }
            }
            1 => {
                let addr = guest.put(&[[0; 12].as_slice(), FRAME.as_slice()].concat());
                Request {
                    buffers: vec![Buf::readable(addr, 5), Buf::readable(addr + 5, 67)],
                    check: Box::new(|_, len| assert_eq!(len, 0)),
                }
            }
            _ => {
                let addr = guest.put(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xee]);
                Request {
                    buffers: vec![
                        Buf::readable(addr, 1),
                        Buf::readable(addr + 1, 9),
                        Buf::writable(addr + 10, 1),
                    ],
                    check: Box::new(move |guest, len| {
                        assert_eq!((len, guest.get(addr + 10, 1)), (1, vec![0]));
                    }),
                }
            }
        },
    }
}

/// How long the disk is, in bytes.
const DISK: usize = 64 * 1024;

/// A disk of bytes that are 7, in a file that nobody else can find.
fn disk() -> Arc<Disk> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), [7; DISK]).expect("a disk");
    let options = DiskOptions { path: file.path().to_owned(), readonly: false, direct: false };
    Arc::new(Disk::open(&options).expect("a disk"))
}

fn block_device(engine: EngineKind) -> Made {
    made_of(BlockOptions { engine, ..BlockOptions::default() })
}

/// Two queues of a disk of layers.
fn layered_block() -> Made {
    let options = BlockOptions { queues: 2, queue_size: 64, ..BlockOptions::default() };
    let base = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(base.path(), [7; DISK]).expect("a disk");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("top.qcow2");
    let below = Base { name: base.path().to_owned(), format: Format::Raw };
    layer::create(&HostStorage, &path, Some(&below), DISK as u64).expect("a layer");
    let disk = Disk::open(&DiskOptions { path, readonly: false, direct: false }).expect("a disk");
    // The files stay open without their names.
    Made { device: Box::new(Block::new("disk0".to_owned(), Arc::new(disk), options)), poke: Box::new(|| {}) }
}

/// Two queues that must wait for each other and the clock before most requests.
fn limited_block() -> Made {
    made_of(BlockOptions { limiter: limiter(512, 1), ..BlockOptions::default() })
}

fn made_of(options: BlockOptions) -> Made {
    let options = BlockOptions { queues: 2, queue_size: 64, ..options };
    Made { device: Box::new(Block::new("disk0".to_owned(), disk(), options)), poke: Box::new(|| {}) }
}

/// Reads on queue 0, writes (of what is there) on queue 1.
fn block(name: &'static str, make: fn() -> Made) -> Factory {
    Factory {
        name,
        kind: DeviceKind::Block,
        queues: 2,
        make,
        request: |guest, queue| {
            let mut page = [7; 2048];
            page[..16].fill(0);
            // The type; the sector is 0.
            page[0] = queue as u8;
            page[16] = 0xee;
            let at = guest.put(&page);
            let [header, status, data] = [at, at + 16, at + 1024];
            let read = queue == 0;
            let data_buffer = |offset, len| Buf { addr: data + offset, len, writable: read };
            Request {
                buffers: vec![
                    Buf::readable(header, 3),
                    Buf::readable(header + 3, 13),
                    data_buffer(0, 1),
                    data_buffer(1, 511),
                    Buf::writable(status, 1),
                ],
                check: Box::new(move |guest, len| {
                    assert_eq!(guest.get(status, 1), [0]);
                    assert_eq!(len, if read { 513 } else { 1 });
                    assert_eq!(guest.get(data, 512), [7; 512]);
                }),
            }
        },
    }
}

/// Pages of 7s on the queues that give them back.
fn balloon() -> Factory {
    Factory {
        name: "balloon",
        kind: DeviceKind::Balloon,
        queues: 4,
        make: || {
            let control = BalloonControl::new().expect("an eventfd");
            let device = Balloon::new("balloon0", control.clone(), Arc::default(), true);
            Made { device: Box::new(device), poke: Box::new(move || control.ask()) }
        },
        request: |guest, queue| {
            let page = guest.put(&[7; 4096]);
            let number = ((page / 4096) as u32).to_le_bytes();
            let given = matches!(queue, 0 | 3);
            let buffers = match queue {
                3 => vec![Buf::writable(page, 4096)],
                2 => vec![Buf::readable(page, 3), Buf::readable(page + 3, 7)],
                _ => {
                    let addr = guest.put(&number);
                    vec![Buf::readable(addr, 1), Buf::readable(addr + 1, 3)]
                }
            };
            let check = move |guest: &Guest, len| {
                assert_eq!(len, 0);
                assert_eq!(guest.get(page, 4096), [if given { 0 } else { 7 }; 4096]);
            };
            Request { buffers, check: Box::new(check) }
        },
    }
}

/// A client of the host asks the guest for a connection (receiveq), the guest sends to a connection that is none
/// (transmitq), and hears that its connections are void (eventq).
fn vsock() -> Factory {
    Factory {
        name: "vsock",
        kind: DeviceKind::Vsock,
        queues: 3,
        make: || {
            let directory = tempfile::tempdir().expect("a directory");
            let listener = Arc::new(VsockListener::bind(&directory.path().join("sock")).expect("a socket"));
            let path = listener.path().to_owned();
            let device = Vsock::new("vsock0", 3, listener, Arc::default()).expect("a device");
            let reset = device.transport_reset();
            let poke = Box::new(move || {
                let _kept = &directory;
                // Full, if nobody lets them in: then there is enough to say.
                if let Ok(mut client) = UnixStream::connect(&path) {
                    let _ = client.write_all(b"CONNECT 52\n");
                }
                reset.send();
            });
            Made { device: Box::new(device), poke }
        },
        request: vsock_request,
    }
}

fn vsock_request(guest: &mut Guest, queue: u16) -> Request {
    if queue == 1 {
        let mut packet = [0; 49];
        // From CID 3, port 9, to CID 2, port 8: 5 bytes of a stream (OP_RW).
        packet[0] = 3;
        packet[8] = 2;
        packet[16] = 9;
        packet[20] = 8;
        packet[24] = 5;
        packet[28] = 1;
        packet[30] = 5;
        let addr = guest.put(&packet);
        return Request {
            buffers: vec![Buf::readable(addr, 20), Buf::readable(addr + 20, 26), Buf::readable(addr + 46, 3)],
            check: Box::new(|_, len| assert_eq!(len, 0)),
        };
    }
    let (addr, parts) = (guest.alloc(4096), if queue == 0 { [30, 4066] } else { [1, 7] });
    Request {
        buffers: vec![Buf::writable(addr, parts[0]), Buf::writable(addr + u64::from(parts[0]), parts[1])],
        check: Box::new(move |guest, len| {
            if queue == 2 {
                assert_eq!((len, guest.get(addr, 4)), (4, vec![0; 4]));
                return;
            }
            assert_eq!(len, 44);
            // From CID 2 to CID 3, a stream: the client's request, or the end of something.
            let header = guest.get(addr, 44);
            assert_eq!((header[0], header[8], header[28]), (2, 3, 1));
            assert!([1, 3].contains(&header[30]), "{header:?}");
        }),
    }
}

/// Forgets what was never looked up on the queue for what must not wait, and mounts on the other.
fn fs() -> Factory {
    Factory {
        name: "fs",
        kind: DeviceKind::Fs,
        queues: 2,
        make: || {
            let directory = tempfile::tempdir().expect("a directory");
            let folder = Folder::open(directory.path(), false, Owners::Same).expect("a directory");
            let device = Fs::new("fs0", "folder", Arc::new(folder), Arc::default());
            Made {
                device: Box::new(device),
                poke: Box::new(move || {
                    let _kept = &directory;
                }),
            }
        },
        request: |guest, queue| {
            let mut request = [0; 136];
            // The length, FORGET or INIT, and of which node.
            (request[0], request[4], request[16]) = if queue == 0 { (48, 2, 9) } else { (56, 26, 0) };
            // What was looked up so often; or the version, 7.36.
            (request[40], request[44]) = if queue == 0 { (1, 0) } else { (7, 36) };
            let addr = guest.put(&request);
            let answer = addr + 56;
            let mut buffers =
                vec![Buf::readable(addr, 20), Buf::readable(addr + 20, u32::from(request[0]) - 20)];
            if queue == 1 {
                buffers.extend([Buf::writable(answer, 10), Buf::writable(answer + 10, 70)]);
            }
            let check = move |guest: &Guest, len| {
                if queue == 0 {
                    assert_eq!(len, 0);
                    return;
                }
                assert_eq!(len, 80);
                let answer = guest.get(answer, 20);
                assert_eq!((answer[0], &answer[4..8], answer[16]), (80, &[0; 4][..], 7));
            };
            Request { buffers, check: Box::new(check) }
        },
    }
}
