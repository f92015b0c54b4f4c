//! virtio-blk: a [`Disk`] as a virtio device (virtio 1.2, 5.2).
//!
//! The device object belongs to its transport. While it is active each of its queues belongs to a thread of its own,
//! `dev:<id>` or `dev:<id>-q<n>`, with its own [`Engine`](crate::disk::engine::Engine). The disk is only shared.

mod config;
mod request;
mod resize;
mod serial;
mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use crate::counters::Counters;
use crate::disk::Disk;
use crate::disk::engine::{self, EngineKind};
use crate::limit::Limiter;
use crate::state::RestoreError;
use crate::worker::Worker;

use super::device::{ActivateError, Activation, DeviceKind, VirtioDevice, read_space};
use super::queue::Queue;
use super::state::{BlockState, DeviceState};
use config::Geometry;
use worker::QueueWorker;

pub use resize::Resizer;
pub use serial::{Serial, SerialError};

/// The largest block that a guest can have been told of, in bytes.
const MAX_BLOCK: u32 = 64 << 10;

/// How a block device presents its disk.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// How many queues it has, at least 1. As many as the guest has CPUs is plenty.
    pub queues: u16,
    /// The size of each queue: a power of two from 4 to 1024; others are rounded to one.
    pub queue_size: u16,
    /// What the guest reads as the disk's serial number. The device's name if there is none.
    pub serial: Option<Serial>,
    /// How the host is asked.
    pub engine: EngineKind,
    /// What its queues may do together. `None` is no limit.
    pub limiter: Option<Arc<Limiter>>,
    /// Where it counts.
    pub counters: Arc<Counters>,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            serial: None,
            engine: EngineKind::Auto,
            limiter: None,
            counters: Arc::default(),
        }
    }
}

/// A virtio-blk device.
pub struct Block {
    id: String,
    disk: Arc<Disk>,
    serial: Serial,
    engine: EngineKind,
    limiter: Option<Arc<Limiter>>,
    counters: Arc<Counters>,
    driver: Arc<resize::Driver>,
    geometry: Geometry,
    queue_sizes: Vec<u16>,
    workers: Vec<Worker<QueueWorker>>,
}

impl Block {
    /// A device called `id`, such as `disk0`, around an open disk. It is inactive.
    #[must_use]
    pub fn new(id: String, disk: Arc<Disk>, options: BlockOptions) -> Self {
        let queues = options.queues.max(1);
        let queue_size = options.queue_size.clamp(4, 1024).next_power_of_two();
        let geometry = Geometry {
            readonly: disk.readonly(),
            logical_block: disk.logical_block(),
            physical_block: disk.physical_block(),
            queues,
            queue_size,
        };
        Self {
            serial: options.serial.unwrap_or_else(|| Serial::of_device(&id)),
            id,
            disk,
            engine: options.engine,
            limiter: options.limiter,
            counters: options.counters,
            driver: Arc::default(),
            geometry,
            queue_sizes: vec![queue_size; usize::from(queues)],
            workers: Vec::new(),
        }
    }

    /// The way to make its disk larger while the guest runs.
    #[must_use]
    pub fn resizer(&self) -> Resizer {
        Resizer::new(Arc::clone(&self.disk), Arc::clone(&self.driver))
    }

    fn start(&self, queue: Queue, activation: &Activation) -> Result<Worker<QueueWorker>, ActivateError> {
        let name = match queue.index {
            0 => format!("dev:{}", self.id),
            index => format!("dev:{}-q{index}", self.id),
        };
        let worker = QueueWorker {
            device: self.id.clone(),
            queue,
            ram: Arc::clone(&activation.ram),
            interrupt: activation.interrupt.clone(),
            disk: Arc::clone(&self.disk),
            serial: self.serial,
            // Without a flush the guest counts each write as safe once it is done (5.2.6.2).
            durable: !config::has(activation.features, VIRTIO_BLK_F_FLUSH),
            engine: self.engine,
            limiter: self.limiter.clone(),
            counters: Arc::clone(&self.counters),
        };
        Worker::start(&name, worker, QueueWorker::run)
            .map_err(|source| ActivateError::Thread { name, source })
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn features(&self) -> u64 {
        config::features(&self.geometry)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = config::space(&self.geometry, self.disk.size());
        read_space(&space, offset, data);
    }

    /// Nothing in it can be written: `writeback` would need `VIRTIO_BLK_F_CONFIG_WCE`.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = std::mem::take(&mut activation.queues);
        if queues.first().is_none_or(|queue| queue.index != 0) {
            return Err(ActivateError::MissingQueue(0));
        }
        if self.engine == EngineKind::Uring {
            engine::probe_uring().map_err(ActivateError::Events)?;
        }
        // On an error the workers that were started are dropped, which ends them.
        self.workers =
            queues.into_iter().map(|queue| self.start(queue, &activation)).collect::<Result<_, _>>()?;
        self.driver.started(&activation.interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.driver.stopped();
        // All at once: a host that does not answer is waited for once, not once a queue.
        self.workers.iter().for_each(Worker::ask_to_stop);
        // A worker that panicked has lost its queue; the panic was reported.
        self.workers.drain(..).filter_map(|worker| worker.stop()).map(|worker| worker.queue).collect()
    }

    fn save(&self) -> DeviceState {
        let Geometry { logical_block, physical_block, .. } = self.geometry;
        let (size, resized) = (self.disk.size(), self.driver.is_untold());
        DeviceState::Block(BlockState { size, resized, logical_block, physical_block })
    }

    /// What the guest knows of its disk stays true: no byte of it may be gone, and no request that it may make too small.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Block(state) = state else { return Err(state.is_not(&self.id, "block")) };
        let wrong = |field, reason: String| Err(RestoreError::new(&self.id, field, reason));
        let size = self.disk.size();
        if size < state.size {
            return wrong("size", format!("the guest knows {} bytes, and the disk has {size}", state.size));
        }
        let (logical, physical) = (state.logical_block, state.physical_block);
        if logical < self.geometry.logical_block {
            return wrong(
                "logical-block",
                format!("requests are of {} bytes here", self.geometry.logical_block),
            );
        }
        let plausible = |block: u32| block.is_power_of_two() && block <= MAX_BLOCK;
        if !plausible(logical) || !plausible(physical) || physical < logical {
            return wrong("logical-block", format!("there are no blocks of {logical} and {physical} bytes"));
        }
        (self.geometry.logical_block, self.geometry.physical_block) = (logical, physical);
        if state.resized || size > state.size {
            self.driver.tell();
        }
        Ok(())
    }
}
