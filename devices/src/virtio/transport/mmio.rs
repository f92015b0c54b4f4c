//! virtio over MMIO (virtio 1.2, 4.2), version 2. Runs on vCPU threads, under its lock.
//!
//! Interrupts are edges: each notification sets the interrupt status and then raises the line once, so a
//! notification that comes while the guest handles the one before is an edge of its own.

use std::sync::Arc;

use arch::memory::SharedRam;

use super::bells::Bells;
use super::core::{Change, Core, Notices};
use super::registers::{QueueRegisters, set_half};
use super::state::{BusState, TransportState};
use super::{StillActive, Transport, TransportError};
use crate::bus::{BusDevice, Effect};
use crate::irq::{Doorbell, Doorbells, IrqLine};
use crate::state::RestoreError;
use crate::virtio::device::{Signal, VENDOR, VirtioDevice};

/// Bytes that the registers and the configuration space take.
pub const MMIO_LEN: u64 = 0x1000;

/// Registers (virtio 1.2, 4.2.2).
mod reg {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;

/// Sets the interrupt status, then raises the line.
struct MmioSignal {
    notices: Arc<Notices>,
    line: IrqLine,
}

impl Signal for MmioSignal {
    fn queue(&self, _index: u16) {
        self.notices.queue();
        self.line.raise();
    }

    fn config(&self) {
        self.notices.config();
        self.line.raise();
    }
}

/// A virtio device at a fixed address with an interrupt line.
pub struct VirtioMmio {
    // Before the core, so that no doorbell rings for a device that is gone.
    bells: Bells,
    core: Core,
    base: u64,
    line: IrqLine,
}

impl VirtioMmio {
    /// `device`, whose [`MMIO_LEN`] bytes of registers the vmm puts on the bus at guest-physical `base`. It
    /// works on `ram`, interrupts by edges on `line`, and lets `doorbells` ring its queues while it is active. It is as at power-on,
    /// or as `state` says.
    ///
    /// # Errors
    /// If the host has no more file descriptors, or the device cannot be what `state` says.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: SharedRam,
        base: u64,
        line: IrqLine,
        doorbells: Arc<dyn Doorbells>,
        state: Option<&TransportState>,
    ) -> Result<Self, TransportError> {
        let notices = Arc::<Notices>::default();
        let signal = Arc::new(MmioSignal { notices: Arc::clone(&notices), line: line.clone() });
        let core = Core::new(device, ram, notices, signal, state)?;
        if let Some(state) = state.filter(|state| state.bus != BusState::Mmio) {
            return Err(
                RestoreError::new(&state.id, "bus", "it is not of a device on the mmio transport").into()
            );
        }
        let mut this = Self { bells: Bells::new(doorbells, core.kicks()), core, base, line };
        this.follow(Change::Queues);
        Ok(this)
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE_ID => self.core.kind() as u32,
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => self.core.device_features(),
            reg::QUEUE_NUM_MAX => self.core.queue().map_or(0, |queue| u32::from(queue.max())),
            reg::QUEUE_READY => self.core.queue().map_or(0, |queue| u32::from(queue.ready)),
            reg::INTERRUPT_STATUS => u32::from(self.core.notices().isr()),
            reg::STATUS => u32::from(self.core.status()),
            // There is no shared memory region, which a length and base of all ones says.
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => self.core.notices().generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.core.select_device_features(value),
            reg::DRIVER_FEATURES => self.core.write_driver_features(value),
            reg::DRIVER_FEATURES_SEL => self.core.select_driver_features(value),
            reg::QUEUE_SEL => self.core.select_queue(value),
            // A size that does not fit is as wrong as 0 is.
            reg::QUEUE_NUM => self.set_queue(|queue| queue.size = u16::try_from(value).unwrap_or(0)),
            reg::QUEUE_READY => {
                let change = self.core.enable_queue(value & 1 != 0);
                self.follow(change);
            }
            reg::QUEUE_NOTIFY => self.core.notify(value),
            reg::INTERRUPT_ACK => drop(self.core.notices().acknowledge(value as u8)),
            reg::STATUS => return self.write_status(value),
            reg::QUEUE_DESC_LOW | reg::QUEUE_DESC_HIGH => {
                self.set_queue(|queue| set_half(&mut queue.desc, offset == reg::QUEUE_DESC_HIGH, value));
            }
            reg::QUEUE_DRIVER_LOW | reg::QUEUE_DRIVER_HIGH => {
                self.set_queue(|queue| set_half(&mut queue.avail, offset == reg::QUEUE_DRIVER_HIGH, value));
            }
            reg::QUEUE_DEVICE_LOW | reg::QUEUE_DEVICE_HIGH => {
                self.set_queue(|queue| set_half(&mut queue.used, offset == reg::QUEUE_DEVICE_HIGH, value));
            }
            _ => {}
        }
        Effect::None
    }

    fn set_queue(&mut self, set: impl FnOnce(&mut QueueRegisters)) {
        if let Some(queue) = self.core.queue_mut() {
            set(queue);
        }
    }

    fn write_status(&mut self, value: u32) -> Effect {
        let Ok(value) = u8::try_from(value) else { return Effect::None };
        let change = self.core.write_status(value);
        self.follow(change);
        change.effect()
    }

    /// Let the doorbells follow the device.
    fn follow(&mut self, change: Change) {
        match change {
            Change::None => {}
            Change::Reset => self.bells.clear(),
            Change::Queues => {
                let address = self.base.checked_add(reg::QUEUE_NOTIFY);
                let bell = |queue| Some(Doorbell { address: address?, value: Some(u32::from(queue)) });
                self.bells.place(&self.core.ringing(), bell);
            }
        }
    }
}

impl BusDevice for VirtioMmio {
    /// Registers are read by aligned 32-bit accesses (4.2.2.2), configuration space by any.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.core.read_config(offset, data);
        } else if let Ok(register) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *register = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.core.write_config(offset, data);
        } else if let Ok(value) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            return self.write_register(offset, u32::from_le_bytes(value));
        }
        Effect::None
    }
}

impl Transport for VirtioMmio {
    fn pause(&mut self) {
        self.core.pause();
    }

    fn resume(&mut self) {
        if self.core.resume() && self.core.notices().isr() != 0 {
            self.line.raise();
        }
    }

    fn save(&self) -> Result<TransportState, StillActive> {
        self.core.save(BusState::Mmio)
    }
}
