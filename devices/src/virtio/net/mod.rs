//! virtio-net: frames between a guest and a [`Backend`] (virtio 1.2, 5.1).
//!
//! The device object belongs to its transport. While it is active each queue pair belongs to a thread of its own, `dev:<id>` or
//! `dev:<id>-q<n>`; the first has the control queue too. They share the link's state and the number of pairs in use
//! ([`shared`]), without locks.

mod config;
mod control;
mod header;
mod pair;
mod receive;
mod shared;
mod transmit;

#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod saved_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};

use crate::counters::Counters;
use crate::limit::{Gate, Limiter};
use crate::net::{Backend, HEADER, Offloads};
use crate::ratelog;
use crate::state::{Hex, RestoreError};
use crate::worker::Worker;

use super::device::{ActivateError, Activation, DeviceKind, Interrupt, VirtioDevice, read_space};
use super::queue::Queue;
use super::state::{DeviceState, NetState, ReceiveState};
use config::{Facts, GUEST_OFFLOADS, has};
use control::Control;
use pair::{Common, Pair};
use receive::{Accepts, MAX_RECEIVED, Receiver};
use shared::Shared;
use transmit::Transmitter;

/// The size of the receive and transmit queues: several of the largest frames, in buffers of a page.
const QUEUE_SIZE: u16 = 256;
/// The size of the control queue.
const CONTROL_SIZE: u16 = 64;
/// The packet that is meant where nothing is said, in bytes.
const DEFAULT_MTU: u16 = 1500;
/// How long a received frame with its header can be, in bytes.
const FRAMES: std::ops::RangeInclusive<usize> = HEADER..=MAX_RECEIVED;

/// How a network device presents itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// The guest's address.
    pub mac: [u8; 6],
    /// The largest packet that the guest is told to send, in bytes.
    pub mtu: Option<u16>,
}

/// What each direction may do in a time, all its queues together. `None` is no limit.
#[derive(Clone, Debug, Default)]
pub struct NetLimiters {
    /// What the guest receives.
    pub receive: Option<Arc<Limiter>>,
    /// What it sends.
    pub transmit: Option<Arc<Limiter>>,
}

/// A virtio-net device.
pub struct Net {
    id: String,
    backend: Arc<dyn Backend>,
    counters: Arc<Counters>,
    limiters: NetLimiters,
    facts: Facts,
    queue_sizes: Vec<u16>,
    shared: Arc<Shared>,
    workers: Vec<Worker<Pair>>,
    /// Queues that the driver enabled and that belong to no whole pair.
    idle: Vec<Queue>,
    /// While it is stopped: where the receivers were.
    receive: Vec<ReceiveState>,
    /// The driver has been at work since the last reset, and the back end knows what it accepts.
    resumed: bool,
}

