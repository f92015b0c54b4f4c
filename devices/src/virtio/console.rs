//! virtio-console with one port (virtio 1.2, 5.3): `hvc0` of a Linux guest.
//!
//! ```text
//!  vmm ── ConsoleInput::push ──► input buffer ──► dev:<id> ──► receiveq      (guest reads)
//!  sink ◄── out:<id> ◄────────── output buffer ◄── dev:<id> ◄── transmitq    (guest writes)
//! ```
//!
//! `dev:<id>` owns the queues while the device is active and never blocks. `out:<id>` owns the sink as long as the
//! device exists, so that a sink that blocks (a stopped terminal, a full pipe) holds up the guest's output
//! and nothing else. Both buffers are bounded; each side is told when there is room again.

use std::io;
use std::sync::Arc;

use arch::memory::SharedRam;

use self::input::Shared;
use self::output::Output;
use super::chain::Chain;
use super::device::{
    ActivateError, Activation, DeviceKind, Interrupt, RING_FEATURES, VirtioDevice, read_space, take_queue,
};
use super::events::{self, Outcome, Serve};
use super::queue::{Queue, QueueError};
use super::state::{ConsoleState, DeviceState};
use crate::counters::Counters;
use crate::state::RestoreError;
use crate::worker::Worker;

mod input;
mod output;

pub use input::ConsoleInput;

/// `VIRTIO_CONSOLE_F_SIZE` (5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// Entries of receiveq and transmitq.
const QUEUE_SIZES: [u16; 2] = [128, 128];
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Tokens of the thread's events.
const KICK_RECEIVE: u64 = 0;
const KICK_TRANSMIT: u64 = 1;
const INPUT: u64 = 2;
const ROOM: u64 = 3;

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ConsoleSize {
    /// Width.
    pub columns: u16,
    /// Height.
    pub rows: u16,
}

/// The device.
pub struct Console {
    id: String,
    input: Arc<Shared>,
    output: Output,
    counters: Arc<Counters>,
    worker: Option<Worker<State>>,
    /// While it is stopped: bytes of the request at the head of transmitq that are in the output buffer already.
    sent: u64,
}

/// What `dev:<id>` owns.
struct State {
    ram: SharedRam,
    interrupt: Interrupt,
    receive: Queue,
    transmit: Queue,
    input: Arc<Shared>,
    output: Arc<output::Buffer>,
    counters: Arc<Counters>,
    /// Bytes of the request at the head of transmitq that are in the output buffer already.
    sent: u64,
}

