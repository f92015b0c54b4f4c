//! virtio over PCI (virtio 1.2, 4.1), modern only. Runs on vCPU threads, under its lock.
//!
//! One 64-bit memory BAR holds everything, each part on a page of its own:
//!
//! ```text
//!  0x0000 common configuration   0x1000 ISR status   0x2000 device configuration
//!  0x3000 doorbells, 4 bytes a queue   0x4000 MSI-X table   0x5000 MSI-X pending bits
//! ```
//!
//! Interrupts are MSI-X, one vector a queue and one for the configuration, or none: there is no INTx.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use arch::memory::SharedRam;

use super::bells::Bells;
use super::core::{Change, Core, Notices};
use super::registers::{QueueRegisters, set_half};
use super::state::{BusState, PciState, TransportState};
use super::{StillActive, Transport, TransportError};
use crate::bus::{BusDevice, Effect};
use crate::irq::{Doorbell, Doorbells, MsiController};
use crate::pci::{BarKind, BarMove, ConfigError, ConfigSpace, Identity, Msix, MsixLayout, PciFunction};
use crate::state::RestoreError;
use crate::virtio::device::{DeviceKind, Signal, VirtioDevice};

/// The BAR that [`VirtioPci`] answers behind.
pub const BAR: u8 = 0;
const BAR_LEN: u64 = 0x8000;
const PAGE: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;

/// Bytes of the common configuration that 1.2 defines.
const COMMON_LEN: u32 = 0x3c;
/// Bytes between two queues' doorbells.
const NOTIFY_STRIDE: u64 = 4;

const VENDOR_REDHAT: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;

/// Capability types (4.1.4).
const CAP_VENDOR: u8 = 9;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI: u8 = 5;
/// Where in the PCI configuration access capability its fields are, from its start (4.1.4.9).
const PCI_CAP_BAR: usize = 4;
const PCI_CAP_OFFSET: usize = 8;
const PCI_CAP_LEN: usize = 12;
const PCI_CAP_DATA: usize = 16;

/// `VIRTIO_MSI_NO_VECTOR`: interrupts nobody.
const NO_VECTOR: u16 = 0xffff;

/// Fields of the common configuration (4.1.4.3).
mod reg {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DESC_HIGH: u64 = 0x24;
    pub const QUEUE_DRIVER: u64 = 0x28;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x2c;
    pub const QUEUE_DEVICE: u64 = 0x30;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x34;
}

/// Which vector each kind of interrupt uses. Written by the guest, read by device threads.
struct Vectors {
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
}

impl Vectors {
    fn new(queues: u16) -> Self {
        let none = || AtomicU16::new(NO_VECTOR);
        Self { config: none(), queues: (0..queues).map(|_| none()).collect() }
    }

    fn reset(&self) {
        for vector in self.queues.iter().chain([&self.config]) {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
    }

    fn queue(&self, index: u16) -> Option<&AtomicU16> {
        self.queues.get(usize::from(index))
    }
}

/// Sets the ISR status, then triggers the vector.
struct PciSignal {
    notices: Arc<Notices>,
    vectors: Arc<Vectors>,
    msix: Arc<Msix>,
}

impl Signal for PciSignal {
    fn queue(&self, index: u16) {
        self.notices.queue();
        self.msix
            .trigger(self.vectors.queue(index).map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst)));
    }

    fn config(&self) {
        self.notices.config();
        self.msix.trigger(self.vectors.config.load(Ordering::SeqCst));
    }
}

/// A virtio device as a PCI function: its configuration space, and what answers behind its [`BAR`].
pub struct VirtioPci {
    // Before the core, so that no doorbell rings for a device that is gone.
    bells: Bells,
    core: Core,
    config: ConfigSpace,
    /// Where the PCI configuration access capability is.
    access: usize,
    msix: Arc<Msix>,
    vectors: Arc<Vectors>,
    /// Where the BAR answers now.
    base: Option<u64>,
}

