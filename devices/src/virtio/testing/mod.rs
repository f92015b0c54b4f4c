//! The guest's side of virtio, for tests: a driver that reaches a device through its registers alone.
//!
//! [`Guest`] is a machine of one device on either transport, with RAM, a bus and the fakes of the interrupt
//! controller and the doorbells. [`GuestQueue`] is a driver's end of a split virtqueue, which can also be
//! made to break every rule. Everything runs on the test's thread; the device's threads are its own.

mod fakes;
mod net;
mod registers;
mod ring;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use arch::memory::{GuestRam, SharedRam};

use super::device::{STATUS_NEEDS_RESET, VirtioDevice};
use super::transport::{Transport, TransportError, TransportState};

pub use fakes::{FakeBus, FakeDoorbells, FakeMsi};
pub use net::FakeNet;
pub use registers::{MmioRegisters, PciRegisters, QueueLayout, Registers, Source};
pub use ring::{Buf, GuestQueue, flags};

/// What is waited for comes within this, or never.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// RAM is `[0, 4 MiB)` and `[8 MiB, 12 MiB)`: there is a hole to point into.
pub const RAM: [(u64, usize); 2] = [(0, 4 << 20), (8 << 20, 4 << 20)];
/// An address in the hole.
pub const HOLE: u64 = 5 << 20;
/// The first address after all RAM.
pub const RAM_END: u64 = 12 << 20;

/// Status bits (virtio 1.2, 2.1).
pub mod status {
    /// The guest noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device needs a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The guest gave up.
    pub const FAILED: u8 = 128;
}

/// Feature bits that are not a device's own (virtio 1.2, 6).
pub mod features {
    /// Indirect descriptors.
    pub const INDIRECT: u64 = 1 << 28;
    /// `used_event` and `avail_event`.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Which transport a [`Guest`] finds its device on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// virtio-mmio.
    Mmio,
    /// virtio-pci.
    Pci,
}

/// Both of them, to run a test on each.
pub const KINDS: [Kind; 2] = [Kind::Mmio, Kind::Pci];

/// A guest with one virtio device.
pub struct Guest {
    /// Its memory.
    pub ram: SharedRam,
    /// The driver's way to the device's registers.
    pub registers: Box<dyn Registers>,
    /// The doorbells, to see what is registered.
    pub doorbells: Arc<FakeDoorbells>,
    kind: Kind,
    transport: Arc<Mutex<dyn Transport>>,
    next_free: u64,
}

impl Guest {
    /// A machine with `device` on the transport asked for.
    #[must_use]
    pub fn new(kind: Kind, device: Box<dyn VirtioDevice>) -> Self {
        let ranges = RAM.map(|(start, len)| (GuestAddress(start), len));
        let ram: SharedRam = Arc::new(GuestRam::from_ranges(&ranges).expect("test RAM"));
        let Parts { registers, doorbells, transport } = assemble(kind, device, &ram, None).expect("a device");
        Self { ram, registers, doorbells, kind, transport, next_free: 0x1000 }
    }

    /// Stop the device, and say what the vmm saves of it.
    ///
    /// # Panics
    /// If it cannot be stopped.
    #[must_use]
    pub fn save(&self) -> TransportState {
        self.transport().pause();
        self.transport().save().expect("it is paused")
    }

    /// The same guest with the same memory on another machine: `device`, which is new, becomes what `state` says. It is paused.
    ///
    /// # Errors
    /// If it cannot; the guest has the device of before.
    pub fn restore(
        &mut self,
        device: Box<dyn VirtioDevice>,
        state: &TransportState,
    ) -> Result<(), TransportError> {
        let parts = assemble(self.kind, device, &self.ram, Some(state))?;
        Parts { registers: self.registers, doorbells: self.doorbells, transport: self.transport } = parts;
        Ok(())
    }

    /// The transport, as the vmm holds it.
    pub fn transport(&self) -> MutexGuard<'_, dyn Transport + 'static> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `len` bytes of RAM that nobody else has, page-aligned and zero.
    ///
    /// # Panics
    /// When the lower part of RAM is used up.
    pub fn alloc(&mut self, len: u64) -> u64 {
        let at = self.next_free;
        self.next_free = (at + len).next_multiple_of(0x1000);
        assert!(self.next_free <= RAM[0].1 as u64, "test RAM is used up");
        at
    }

