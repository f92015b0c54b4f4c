//! What is common to every transport: status, features, queue registers, interrupt status, activation.
//!
//! No register layout and no locks in here; the transport that owns a [`Core`] has both. Called on vCPU
//! threads and the vmm's, under the transport's lock. [`Notices`] alone is also touched by device threads.

mod saved;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use arch::memory::SharedRam;

use super::TransportError;
use super::registers::{QueueRegisters, RegisterError};
use super::state::TransportState;
use crate::bus::Effect;
use crate::ratelog::{self, Chained};
use crate::virtio::device::{
    ActivateError, Activation, DeviceKind, Interrupt, STATUS_NEEDS_RESET, Signal, VirtioDevice,
};
use crate::virtio::queue::Queue;

const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;

/// The steps of initialisation in order (virtio 1.2, 3.1.1), each with what must have been done before it.
const STEPS: [(u8, u8); 4] = [
    (ACKNOWLEDGE, 0),
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, ACKNOWLEDGE | DRIVER),
    (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK),
];

/// The most queues that a device can have: what the transports have room for.
const MAX_QUEUES: usize = 255;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// The interrupt status and the configuration's generation: what device threads change without a lock.
#[derive(Default)]
pub(crate) struct Notices {
    isr: AtomicU8,
    generation: AtomicU32,
}

impl Notices {
    /// A queue has used buffers. Called before the interrupt is raised.
    pub(crate) fn queue(&self) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::SeqCst);
    }

    /// The configuration space changed. Called before the interrupt is raised.
    pub(crate) fn config(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
    }

    /// The interrupt status.
    pub(crate) fn isr(&self) -> u8 {
        self.isr.load(Ordering::SeqCst)
    }

    /// Clear `bits` of the interrupt status; returns what it was.
    pub(crate) fn acknowledge(&self, bits: u8) -> u8 {
        self.isr.fetch_and(!bits, Ordering::SeqCst)
    }

    /// Become what was saved.
    fn restore(&self, isr: u8, generation: u32) {
        self.isr.store(isr, Ordering::SeqCst);
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Changes whenever the configuration space did (2.5).
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }
}

/// What a write to the status register brought about, for the transport to move its doorbells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing that matters to doorbells.
    None,
    /// The device serves its queues, or others than before.
    Queues,
    /// The device is as at power-on.
    Reset,
}

impl Change {
    /// What it means to the machine, if a write to the status register brought it about.
    pub(crate) fn effect(self) -> Effect {
        match self {
            Self::None | Self::Reset => Effect::None,
            Self::Queues => Effect::DriverReady,
        }
    }
}

/// Why a device is not active though its driver is ready.
#[derive(Debug, thiserror::Error)]
enum Fault {
    /// The driver's doing.
    #[error("queue {index} is unusable")]
    Queue {
        index: u16,
        #[source]
        source: RegisterError,
    },
    /// The host is out of file descriptors.
    #[error("the queues cannot be handed over")]
    Kick(#[source] io::Error),
    /// The device says no.
    #[error("the device cannot start")]
    Device(#[source] ActivateError),
}

/// Whether the device has the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Active,
    Paused,
}

/// A device and its registers.
///
/// ```text
///  status 0 ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► DRIVER_OK     each bit is added to those before it
///                                │          ▲              │
///                                └─ only if VERSION_1 and  │ every enabled queue valid, device.activate() Ok?
///                                   nothing not offered    ├── yes ─► Active ◄─ resume ─ pause ─► Paused
///                                                          └── no ──► NEEDS_RESET, Idle
///  any ── write of 0 ──► device.stop(), all registers initial, Idle
///  any ── FAILED ──────► stays there until reset
///  restored ─► as it was saved; Paused if it was active
/// ```
///
/// A write that drops a bit or skips a step is ignored from there on. Several steps at once in one write are
/// taken in order: common drivers do so. `NEEDS_RESET` is the device's to set, by [`Interrupt::needs_reset`],
/// and survives any write but a reset.
pub(crate) struct Core {
    device: Box<dyn VirtioDevice>,
    ram: SharedRam,
    signal: Arc<dyn Signal>,
    notices: Arc<Notices>,
    /// Shared with the device's threads, which set NEEDS_RESET in it.
    status: Arc<AtomicU8>,
    phase: Phase,
    offered: u64,
    /// What the driver wrote, offered or not, until FEATURES_OK.
    accepted: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    kicks: Arc<[EventFd]>,
    /// It was restored, and not resumed since.
    restored: bool,
}

impl Core {
    /// `device`, as at power-on or as it was saved. `signal` reports through `notices`.
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        ram: SharedRam,
        notices: Arc<Notices>,
        signal: Arc<dyn Signal>,
        state: Option<&TransportState>,
    ) -> Result<Self, TransportError> {
        let mut core = Self::at_power_on(device, ram, notices, signal)?;
        if let Some(state) = state {
            core.restore(state)?;
        }
        Ok(core)
    }

