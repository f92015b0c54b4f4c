//! virtio-balloon: memory that the guest can do without goes back to the host (virtio 1.2, 5.5).
//!
//! ```text
//!   vmm ── BalloonControl ──► target, "tell me of your memory" ──► config interrupt, stats queue ──► driver
//!   driver ── inflate: pages it took from its system ──┐
//!   driver ── reporting: pages that are free anyway ───┴─► given back to the host
//!   driver ── deflate: pages it gives to its system again: nothing to do, the host backs what is touched
//! ```
//!
//! One thread, `dev:<id>`, serves all queues and exists only while a driver does. What the vmm asks and what the driver
//! says meet in [`BalloonControl`], which outlives the device.

mod control;
mod pages;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arch::memory::SharedRam;

use super::chain::Chain;
use super::device::{ActivateError, Activation, DeviceKind, Interrupt, RING_FEATURES, VirtioDevice};
use super::events::{self, Outcome, Serve};
use super::queue::{Queue, QueueError};
use super::state::DeviceState;
use crate::counters::Counters;
use crate::ratelog;
use crate::state::RestoreError;
use crate::worker::Worker;

pub use control::BalloonControl;
use pages::{Left, Pages};

/// Features (5.5.3).
mod feature {
    /// The driver tells of its memory.
    pub const STATS_VQ: u64 = 1 << 1;
    /// It may take pages back when its system is out of memory, whatever the target.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// It says what its free pages are filled with.
    pub const PAGE_POISON: u64 = 1 << 4;
    /// It reports pages that are free.
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// Entries of each queue. Linux reports 32 pieces of memory at a time, and has one request in the others.
const QUEUE_SIZES: [u16; 4] = [64; 4];

/// The token of the control's event; queues have their index.
const WAKE: u64 = 1 << 16;

/// The configuration space (5.5.4): four words of 32 bits.
mod config {
    /// How many pages the driver is to hold.
    pub const NUM_PAGES: u64 = 0;
    /// How many it holds. The driver's to write.
    pub const ACTUAL: u64 = 1;
    /// What free pages are filled with. The driver's to write.
    pub const POISON_VAL: u64 = 3;
}

/// What a queue is for. Drivers number those that were agreed on without gaps, in this order: so does Linux, and so does
/// every device it was written for, though virtio 1.2, 5.5.2 gives each a fixed number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Reporting,
}

/// The role of queue `index` among those agreed on.
fn role(index: u16, features: u64) -> Option<Role> {
    let optional = [(feature::STATS_VQ, Role::Stats), (feature::PAGE_REPORTING, Role::Reporting)];
    let agreed = optional.into_iter().filter(|(feature, _)| features & feature != 0).map(|(_, role)| role);
    [Role::Inflate, Role::Deflate].into_iter().chain(agreed).nth(usize::from(index))
}

/// The device.
pub struct Balloon {
    id: String,
    control: BalloonControl,
    counters: Arc<Counters>,
    reclaim: bool,
    worker: Option<Worker<State>>,
}

/// What its thread owns.
struct State {
    id: String,
    ram: SharedRam,
    interrupt: Interrupt,
    control: BalloonControl,
    counters: Arc<Counters>,
    features: u64,
    reclaim: bool,
    queues: Vec<Queue>,
}

impl Balloon {
    /// A balloon called `id`, which asks and tells through `control`. It counts pages that the guest gave as bytes from the
    /// guest, and those that it took back as bytes to the guest.
    ///
    /// Without `reclaim` the host cannot have single pages back, and the balloon only tells of the guest's memory.
    #[must_use]
    pub fn new(id: &str, control: BalloonControl, counters: Arc<Counters>, reclaim: bool) -> Self {
        control.forget();
        Self { id: id.to_owned(), control, counters, reclaim, worker: None }
    }

