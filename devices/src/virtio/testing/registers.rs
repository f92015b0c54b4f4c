//! How a driver reaches a device: one trait, two transports.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use arch::memory::SharedRam;

use super::fakes::FakeBus;
use crate::bus::Effect;
use crate::irq::IrqLine;
use crate::virtio::device::VirtioDevice;
use crate::virtio::transport::mmio::MMIO_LEN;
use crate::virtio::transport::{Transport, TransportError, TransportState, VirtioMmio};

mod pci;

pub use pci::PciRegisters;

/// Where a queue is, as a driver tells its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

/// What interrupts a driver. Over MMIO there is one line for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Used buffers of this queue.
    Queue(u16),
    /// The configuration.
    Config,
}

/// A driver's operations. Nothing is checked or remembered: this is where tests misbehave.
pub trait Registers {
    /// The virtio device ID.
    fn device_id(&self) -> u32;
    /// Read the status register.
    fn status(&self) -> u8;
    /// Write the status register.
    fn write_status(&self, value: u8);
    /// All 64 bits of what the device offers.
    fn device_features(&self) -> u64;
    /// Accept these.
    fn write_driver_features(&self, features: u64);
    /// The largest size of a queue; 0 if there is none.
    fn queue_max(&self, queue: u16) -> u16;
    /// Tell size and addresses of a queue.
    fn set_queue(&self, queue: u16, layout: &QueueLayout);
    /// Enable a queue.
    fn enable_queue(&self, queue: u16);
    /// Take an enabled queue back.
    fn disable_queue(&self, queue: u16);
    /// Whether a queue is enabled.
    fn queue_enabled(&self, queue: u16) -> bool;
    /// Ring for a queue.
    fn notify(&self, queue: u16);
    /// Ring for a queue by a write that no doorbell takes.
    fn notify_slowly(&self, queue: u16);
    /// Read and clear the interrupt status.
    fn take_isr(&self) -> u8;
    /// How often the source interrupted since the last call.
    fn take_interrupts(&self, source: Source) -> u64;
    /// The configuration's generation.
    fn generation(&self) -> u32;
    /// Read configuration space.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Write configuration space.
    fn write_config(&self, offset: u64, data: &[u8]);
    /// Read and write everywhere around the registers, aligned and not, in all widths, without meaning.
    fn scribble(&self);
}

/// virtio-mmio at a fixed address.
pub struct MmioRegisters {
    bus: FakeBus,
    line: EventFd,
}

const BASE: u64 = 0xd000_0000;

impl MmioRegisters {
    /// Put `device` on `bus`, as at power-on or as `state` says.
    ///
    /// # Errors
    /// If it cannot be what `state` says.
    pub fn make(
        device: Box<dyn VirtioDevice>,
        ram: &SharedRam,
        bus: FakeBus,
        state: Option<&TransportState>,
    ) -> Result<(Arc<Mutex<dyn Transport>>, Self), TransportError> {
        let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let irq = IrqLine::new(line.try_clone().expect("an eventfd"));
        let transport = VirtioMmio::new(device, SharedRam::clone(ram), BASE, irq, bus.doorbells(), state);
        let transport = Arc::new(Mutex::new(transport?));
        let shared = Arc::clone(&transport);
        bus.bus.insert(BASE, MMIO_LEN, shared).expect("an empty bus");
        Ok((transport, Self { bus, line }))
    }

    fn read(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.bus.read(BASE + offset))
    }

    fn write(&self, offset: u64, value: u32) {
        let effect = self.bus.write(BASE + offset, &value.to_le_bytes());
        assert!(matches!(effect, Effect::None | Effect::DriverReady), "{effect:?}");
    }

    fn write_address(&self, offset: u64, address: u64) {
        self.write(offset, address as u32);
        self.write(offset + 4, (address >> 32) as u32);
    }
}

impl Registers for MmioRegisters {
    fn device_id(&self) -> u32 {
        assert_eq!(self.read(0), u32::from_le_bytes(*b"virt"));
        assert_eq!(self.read(4), 2);
        self.read(8)
    }

    fn status(&self) -> u8 {
        self.read(0x70) as u8
    }

    fn write_status(&self, value: u8) {
        self.write(0x70, value.into());
    }

    fn device_features(&self) -> u64 {
        let [low, high] = [0, 1].map(|half| {
            self.write(0x14, half);
            u64::from(self.read(0x10))
        });
        high << 32 | low
    }

    fn write_driver_features(&self, features: u64) {
        for half in [0, 1] {
            self.write(0x24, half);
            self.write(0x20, (features >> (32 * half)) as u32);
        }
    }

    fn queue_max(&self, queue: u16) -> u16 {
        self.write(0x30, queue.into());
        self.read(0x34) as u16
    }

    fn set_queue(&self, queue: u16, layout: &QueueLayout) {
        self.write(0x30, queue.into());
        self.write(0x38, layout.size.into());
        self.write_address(0x80, layout.desc);
        self.write_address(0x90, layout.avail);
        self.write_address(0xa0, layout.used);
    }

    fn enable_queue(&self, queue: u16) {
        self.write(0x30, queue.into());
        self.write(0x44, 1);
    }

    fn disable_queue(&self, queue: u16) {
        self.write(0x30, queue.into());
        self.write(0x44, 0);
    }

    fn queue_enabled(&self, queue: u16) -> bool {
        self.write(0x30, queue.into());
        self.read(0x44) == 1
    }

    fn notify(&self, queue: u16) {
        self.write(0x50, queue.into());
    }

    fn notify_slowly(&self, queue: u16) {
        assert_eq!(self.bus.bus.write(BASE + 0x50, &u32::from(queue).to_le_bytes()), Effect::None);
    }

    fn take_isr(&self) -> u8 {
        let isr = self.read(0x60);
        self.write(0x64, isr);
        isr as u8
    }

    fn take_interrupts(&self, _source: Source) -> u64 {
        self.line.read().unwrap_or(0)
    }

    fn generation(&self) -> u32 {
        self.read(0xfc)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.bus.bus.read(BASE + 0x100 + offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        assert_eq!(self.bus.bus.write(BASE + 0x100 + offset, data), Effect::None);
    }

    fn scribble(&self) {
        scribble(&self.bus, BASE, MMIO_LEN, |offset| (0x70..0x74).contains(&offset));
    }
}

/// Read everywhere from `base`, and write everywhere but where `spare` says.
fn scribble(bus: &FakeBus, base: u64, len: u64, spare: impl Fn(u64) -> bool) {
    for width in [1, 2, 3, 4, 8] {
        for offset in 0..len {
            let mut data = vec![0; width];
            bus.bus.read(base + offset, &mut data);
            if (offset..offset + width as u64).any(&spare) {
                continue;
            }
            data.fill(0xa5);
            let _ = bus.bus.write(base + offset, &data);
        }
    }
}