    fn at_power_on(
        device: Box<dyn VirtioDevice>,
        ram: SharedRam,
        notices: Arc<Notices>,
        signal: Arc<dyn Signal>,
    ) -> Result<Self, TransportError> {
        let count = device.queue_sizes().len();
        if count > MAX_QUEUES {
            return Err(TransportError::Queues { device: device.id().to_owned(), count });
        }
        let mut queues = Vec::new();
        let mut kicks = Vec::new();
        for &size in device.queue_sizes() {
            if !size.is_power_of_two() {
                return Err(TransportError::QueueSize { device: device.id().to_owned(), size });
            }
            queues.push(QueueRegisters::new(size));
            let kick = EventFd::new(EFD_NONBLOCK);
            kicks.push(
                kick.map_err(|source| TransportError::Events { device: device.id().to_owned(), source })?,
            );
        }
        Ok(Self {
            offered: device.features() | 1 << VIRTIO_F_VERSION_1,
            device,
            ram,
            signal,
            notices,
            status: Arc::default(),
            phase: Phase::Idle,
            accepted: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            queues,
            kicks: kicks.into(),
            restored: false,
        })
    }

    /// The device's name.
    pub(crate) fn id(&self) -> &str {
        self.device.id()
    }

    pub(crate) fn kind(&self) -> DeviceKind {
        self.device.kind()
    }

    pub(crate) fn notices(&self) -> &Notices {
        &self.notices
    }

    /// The events that doorbells ring, one a queue.
    pub(crate) fn kicks(&self) -> Arc<[EventFd]> {
        Arc::clone(&self.kicks)
    }

    pub(crate) fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver writes the status register (2.1).
    pub(crate) fn write_status(&mut self, value: u8) -> Change {
        if value == 0 {
            self.reset();
            return Change::Reset;
        }
        let status = self.status();
        let dropped = status & !STATUS_NEEDS_RESET & !value;
        if dropped != 0 || status & FAILED != 0 {
            return Change::None;
        }
        if value & FAILED != 0 {
            self.status.fetch_or(FAILED, Ordering::SeqCst);
            return Change::None;
        }
        let new = value & !status;
        for (step, before) in STEPS.into_iter().filter(|(step, _)| new & step != 0) {
            if self.status() & before != before || step == FEATURES_OK && !self.features_ok() {
                return Change::None;
            }
            self.status.fetch_or(step, Ordering::SeqCst);
        }
        if new & DRIVER_OK == 0 {
            return Change::None;
        }
        self.activate();
        Change::Queues
    }

    /// Whether the driver's features can be worked with (2.2, 6.1).
    fn features_ok(&self) -> bool {
        let unknown = self.accepted & !self.offered;
        let good = unknown == 0 && self.accepted & 1 << VIRTIO_F_VERSION_1 != 0;
        if !good {
            ratelog::warn(format_args!(
                "{}: the driver's features {:#x} are refused",
                self.device.id(),
                self.accepted
            ));
        }
        good
    }