    fn config(&self, word: u64) -> u32 {
        match word {
            config::NUM_PAGES => self.control.target_pages(),
            config::ACTUAL => self.control.actual_pages(),
            config::POISON_VAL => self.control.poison(),
            _ => 0,
        }
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn features(&self) -> u64 {
        let reporting = if self.reclaim { feature::PAGE_REPORTING } else { 0 };
        RING_FEATURES | feature::STATS_VQ | feature::DEFLATE_ON_OOM | feature::PAGE_POISON | reporting
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (0..).map(|i| offset.saturating_add(i)).zip(data) {
            *byte = (self.config(at / 4) >> (8 * (at % 4))) as u8;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (0..).map(|i| offset.saturating_add(i)).zip(data) {
            let shift = 8 * (at % 4);
            let word = self.config(at / 4) & !(0xff << shift) | u32::from(*byte) << shift;
            match at / 4 {
                config::ACTUAL => self.control.set_actual_pages(word),
                config::POISON_VAL => self.control.set_poison(word),
                _ => {}
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, queues, interrupt, features } = activation;
        for needed in [0, 1] {
            if queues.iter().all(|queue| queue.index != needed) {
                return Err(ActivateError::MissingQueue(needed));
            }
        }
        let wake = self.control.wake().map_err(ActivateError::Events)?;
        let mut kicks = Vec::new();
        for queue in &queues {
            kicks.push((queue.kick.try_clone().map_err(ActivateError::Events)?, u64::from(queue.index)));
        }
        let mut sources = vec![(&wake, WAKE)];
        sources.extend(kicks.iter().map(|(kick, token)| (kick, *token)));
        let state = State {
            id: self.id.clone(),
            ram,
            interrupt: interrupt.clone(),
            control: self.control.clone(),
            counters: Arc::clone(&self.counters),
            features,
            reclaim: self.reclaim,
            queues,
        };
        self.worker = Some(events::start(&self.id, &interrupt, state, &sources)?);
        self.control.set_driver();
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.worker.take().and_then(Worker::stop).map(|state| state.queues).unwrap_or_default()
    }

    fn reset(&mut self) {
        self.control.forget();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(self.control.save())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Balloon(state) = state else { return Err(state.is_not(&self.id, "balloon")) };
        self.control.restore(state);
        Ok(())
    }
}

impl Serve for State {
    fn event(&mut self, token: u64) -> Result<(), QueueError> {
        if token != WAKE {
            return u16::try_from(token).map_or(Ok(()), |index| self.serve(index));
        }
        if self.control.take_resized() {
            self.interrupt.config_changed();
        }
        let stats = self.queues.iter().map(|queue| queue.index);
        let stats: Vec<u16> =
            stats.filter(|index| role(*index, self.features) == Some(Role::Stats)).collect();
        stats.into_iter().try_for_each(|index| self.serve(index))
    }
}

impl State {
    fn serve(&mut self, index: u16) -> Result<(), QueueError> {
        let Some(role) = role(index, self.features) else { return Ok(()) };
        let Self { id, ram, interrupt, control, counters, features, reclaim, queues } = self;
        let Some(queue) = queues.iter_mut().find(|queue| queue.index == index) else { return Ok(()) };
        // What else free pages hold must stay in them (5.5.6.7).
        let reports = *features & feature::PAGE_POISON == 0 || control.poison() == 0;
        let give = Give { id, ram, counters };
        events::serve(queue, ram, interrupt, |chain| {
            match role {
                Role::Inflate if *reclaim => drop(give.back(&Pages::listed(chain, ram), Left::Anything)),
                Role::Inflate => {}
                Role::Deflate => counters.to_guest.add(Pages::listed(chain, ram).len()),
                Role::Reporting if reports => {
                    control.add_reported(give.back(&Pages::inside(&chain.writable), Left::Zeros));
                }
                Role::Reporting => {}
                Role::Stats => return tell(chain, ram, control, counters),
            }
            counters.requests.add(1);
            Outcome::Done(0)
        })
    }
}

/// Read what the driver tells of its memory. Its buffer goes back to it as the question for more (5.5.6.3), so it waits in
/// the queue until somebody asks.
fn tell(chain: &Chain, ram: &SharedRam, control: &BalloonControl, counters: &Counters) -> Outcome {
    control.set_guest(stats::parse(chain, ram));
    if !control.take_asked() {
        return Outcome::Later;
    }
    counters.requests.add(1);
    Outcome::Done(0)
}

/// Gives pages to the host.
struct Give<'a> {
    id: &'a str,
    ram: &'a SharedRam,
    counters: &'a Counters,
}

impl Give<'_> {
    /// Give `pages` back; returns how many bytes that were.
    fn back(&self, pages: &Pages, left: Left) -> u64 {
        let mut given = 0_u64;
        for range in pages.ranges() {
            match pages::discard(self.ram, range, left) {
                Ok(bytes) => given = given.saturating_add(bytes),
                Err(error) => {
                    self.counters.errors.add(1);
                    ratelog::warn(format_args!("{}: the host does not take memory back: {error}", self.id));
                }
            }
        }
        self.counters.from_guest.add(given);
        given
    }
}
