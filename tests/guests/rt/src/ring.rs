//! A split virtqueue (virtio 1.2, 2.7) with nothing between the test and its memory: what can be written wrong can be
//! written here. And a device with all its queues set up that way.

use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::transport::{DeviceStatus, SomeTransport, Transport};

use crate::virtio::Found;
use crate::{clock, memory};

/// The descriptor continues with `next`.
pub const NEXT: u16 = 1;
/// The device writes here.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// `VIRTIO_F_INDIRECT_DESC`.
pub const F_INDIRECT: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u64 = 1 << 32;

/// One descriptor.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next one's index.
    pub next: u16,
}

/// A buffer of a request: address, length, and whether the device writes it.
pub type Buffer = (u64, u32, bool);

/// The ring's memory and the driver's places in it.
pub struct Ring {
    base: u64,
    /// How many descriptors it has: a power of two.
    pub size: u16,
    avail: u16,
    used: u16,
    free: u16,
    event_idx: bool,
}

impl Ring {
    /// A ring of zeroes. With `event_idx`, it asks for no interrupts until [`Ring::set_used_event`].
    pub fn new(size: u16, event_idx: bool) -> Self {
        let bytes = 16 * u64::from(size) + 6 + 2 * u64::from(size) + 4 + 6 + 8 * u64::from(size);
        let base = memory::pages(bytes.div_ceil(4096)) as u64;
        Self { base, size, avail: 0, used: 0, free: 0, event_idx }
    }

    /// The address of the descriptor table.
    pub fn table(&self) -> u64 {
        self.base
    }

    /// The address of the available ring.
    pub fn driver(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    /// The address of the used ring.
    pub fn device(&self) -> u64 {
        (self.driver() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    fn read16(&self, at: u64) -> u16 {
        // SAFETY: inside the ring's pages.
        unsafe { (at as *const u16).read_volatile() }
    }

    fn write16(&self, at: u64, value: u16) {
        // SAFETY: inside the ring's pages.
        unsafe { (at as *mut u16).write_volatile(value) }
    }

    /// Write a descriptor.
    pub fn set(&mut self, index: u16, descriptor: Descriptor) {
        let at = self.base + 16 * u64::from(index % self.size);
        // SAFETY: inside the table.
        unsafe { (at as *mut Descriptor).write_volatile(descriptor) }
    }

    /// Write a chain of buffers into the next free descriptors, of which there must be enough: they are taken in
    /// turn, round and round. Returns the head.
    pub fn chain(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.free % self.size;
        for (index, &(addr, len, write)) in buffers.iter().enumerate() {
            let next = (self.free + 1) % self.size;
            let last = index + 1 == buffers.len();
            let flags = if write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.set(self.free, Descriptor { addr, len, flags, next });
            self.free = next;
        }
        head
    }

    /// Make the chain at `head` available, to be seen when [`Ring::publish`] is called.
    pub fn offer(&mut self, head: u16) {
        self.write16(self.driver() + 4 + 2 * u64::from(self.avail % self.size), head);
        self.avail = self.avail.wrapping_add(1);
    }

    /// Publish the available index. `ahead` is added to it: 0 but for a hostile guest. Returns whether the device
    /// wants to be notified (2.7.10).
    pub fn publish(&mut self, ahead: u16) -> bool {
        let old = self.read16(self.driver() + 2);
        let new = self.avail.wrapping_add(ahead);
        fence(Ordering::SeqCst);
        self.write16(self.driver() + 2, new);
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = self.read16(self.device() + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.read16(self.device()) & 1 == 0
        }
    }

    /// Ask for no interrupts; for `event_idx` rings that is so until an event is asked for.
    pub fn no_interrupts(&mut self) {
        if self.event_idx {
            self.set_used_event(self.used.wrapping_sub(1));
        } else {
            self.write16(self.driver(), 1);
        }
    }

    /// With `event_idx`: ask for an interrupt when the device has used entry `index`.
    pub fn set_used_event(&mut self, index: u16) {
        self.write16(self.driver() + 4 + 2 * u64::from(self.size), index);
    }

    /// The index that the next used entry will have.
    pub fn next_used(&self) -> u16 {
        self.used
    }

    /// Take a used entry: the head and the length.
    pub fn take(&mut self) -> Option<(u32, u32)> {
        if self.read16(self.device() + 2) == self.used {
            return None;
        }
        fence(Ordering::Acquire);
        let at = self.device() + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        // SAFETY: inside the used ring.
        unsafe { Some(((at as *const u32).read_volatile(), ((at + 4) as *const u32).read_volatile())) }
    }
}

/// A device whose every queue is a [`Ring`].
pub struct Device {
    /// The way to it.
    pub transport: SomeTransport<'static>,
    /// Its queues.
    pub rings: Vec<Ring>,
    /// The features agreed on.
    pub features: u64,
}

impl Device {
    /// Reset it, agree on those of `features` that it offers (and version 1), and stop before `DRIVER_OK`.
    pub fn prepare(found: &Found, features: u64, max_size: u16) -> Self {
        let mut transport = found.transport();
        transport.set_status(DeviceStatus::empty());
        clock::until(clock::PATIENCE, || transport.get_status().is_empty());
        transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        let features = transport.read_device_features() & (features | F_VERSION_1);
        transport.write_driver_features(features);
        transport.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK);
        let mut rings = Vec::new();
        while let size @ 1.. = transport.max_queue_size(rings.len() as u16) {
            rings.push(Ring::new((size as u16).min(max_size), features & F_EVENT_IDX != 0));
        }
        Self { transport, rings, features }
    }

    /// Tell it where ring `index` is.
    pub fn set_queue(&mut self, index: u16) {
        let ring = &self.rings[usize::from(index)];
        self.transport.queue_set(index, ring.size.into(), ring.table(), ring.driver(), ring.device());
    }

    /// `DRIVER_OK`.
    pub fn go(&mut self) {
        self.transport.finish_init();
    }

    /// As [`Device::prepare`], then all queues, then `DRIVER_OK`.
    pub fn start(found: &Found, features: u64, max_size: u16) -> Self {
        let mut device = Self::prepare(found, features, max_size);
        for index in 0..device.rings.len() as u16 {
            device.set_queue(index);
        }
        device.go();
        device
    }

    /// Send one request on queue `index` and wait for its end. `None` if that takes longer than a second, else the
    /// used length.
    pub fn request(&mut self, index: u16, buffers: &[Buffer]) -> Option<u32> {
        let ring = &mut self.rings[usize::from(index)];
        let head = ring.chain(buffers);
        ring.offer(head);
        if ring.publish(0) {
            self.transport.notify(index);
        }
        self.used(index, clock::PATIENCE)
    }

    /// Wait for a used entry of queue `index` and return its length.
    pub fn used(&mut self, index: u16, millis: u64) -> Option<u32> {
        let ring = &mut self.rings[usize::from(index)];
        let mut used = None;
        clock::until(millis, || {
            used = ring.take();
            used.is_some()
        });
        used.map(|(_, len)| len)
    }

    /// Whether the device asks for a reset.
    pub fn needs_reset(&self) -> bool {
        self.transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET)
    }
}