    pub(crate) fn device_features_select(&self) -> u32 {
        self.device_features_select
    }

    pub(crate) fn select_device_features(&mut self, select: u32) {
        self.device_features_select = select;
    }

    /// 32 bits of the features that the device offers.
    pub(crate) fn device_features(&self) -> u32 {
        window(self.offered, self.device_features_select)
    }

    pub(crate) fn driver_features_select(&self) -> u32 {
        self.driver_features_select
    }

    pub(crate) fn select_driver_features(&mut self, select: u32) {
        self.driver_features_select = select;
    }

    /// 32 bits of the features that the driver accepted.
    pub(crate) fn driver_features(&self) -> u32 {
        window(self.accepted, self.driver_features_select)
    }

    /// The driver writes 32 bits of what it accepts. Too late after FEATURES_OK (3.1.1). There are no bits
    /// beyond 63, but a driver may write zeroes there.
    pub(crate) fn write_driver_features(&mut self, value: u32) {
        if self.status() & FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | value,
            1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    pub(crate) fn queue_count(&self) -> u16 {
        // At most MAX_QUEUES.
        self.queues.len() as u16
    }

    pub(crate) fn queue_select(&self) -> u16 {
        self.queue_select
    }

    /// Queue numbers that do not exist can be selected, and have no registers.
    pub(crate) fn select_queue(&mut self, select: u32) {
        self.queue_select = u16::try_from(select).unwrap_or(u16::MAX);
    }

    /// The selected queue's registers.
    pub(crate) fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue's registers for the driver to set. None from DRIVER_OK on, and while it is enabled.
    pub(crate) fn queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        if self.frozen() {
            return None;
        }
        self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.ready)
    }

    /// The driver enables the selected queue before DRIVER_OK, or takes one back at any time (4.2.2.2). The
    /// others go on, if the device can do without it.
    pub(crate) fn enable_queue(&mut self, enable: bool) -> Change {
        let frozen = self.frozen();
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return Change::None };
        if !frozen {
            queue.ready = enable;
            return Change::None;
        }
        if enable || !queue.ready {
            return Change::None;
        }
        // First: its position is not worth keeping, and it is not missed when the device stops.
        queue.ready = false;
        self.pause();
        if self.phase == Phase::Paused {
            self.phase = Phase::Idle;
            match self.try_activate() {
                // A driver on its way out takes one queue after the other.
                Err(Fault::Device(error @ ActivateError::MissingQueue(_))) => {
                    log::debug!("{} stops: {error}", self.device.id());
                }
                Err(fault) => self.broken(&Chained(&fault)),
                Ok(()) => {}
            }
        }
        Change::Queues
    }

    fn frozen(&self) -> bool {
        self.status() & DRIVER_OK != 0
    }

    /// The driver rings for queue `index` by a write that came this far. Before DRIVER_OK, and for queues that
    /// do not exist, nothing listens.
    pub(crate) fn notify(&self, index: u32) {
        let kick = usize::try_from(index).ok().and_then(|index| self.kicks.get(index));
        if let Some(kick) = kick.filter(|_| self.phase == Phase::Active) {
            // Fails only with the counter at its maximum, which rings as well.
            let _ = kick.write(1);
        }
    }

    /// The queues whose doorbells are to ring now.
    pub(crate) fn ringing(&self) -> Vec<u16> {
        let active = self.phase != Phase::Idle;
        (0..self.queue_count()).zip(&self.queues).filter(|(_, q)| active && q.ready).map(|(i, _)| i).collect()
    }

    /// Read the device's configuration space.
    pub(crate) fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    /// Write the device's configuration space.
    pub(crate) fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// See [`super::Transport::pause`].
    pub(crate) fn pause(&mut self) {
        if self.phase != Phase::Active {
            return;
        }
        self.phase = Phase::Paused;
        let stopped = self.device.stop();
        let mut lost = false;
        for (index, registers) in (0..).zip(&mut self.queues).filter(|(_, registers)| registers.ready) {
            match stopped.iter().find(|queue| queue.index == index) {
                Some(queue) => registers.keep_positions(&queue.ring),
                None => lost = true,
            }
        }
        if lost {
            // Its thread died with it: where it stood is not known.
            self.broken(&"a queue was lost");
        }
    }

    /// See [`super::Transport::resume`]. A device that needs a reset waits for that instead. Whether it is the first time after a
    /// restore: interrupts of before may have been lost with the machine that was saved, on the way from a device's thread to the
    /// interrupt controllers. Those of queues are raised again here.
    pub(crate) fn resume(&mut self) -> bool {
        let restored = std::mem::take(&mut self.restored);
        if restored {
            self.raise_owed();
        }
        if self.phase == Phase::Paused {
            self.activate();
        }
        restored
    }

    /// Interrupt for what the guest was given and, as far as its memory tells, has not heard of yet.
    fn raise_owed(&self) {
        if self.phase != Phase::Paused {
            return;
        }
        let Ok(queues) = self.make_queues() else { return };
        for mut queue in queues {
            queue.forget_told();
            // A ring that cannot be read is found out by the device.
            if queue.wants_interrupt(&self.ram).unwrap_or(false) {
                self.signal.queue(queue.index);
            }
        }
    }

    /// As at power-on (2.4). Nothing of the device runs after this.
    pub(crate) fn reset(&mut self) {
        if self.phase == Phase::Active {
            drop(self.device.stop());
        }
        self.device.reset();
        self.phase = Phase::Idle;
        self.restored = false;
        self.status.store(0, Ordering::SeqCst);
        self.notices.acknowledge(u8::MAX);
        self.accepted = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        for (queue, kick) in self.queues.iter_mut().zip(self.kicks.iter()) {
            queue.reset();
            let _ = kick.read();
        }
    }

    /// Hand the enabled queues to the device, unless it needs a reset; if that fails it does.
    fn activate(&mut self) {
        self.phase = Phase::Idle;
        if self.status() & STATUS_NEEDS_RESET == 0
            && let Err(fault) = self.try_activate()
        {
            self.broken(&Chained(&fault));
        }
    }

    fn try_activate(&mut self) -> Result<(), Fault> {
        let queues = self.make_queues()?;
        // What the guest rang for while nobody listened is looked at now.
        for queue in &queues {
            let _ = queue.kick.write(1);
        }
        let activation = Activation {
            ram: Arc::clone(&self.ram),
            queues,
            interrupt: self.interrupt(),
            features: self.accepted,
        };
        self.device.activate(activation).map_err(Fault::Device)?;
        self.phase = Phase::Active;
        Ok(())
    }

    fn make_queues(&self) -> Result<Vec<Queue>, Fault> {
        let event_idx = self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let indirect = self.accepted & 1 << VIRTIO_RING_F_INDIRECT_DESC != 0;
        let mut queues = Vec::new();
        for (index, (registers, kick)) in (0..).zip(self.queues.iter().zip(self.kicks.iter())) {
            if !registers.ready {
                continue;
            }
            let ring = registers.ring(&self.ram, event_idx);
            let ring = ring.map_err(|source| Fault::Queue { index, source })?;
            let kick = kick.try_clone().map_err(Fault::Kick)?;
            queues.push(Queue::new(index, ring, kick, indirect));
        }
        Ok(queues)
    }

    fn interrupt(&self) -> Interrupt {
        Interrupt::new(Arc::clone(&self.signal), Arc::clone(&self.status))
    }

    fn broken(&self, reason: &dyn fmt::Display) {
        self.interrupt().needs_reset(self.device.id(), reason);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // Threads that outlive their registers would interrupt a transport that is gone.
        if self.phase == Phase::Active {
            self.device.end();
        }
    }
}

/// 32 bits of 64; zero beyond.
fn window(bits: u64, select: u32) -> u32 {
    match select {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}
