//! virtio-rng: the host's random numbers for the guest (virtio 1.2, 5.4). One queue, one thread.

use std::sync::Arc;

use arch::memory::SharedRam;

use super::chain::Chain;
use super::device::{ActivateError, Activation, DeviceKind, Interrupt, RING_FEATURES, VirtioDevice};
use super::events::{self, Outcome, Serve};
use super::queue::{Queue, QueueError};
use super::state::{DeviceState, RngState};
use crate::counters::Counters;
use crate::state::RestoreError;
use crate::worker::Worker;

/// Entries of its queue. Drivers keep one request in it.
const QUEUE_SIZES: [u16; 1] = [64];
/// The most that one request is given; a driver asks again for more.
const MOST: usize = 64 << 10;

/// The device.
pub struct Rng {
    id: String,
    counters: Arc<Counters>,
    worker: Option<Worker<State>>,
}

/// What its thread owns.
struct State {
    ram: SharedRam,
    interrupt: Interrupt,
    queue: Queue,
    counters: Arc<Counters>,
}

impl Rng {
    /// A random number generator called `id`, which counts in `counters`.
    #[must_use]
    pub fn new(id: &str, counters: Arc<Counters>) -> Self {
        Self { id: id.to_owned(), counters, worker: None }
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, queues, interrupt, .. } = activation;
        let queue = queues.into_iter().next().ok_or(ActivateError::MissingQueue(0))?;
        // The thread owns the queue; the epoll has its event registered before that.
        let kick = queue.kick.try_clone().map_err(ActivateError::Events)?;
        let counters = Arc::clone(&self.counters);
        let state = State { ram, interrupt: interrupt.clone(), queue, counters };
        self.worker = Some(events::start(&self.id, &interrupt, state, &[(&kick, 0)])?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.worker.take().and_then(Worker::stop).map(|state| state.queue).into_iter().collect()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng(RngState {})
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Rng(RngState {}) => Ok(()),
            other => Err(other.is_not(&self.id, "rng")),
        }
    }
}

impl Serve for State {
    fn event(&mut self, _token: u64) -> Result<(), QueueError> {
        let (ram, counters) = (&self.ram, &self.counters);
        events::serve(&mut self.queue, ram, &self.interrupt, |chain| {
            Outcome::Done(fill(chain, ram, counters))
        })
    }
}

/// Fill the writable part of a request; returns how many bytes were written.
fn fill(chain: &Chain, ram: &SharedRam, counters: &Counters) -> u32 {
    let len = usize::try_from(chain.writable_len()).unwrap_or(MOST).min(MOST);
    let mut bytes = vec![0; len];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                // Only a host without the call gets here; the guest is told how much there is.
                log::error!("the host has no random numbers: {error}");
                counters.errors.add(1);
                break;
            }
        }
    }
    bytes.truncate(done);
    let written = chain.write(ram, 0, &bytes);
    counters.requests.add(1);
    counters.to_guest.add(written as u64);
    written as u32
}