    /// Copy `bytes` into RAM that is allocated for them.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        let at = self.alloc(bytes.len() as u64);
        self.ram.write_slice(bytes, GuestAddress(at)).expect("allocated");
        at
    }

    /// Fill `len` bytes of RAM with 0xaa.
    ///
    /// # Panics
    /// If they are not in RAM.
    pub fn ram_fill(&self, addr: u64, len: usize) {
        self.ram.write_slice(&vec![0xaa; len], GuestAddress(addr)).expect("in RAM");
    }

    /// Read `len` bytes of RAM.
    #[must_use]
    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(addr)).expect("in RAM");
        bytes
    }

    /// Initialise the device up to FEATURES_OK (3.1.1, 1 to 6) with what of `features` it offers. Returns
    /// what was agreed on.
    ///
    /// # Panics
    /// If the device does not agree.
    pub fn negotiate(&mut self, features: u64) -> u64 {
        let registers = &*self.registers;
        registers.write_status(0);
        assert_eq!(registers.status(), 0, "the device is reset");
        registers.write_status(status::ACKNOWLEDGE);
        registers.write_status(status::ACKNOWLEDGE | status::DRIVER);
        let accepted = registers.device_features() & features;
        registers.write_driver_features(accepted);
        let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        registers.write_status(ok);
        assert_eq!(registers.status(), ok, "the device agrees to {accepted:#x}");
        accepted
    }

    /// Enable every queue, each at its full size, and rings in fresh memory.
    pub fn enable_queues(&mut self, features: u64) -> Vec<GuestQueue> {
        let mut queues = Vec::new();
        for index in 0.. {
            let size = self.registers.queue_max(index);
            if size == 0 {
                break;
            }
            let queue = GuestQueue::new(self, index, size, features & features::EVENT_IDX != 0);
            self.registers.set_queue(index, &queue.layout());
            self.registers.enable_queue(index);
            queues.push(queue);
        }
        queues
    }

    /// Set DRIVER_OK.
    pub fn driver_ok(&mut self) {
        self.registers.write_status(self.registers.status() | status::DRIVER_OK);
    }

    /// Initialise the device wholly, with what of `features` it offers, and return its queues.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn start(&mut self, features: u64) -> Vec<GuestQueue> {
        // What was used by an earlier life is free again.
        self.next_free = 0x1000;
        let accepted = self.negotiate(features);
        let queues = self.enable_queues(accepted);
        self.driver_ok();
        assert_eq!(self.registers.status() & status::DRIVER_OK, status::DRIVER_OK);
        assert!(!self.broken(), "the device came up");
        queues
    }

    /// Make a chain of `buffers` available in `queue`, ring, and wait until it is used. Returns how many bytes
    /// the device says it wrote.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`], or something else is used.
    pub fn request(&self, queue: &mut GuestQueue, buffers: &[Buf]) -> u32 {
        let head = queue.add(buffers);
        self.registers.notify(queue.index());
        let (used, len) = queue.wait_used();
        assert_eq!(used, u32::from(head), "requests come back one by one");
        len
    }

    /// Whether the device says that it needs a reset.
    #[must_use]
    pub fn broken(&self) -> bool {
        self.registers.status() & STATUS_NEEDS_RESET != 0
    }

    /// Wait until the device says that it needs a reset.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_broken(&self) {
        assert!(eventually(|| self.broken()), "the device says that it needs a reset");
    }

    /// Wait for an interrupt of `source`.
    ///
    /// # Panics
    /// If there is none.
    pub fn wait_interrupt(&self, source: Source) {
        assert!(eventually(|| self.registers.take_interrupts(source) > 0), "{source:?} interrupts");
    }
}

/// A machine around a guest's memory.
struct Parts {
    registers: Box<dyn Registers>,
    doorbells: Arc<FakeDoorbells>,
    transport: Arc<Mutex<dyn Transport>>,
}

fn assemble(
    kind: Kind,
    device: Box<dyn VirtioDevice>,
    ram: &SharedRam,
    state: Option<&TransportState>,
) -> Result<Parts, TransportError> {
    let doorbells = Arc::<FakeDoorbells>::default();
    let bus = FakeBus::new(Arc::clone(&doorbells));
    let (transport, registers): (Arc<Mutex<dyn Transport>>, Box<dyn Registers>) = match kind {
        Kind::Mmio => {
            let (transport, registers) = MmioRegisters::make(device, ram, bus, state)?;
            (transport, Box::new(registers))
        }
        Kind::Pci => {
            let (transport, registers) = PciRegisters::make(device, ram, bus, state)?;
            (transport, Box::new(registers))
        }
    };
    Ok(Parts { registers, doorbells, transport })
}

/// Whether `condition` comes true within [`PATIENCE`].
pub fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}