impl Net {
    /// A device called `id`, such as `net0`, in front of an open back end. It is inactive.
    ///
    /// # Errors
    /// If the host is out of file descriptors.
    pub fn new(
        id: String,
        backend: Arc<dyn Backend>,
        options: NetOptions,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let pairs = backend.queue_pairs().max(1);
        let facts = Facts { mac: options.mac, mtu: options.mtu, pairs, offloads: backend.offloads() };
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * usize::from(pairs)];
        queue_sizes.push(CONTROL_SIZE);
        let shared = Shared::new(pairs)?;
        Ok(Self {
            id,
            backend,
            counters,
            limiters: NetLimiters::default(),
            facts,
            queue_sizes,
            shared,
            workers: Vec::new(),
            idle: Vec::new(),
            receive: Vec::new(),
            resumed: false,
        })
    }

    /// Held to these limits.
    #[must_use]
    pub fn limited(mut self, limiters: NetLimiters) -> Self {
        self.limiters = limiters;
        self
    }

    /// Where the control queue is, and how many pairs are before it: without `VIRTIO_NET_F_MQ` there is one pair (5.1.2).
    fn pairs(&self, features: u64) -> u16 {
        if has(features, VIRTIO_NET_F_MQ) { self.facts.pairs } else { 1 }
    }

    /// Tell the back end what the driver accepts: what was agreed on, or what the driver asked for later and a restore brought back.
    fn set_up(&self, features: u64, interrupt: &Interrupt) {
        let accepted = self.shared.offloads().map_or(features, |bits| bits & features);
        if let Err(error) = self.backend.set_offloads(config::guest_offloads(accepted)) {
            // Not a reason to stop the guest: its frames are dropped, and it sees the link down.
            ratelog::warn(format_args!("{}: the network cannot be set up: {error}", self.id));
            self.shared.set_link(false, interrupt);
        }
    }

    fn start(&self, pair: Pair) -> Result<Worker<Pair>, ActivateError> {
        let name = match pair.index {
            0 => format!("dev:{}", self.id),
            index => format!("dev:{}-q{index}", self.id),
        };
        Worker::start(&name, pair, Pair::run).map_err(|source| ActivateError::Thread { name, source })
    }

    /// A thread's state for each pair whose queues the driver has enabled, in order and without gaps.
    fn pair_up(&mut self, activation: Activation) -> Result<Vec<Pair>, ActivateError> {
        let Activation { ram, queues, interrupt, features } = activation;
        let most = self.pairs(features);
        let mut queues: BTreeMap<u16, Queue> = queues.into_iter().map(|queue| (queue.index, queue)).collect();
        let mut control = queues.remove(&(2 * most));
        let accepts = Accepts {
            mergeable: has(features, VIRTIO_NET_F_MRG_RXBUF),
            large: config::guest_offloads(features).large(),
            mtu: self.facts.mtu.unwrap_or(DEFAULT_MTU),
        };
        let whole = |queues: &BTreeMap<_, _>, pair: u16| {
            (2 * pair..2 * pair + 2).find(|index| !queues.contains_key(index))
        };
        if let Some(missing) = whole(&queues, 0) {
            return Err(ActivateError::MissingQueue(missing));
        }
        let count = (0..most).take_while(|pair| whole(&queues, *pair).is_none()).count() as u16;
        let mut pairs = Vec::new();
        for index in 0..count {
            let (Some(rx), Some(tx)) = (queues.remove(&(2 * index)), queues.remove(&(2 * index + 1))) else {
                break;
            };
            let common = Common {
                device: self.id.clone(),
                ram: Arc::clone(&ram),
                interrupt: interrupt.clone(),
                shared: Arc::clone(&self.shared),
                counters: Arc::clone(&self.counters),
            };
            let gate =
                |limiter: &Option<Arc<Limiter>>| Gate::new(limiter.clone(), Arc::clone(&self.counters));
            let mut receiver = Receiver::new(rx, accepts, gate(&self.limiters.receive), &common);
            if let Some(at) = self.receive.iter().position(|state| state.pair == index) {
                receiver.restore(&self.receive.swap_remove(at), &common);
            }
            let offloads = config::host_offloads(features);
            let transmitter = Transmitter::new(tx, offloads, gate(&self.limiters.transmit), &common);
            let backend = Arc::clone(&self.backend);
            let control =
                control.take().map(|queue| Control::new(queue, Arc::clone(&backend), features, count));
            pairs.push(Pair { index, common, backend, receiver, transmitter, control });
        }
        self.idle = queues.into_values().collect();
        Ok(pairs)
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn features(&self) -> u64 {
        config::features(&self.facts)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = config::space(&self.facts, self.shared.link_up());
        read_space(&space, offset, data);
    }

    /// Nothing in it can be written: the address could only by a driver of before virtio 1.0.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let interrupt = activation.interrupt.clone();
        let pairs = self.pair_up(activation)?;
        if !self.resumed {
            self.set_up(features, &interrupt);
            // More than the driver has set up could never be settled.
            self.shared.want(self.shared.wanted().min(pairs.len() as u16));
        }
        self.resumed = true;
        // On an error the workers that were started are dropped, which ends them.
        self.workers = pairs.into_iter().map(|pair| self.start(pair)).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.workers.iter().for_each(Worker::ask_to_stop);
        // A worker that panicked has lost its queues; the panic was reported.
        let mut queues = std::mem::take(&mut self.idle);
        for pair in self.workers.drain(..).filter_map(Worker::stop) {
            self.receive.push(pair.receiver.save(pair.index));
            queues.extend(pair.into_queues());
        }
        queues
    }

    fn reset(&mut self) {
        self.shared.want(1);
        self.shared.set_offloads(None);
        self.receive.clear();
        self.resumed = false;
        // Frames that come before the next driver has said what it accepts are to be such that any driver does.
        if let Err(error) = self.backend.set_offloads(Offloads::default()) {
            log::debug!("{}: offloads stay as they were: {error}", self.id);
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(NetState {
            link_up: self.shared.link_up(),
            pairs: self.shared.wanted(),
            mtu: self.facts.mtu,
            offloads: self.shared.offloads(),
            receive: self.receive.clone(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Net(state) = state else { return Err(state.is_not(&self.id, "net")) };
        let wrong = |field, reason: String| Err(RestoreError::new(&self.id, field, reason));
        let most = self.facts.pairs;
        if !(1..=most).contains(&state.pairs) {
            return wrong("pairs", format!("{} of the {most} that there are", state.pairs));
        }
        if state.offloads.is_some_and(|bits| bits & !GUEST_OFFLOADS != 0) {
            return wrong("offloads", "bits that are no offloads".to_owned());
        }
        for (index, ReceiveState { pair, frame, .. }) in state.receive.iter().enumerate() {
            if *pair >= most || state.receive.iter().take(index).any(|other| other.pair == *pair) {
                return wrong("receive", format!("queue pair {pair}"));
            }
            if let Some(Hex(frame)) = frame.as_ref().filter(|frame| !FRAMES.contains(&frame.0.len())) {
                return wrong("receive", format!("a frame of {} bytes", frame.len()));
            }
        }
        self.receive.clone_from(&state.receive);
        self.facts.mtu = state.mtu;
        self.shared.restore_link(state.link_up);
        self.shared.want(state.pairs);
        self.shared.set_offloads(state.offloads);
        Ok(())
    }
}