impl VirtioPci {
    /// `device` as a function. The vmm adds it to the PCI host, as function and as what answers behind
    /// [`BAR`]. It works on `ram`, gets its vectors from `msi`, and lets `doorbells` ring its queues while
    /// it is active and its BAR is somewhere. It is as at power-on, or as `state` says.
    ///
    /// # Errors
    /// If the host has no more file descriptors, the device has more queues than fit, or it cannot be what `state` says.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram: SharedRam,
        msi: Arc<dyn MsiController>,
        doorbells: Arc<dyn Doorbells>,
        state: Option<&TransportState>,
    ) -> Result<Self, TransportError> {
        let queues = device.queue_sizes().len() as u16;
        let msix = Arc::new(Msix::new(queues.saturating_add(1), msi));
        let vectors = Arc::new(Vectors::new(queues));
        let notices = Arc::<Notices>::default();
        let signal = PciSignal {
            notices: Arc::clone(&notices),
            vectors: Arc::clone(&vectors),
            msix: Arc::clone(&msix),
        };
        let core = Core::new(device, ram, notices, Arc::new(signal), state)?;
        let (config, access) = config_space(core.kind(), core.queue_count(), msix.vectors())?;
        let bells = Bells::new(doorbells, core.kicks());
        let mut this = Self { bells, core, config, access, msix, vectors, base: None };
        if let Some(state) = state {
            this.restore(&state.bus)?;
        }
        Ok(this)
    }

    /// Become what is saved of the function. Its BAR and its doorbells follow when the PCI host settles BARs.
    fn restore(&mut self, bus: &BusState) -> Result<(), RestoreError> {
        let wrong = |field: &str, reason: &str| RestoreError::new(self.core.id(), field, reason);
        let BusState::Pci(state) = bus else {
            return Err(wrong("bus", "it is not of a device on the pci transport"));
        };
        let control = self.config.restore(&state.config).map_err(|reason| wrong("config", &reason))?;
        let saved = [state.config_vector].into_iter().chain(state.queue_vectors.iter().copied());
        if state.queue_vectors.len() != self.vectors.queues.len() {
            return Err(wrong("queue-vectors", "there is not one for each queue"));
        }
        for (vector, value) in [&self.vectors.config].into_iter().chain(&self.vectors.queues).zip(saved) {
            if value != NO_VECTOR && value >= self.msix.vectors() {
                return Err(wrong("queue-vectors", &format!("there is no vector {value}")));
            }
            vector.store(value, Ordering::SeqCst);
        }
        let restored = self.msix.restore(&state.msix, control);
        restored.map_err(|(field, reason)| wrong(&format!("msix.{field}"), &reason))
    }

    /// Put the doorbells where the BAR is, if the device listens.
    fn place_bells(&mut self) {
        let base = self.base.and_then(|base| base.checked_add(NOTIFY));
        let bell = |queue| {
            let address = base?.checked_add(u64::from(queue) * NOTIFY_STRIDE)?;
            // Any write, of any width: KVM need not look at the data.
            Some(Doorbell { address, value: None })
        };
        self.bells.place(&self.core.ringing(), bell);
    }

    fn write_status(&mut self, value: u8) -> Effect {
        let change = self.core.write_status(value);
        match change {
            Change::None => {}
            Change::Queues => self.place_bells(),
            Change::Reset => {
                self.bells.clear();
                self.vectors.reset();
            }
        }
        change.effect()
    }

    /// A field of the common configuration, and how many bytes it has.
    fn read_common(&self, offset: u64) -> (u32, usize) {
        let core = &self.core;
        let queue = |field: fn(&QueueRegisters) -> u64| core.queue().map_or(0, field);
        let low = |field| (queue(field) as u32, 4);
        let high = |field| ((queue(field) >> 32) as u32, 4);
        match offset {
            reg::DEVICE_FEATURE_SELECT => (core.device_features_select(), 4),
            reg::DEVICE_FEATURE => (core.device_features(), 4),
            reg::DRIVER_FEATURE_SELECT => (core.driver_features_select(), 4),
            reg::DRIVER_FEATURE => (core.driver_features(), 4),
            reg::CONFIG_MSIX_VECTOR => (self.vectors.config.load(Ordering::SeqCst).into(), 2),
            reg::NUM_QUEUES => (core.queue_count().into(), 2),
            reg::DEVICE_STATUS => (core.status().into(), 1),
            reg::CONFIG_GENERATION => (core.notices().generation() & 0xff, 1),
            reg::QUEUE_SELECT => (core.queue_select().into(), 2),
            reg::QUEUE_SIZE => (queue(|queue| queue.size.into()) as u32, 2),
            reg::QUEUE_MSIX_VECTOR => {
                let vector = self.vectors.queue(core.queue_select());
                (vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst)).into(), 2)
            }
            reg::QUEUE_ENABLE => (queue(|queue| queue.ready.into()) as u32, 2),
            reg::QUEUE_NOTIFY_OFF => (core.queue_select().into(), 2),
            reg::QUEUE_DESC => low(|queue| queue.desc),
            reg::QUEUE_DESC_HIGH => high(|queue| queue.desc),
            reg::QUEUE_DRIVER => low(|queue| queue.avail),
            reg::QUEUE_DRIVER_HIGH => high(|queue| queue.avail),
            reg::QUEUE_DEVICE => low(|queue| queue.used),
            reg::QUEUE_DEVICE_HIGH => high(|queue| queue.used),
            _ => (0, 0),
        }
    }

    /// Write a field of the common configuration, if it has `width` bytes (4.1.3.1).
    fn write_common(&mut self, offset: u64, value: u32, width: usize) -> Effect {
        if self.read_common(offset).1 != width {
            return Effect::None;
        }
        match offset {
            reg::DEVICE_FEATURE_SELECT => self.core.select_device_features(value),
            reg::DRIVER_FEATURE_SELECT => self.core.select_driver_features(value),
            reg::DRIVER_FEATURE => self.core.write_driver_features(value),
            reg::CONFIG_MSIX_VECTOR => self.set_vector(Some(&self.vectors.config), value),
            reg::DEVICE_STATUS => return self.write_status(value as u8),
            reg::QUEUE_SELECT => self.core.select_queue(value),
            reg::QUEUE_SIZE => self.set_queue(|queue| queue.size = value as u16),
            reg::QUEUE_MSIX_VECTOR => self.set_vector(self.vectors.queue(self.core.queue_select()), value),
            // The driver must not write 0 (4.1.4.3.2).
            reg::QUEUE_ENABLE if value == 1 => drop(self.core.enable_queue(true)),
            reg::QUEUE_DESC | reg::QUEUE_DESC_HIGH => {
                self.set_queue(|queue| set_half(&mut queue.desc, offset == reg::QUEUE_DESC_HIGH, value));
            }
            reg::QUEUE_DRIVER | reg::QUEUE_DRIVER_HIGH => {
                self.set_queue(|queue| set_half(&mut queue.avail, offset == reg::QUEUE_DRIVER_HIGH, value));
            }
            reg::QUEUE_DEVICE | reg::QUEUE_DEVICE_HIGH => {
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

    /// Vectors that do not exist read back as none, by which the driver learns it (4.1.5.1.2.1).
    fn set_vector(&self, vector: Option<&AtomicU16>, value: u32) {
        let value = u16::try_from(value).ok().filter(|value| *value < self.msix.vectors());
        if let Some(vector) = vector {
            vector.store(value.unwrap_or(NO_VECTOR), Ordering::SeqCst);
        }
    }

    /// The window that the PCI configuration access capability opens now: an offset into the BAR, and 1, 2 or
    /// 4 bytes, aligned (4.1.4.9).
    fn window(&self) -> Option<(u64, usize)> {
        let field = |offset: usize| {
            let mut bytes = [0; 4];
            self.config.read(self.access + offset, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let (offset, len) = (field(PCI_CAP_OFFSET), field(PCI_CAP_LEN));
        let good = field(PCI_CAP_BAR) & 0xff == u32::from(BAR)
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len)
            && u64::from(offset) + u64::from(len) <= BAR_LEN;
        good.then_some((offset.into(), len as usize))
    }

    /// Where the bytes of an access at `offset` of configuration space fall in the window's data.
    fn in_window(&self, offset: usize, len: usize) -> bool {
        let data = self.access + PCI_CAP_DATA;
        offset < data + 4 && data < offset.saturating_add(len)
    }
}

/// Split an access into those that fields answer: the two halves of a 64-bit field (4.1.3.1), or itself.
fn halves(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let width = if len == 8 { 4 } else { len.max(1) };
    (0..len / width).map(move |i| (offset + (i * width) as u64, i * width..(i + 1) * width))
}

/// Up to 4 bytes as a number.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

impl BusDevice for VirtioPci {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset % PAGE;
        match offset - within {
            COMMON => {
                for (at, bytes) in halves(within, data.len()) {
                    let (value, width) = self.read_common(at);
                    if let Some(bytes) = data.get_mut(bytes).filter(|bytes| bytes.len() == width) {
                        bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
                    }
                }
            }
            // Reading clears it (4.1.4.5).
            ISR if within == 0 => {
                if let Some(isr) = data.first_mut() {
                    *isr = self.core.notices().acknowledge(u8::MAX);
                }
            }
            DEVICE => self.core.read_config(within, data),
            MSIX_TABLE => self.msix.read_table(within, data),
            MSIX_PENDING => self.msix.read_pending(within, data),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let within = offset % PAGE;
        let mut effect = Effect::None;
        match offset - within {
            COMMON => {
                for (at, bytes) in halves(within, data.len()) {
                    if let Some(bytes) = data.get(bytes) {
                        // Of two halves, neither has an effect.
                        effect = self.write_common(at, number(bytes), bytes.len());
                    }
                }
            }
            DEVICE => self.core.write_config(within, data),
            NOTIFY if within.is_multiple_of(NOTIFY_STRIDE) => {
                self.core.notify((within / NOTIFY_STRIDE) as u32)
            }
            MSIX_TABLE => self.msix.write_table(within, data),
            _ => {}
        }
        effect
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
        if !self.in_window(offset, data.len()) {
            return;
        }
        let mut value = [0; 4];
        if let Some((at, len)) = self.window()
            && let Some(value) = value.get_mut(..len)
        {
            BusDevice::read(self, at, value);
        }
        let start = self.access + PCI_CAP_DATA;
        for (i, byte) in (offset..).zip(data) {
            if let Some(from) = i.checked_sub(start).and_then(|i| value.get(i)) {
                *byte = *from;
            }
        }
    }

    fn config_write(&mut self, offset: usize, data: &[u8]) -> Effect {
        let written = self.config.write(offset, data);
        if let Some(control) = written.msix_control {
            self.msix.set_control(control);
        }
        if self.in_window(offset, data.len())
            && let Some((at, len)) = self.window()
        {
            let mut value = [0; 4];
            self.config.read(self.access + PCI_CAP_DATA, &mut value);
            // Firmware may start a device through here, but no kernel does.
            let _ = BusDevice::write(self, at, value.get(..len).unwrap_or_default());
        }
        written.effect()
    }

    fn bar_moved(&mut self, moved: &BarMove) {
        if moved.bar == BAR {
            self.base = moved.to;
            self.place_bells();
        }
    }
}

impl Transport for VirtioPci {
    fn pause(&mut self) {
        self.core.pause();
    }

    fn resume(&mut self) {
        if self.core.resume() {
            self.msix.raise_pending();
        }
    }

    fn save(&self) -> Result<TransportState, StillActive> {
        self.core.save(BusState::Pci(PciState {
            config: self.config.save(),
            msix: self.msix.save(),
            config_vector: self.vectors.config.load(Ordering::SeqCst),
            queue_vectors: self.vectors.queues.iter().map(|vector| vector.load(Ordering::SeqCst)).collect(),
        }))
    }
}

/// Configuration space of a function of this kind, and where its PCI configuration access capability is.
fn config_space(kind: DeviceKind, queues: u16, vectors: u16) -> Result<(ConfigSpace, usize), ConfigError> {
    let identity = Identity {
        vendor: VENDOR_REDHAT,
        device: DEVICE_BASE + kind as u16,
        revision: 1,
        class: class(kind),
        subsystem_vendor: VENDOR_REDHAT,
        // Any number from 0x40 on, which no transitional device has (4.1.2.1).
        subsystem: 0x40 + kind as u16,
    };
    let mut config = ConfigSpace::new(&identity);
    config.add_bar(BAR, BarKind::Memory64, BAR_LEN)?;
    let notify_len = u32::from(queues) * NOTIFY_STRIDE as u32;
    let parts = [(CAP_COMMON, COMMON, COMMON_LEN), (CAP_ISR, ISR, 1), (CAP_DEVICE, DEVICE, PAGE as u32)];
    for (part, offset, len) in parts {
        config.add_capability(CAP_VENDOR, &capability(part, offset, len, &[]), &[])?;
    }
    let stride = (NOTIFY_STRIDE as u32).to_le_bytes();
    config.add_capability(CAP_VENDOR, &capability(CAP_NOTIFY, NOTIFY, notify_len, &stride), &[])?;
    // The window's bar, offset, length and data are the guest's to write.
    let mut writable = capability(0, u64::from(u32::MAX), u32::MAX, &[0xff; 4]);
    for (byte, mask) in writable.iter_mut().zip([0, 0, 0xff]) {
        *byte = mask;
    }
    let access = config.add_capability(CAP_VENDOR, &capability(CAP_PCI, 0, 0, &[0; 4]), &writable)?;
    config.add_msix(&MsixLayout {
        vectors,
        table_bar: BAR,
        table_offset: MSIX_TABLE as u32,
        pba_bar: BAR,
        pba_offset: MSIX_PENDING as u32,
    })?;
    Ok((config, access))
}

/// `struct virtio_pci_cap` (4.1.4) from `cap_len` on, with what follows it.
fn capability(kind: u8, offset: u64, len: u32, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + rest.len() as u8, kind, BAR, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(rest);
    body
}

/// Class, subclass and programming interface (PCI Code and ID Assignment 1.11).
fn class(kind: DeviceKind) -> u32 {
    match kind {
        // Mass storage, other.
        DeviceKind::Block | DeviceKind::Fs => 0x01_80_00,
        // Communication, other.
        DeviceKind::Console => 0x07_80_00,
        // Network, Ethernet.
        DeviceKind::Net => 0x02_00_00,
        // Unclassified.
        DeviceKind::Rng | DeviceKind::Balloon | DeviceKind::Vsock => 0x00_ff_00,
    }
}