impl Console {
    /// A console called `id` that writes what the guest says to `sink`, and the handle for what the guest hears.
    /// `size` is given where there is a terminal that has one; without it the guest is told none. What passes is counted in
    /// `counters`.
    ///
    /// # Errors
    /// If the host has no more threads or file descriptors.
    pub fn new(
        id: &str,
        sink: Box<dyn io::Write + Send>,
        size: Option<ConsoleSize>,
        counters: Arc<Counters>,
    ) -> io::Result<(Self, ConsoleInput)> {
        let input = Arc::new(Shared::new(size)?);
        let output = Output::start(&format!("out:{id}"), sink)?;
        let handle = ConsoleInput::new(Arc::clone(&input));
        Ok((Self { id: id.to_owned(), input, output, counters, worker: None, sent: 0 }, handle))
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn features(&self) -> u64 {
        let size = if self.input.size().is_some() { 1 << VIRTIO_CONSOLE_F_SIZE } else { 0 };
        RING_FEATURES | size
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `cols`, `rows`, `max_nr_ports`, `emerg_wr` (5.3.4). The last two belong to features that are not offered.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let ConsoleSize { columns, rows } = self.input.size().unwrap_or_default();
        let [c0, c1] = columns.to_le_bytes();
        let [r0, r1] = rows.to_le_bytes();
        let config = [c0, c1, r0, r1];
        read_space(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, mut queues, interrupt, .. } = activation;
        let mut take = |index| take_queue(&mut queues, index);
        let (receive, transmit) = (take(RECEIVE)?, take(TRANSMIT)?);
        let kicks = [&receive, &transmit].map(|queue| queue.kick.try_clone());
        let [kick_receive, kick_transmit] = kicks;
        let kick_receive = kick_receive.map_err(ActivateError::Events)?;
        let kick_transmit = kick_transmit.map_err(ActivateError::Events)?;
        let (input, output) = (Arc::clone(&self.input), self.output.buffer());
        let (counters, sent) = (Arc::clone(&self.counters), self.sent);
        let state =
            State { ram, interrupt: interrupt.clone(), receive, transmit, input, output, counters, sent };
        let sources = [
            (&kick_receive, KICK_RECEIVE),
            (&kick_transmit, KICK_TRANSMIT),
            (self.input.ready(), INPUT),
            (self.output.room(), ROOM),
        ];
        self.worker = Some(events::start(&self.id, &interrupt, state, &sources)?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        let Some(state) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        // The request itself stays in its queue, and goes on from there.
        self.sent = state.sent;
        vec![state.receive, state.transmit]
    }

    fn reset(&mut self) {
        self.sent = 0;
    }

    fn save(&self) -> DeviceState {
        let ConsoleSize { columns, rows } = self.input.size().unwrap_or_default();
        DeviceState::Console(ConsoleState {
            columns,
            rows,
            resized: self.input.is_resized(),
            sent: self.sent,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Console(state) = state else { return Err(state.is_not(&self.id, "console")) };
        let &ConsoleState { columns, rows, resized, sent } = state;
        self.input.restore(ConsoleSize { columns, rows }, resized);
        // More than there is of the request is as much as there is.
        self.sent = sent;
        Ok(())
    }
}

impl Serve for State {
    fn event(&mut self, token: u64) -> Result<(), QueueError> {
        match token {
            KICK_RECEIVE => self.receive(),
            INPUT => {
                if self.input.take_resized() {
                    self.interrupt.config_changed();
                }
                self.receive()
            }
            _ => self.transmit(),
        }
    }
}

impl State {
    /// Put input into the guest's buffers as long as there are both.
    fn receive(&mut self) -> Result<(), QueueError> {
        let (ram, input, counters) = (&self.ram, &self.input, &self.counters);
        events::serve(&mut self.receive, ram, &self.interrupt, |chain| {
            let mut piece = [0; 4096];
            let len = usize::try_from(chain.writable_len()).unwrap_or(piece.len()).min(piece.len());
            let count = piece.get_mut(..len).map_or(0, |piece| input.pull(piece));
            if count == 0 && len > 0 {
                return Outcome::Later;
            }
            let written = chain.write(ram, 0, piece.get(..count).unwrap_or_default());
            counters.requests.add(1);
            counters.to_guest.add(written as u64);
            Outcome::Done(written as u32)
        })
    }

    /// Take output from the guest's buffers as long as there is room.
    fn transmit(&mut self) -> Result<(), QueueError> {
        let (ram, output, sent, counters) = (&self.ram, &self.output, &mut self.sent, &self.counters);
        events::serve(&mut self.transmit, ram, &self.interrupt, |chain| {
            let outcome = send(chain, ram, output, sent);
            if outcome != Outcome::Later {
                counters.requests.add(1);
                counters.from_guest.add(chain.readable_len());
            }
            outcome
        })
    }
}

/// Move what is left of a request to the output buffer. Requests that fit it are moved whole or not at all.
fn send(chain: &Chain, ram: &SharedRam, output: &output::Buffer, sent: &mut u64) -> Outcome {
    let mut piece = [0; 4096];
    let len = chain.readable_len();
    let mut room = output.reserve(len.saturating_sub(*sent));
    while room > 0 {
        let take = room.min(piece.len());
        let Some(piece) = piece.get_mut(..take) else { break };
        let count = chain.read(ram, *sent, piece);
        if count == 0 {
            break;
        }
        output.push(piece.get(..count).unwrap_or_default());
        *sent += count as u64;
        room -= count;
    }
    if *sent < len {
        return Outcome::Later;
    }
    *sent = 0;
    Outcome::Done(0)
}

#[cfg(test)]
#[path = "console/tests.rs"]
mod tests;
