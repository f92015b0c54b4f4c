//! The thread of one queue: takes requests, has its engine carry them out, and gives them back.
//!
//! ```text
//!           ┌────────────── something was done ──────────────┐
//!           ▼                                                │
//!  take requests ─► engine.turn(no wait) ─► give back ─► look again for a while ─► enable kicks ─► engine.turn(wait)
//!     │        ▲                                                                                       │
//!     │        └──────────────────────────────── disable kicks ◄───────────────────────────────────────┤
//!     └─ broken guest, failed host ─► drain ─► wait for the end                                        └─ kill ─► drain
//! ```
//!
//! The first request that is over the disk's limit is held, and none is taken after it, until it may go. What was started before
//! is given back meanwhile. If the worker is to end first, the request goes back into the queue.

use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use arch::memory::SharedRam;

use super::request::{Bounds, Kind, Malformed, Request, Status};
use super::serial::Serial;
use crate::counters::Counters;
use crate::disk::Disk;
use crate::disk::engine::{self, Buffers, Done, Engine, EngineKind, Events, Io, Sleep, Wake};
use crate::limit::{Gate, Limiter};
use crate::ratelog::{self, Chained};
use crate::virtio::chain::Chain;
use crate::virtio::device::Interrupt;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::spin::Spin;
use crate::worker::wait_for;

/// How many requests are handed to the host at once. A request that the host answers from its cache is given back
/// while the guest has others in the queue, so that the guest and the host work side by side.
const BATCH: usize = 8;

/// What the thread owns; the queue goes back when it ends.
pub(super) struct QueueWorker {
    pub device: String,
    pub queue: Queue,
    pub ram: SharedRam,
    pub interrupt: Interrupt,
    pub disk: Arc<Disk>,
    pub serial: Serial,
    /// Each write must be on stable storage when it is answered.
    pub durable: bool,
    pub engine: EngineKind,
    pub limiter: Option<Arc<Limiter>>,
    pub counters: Arc<Counters>,
}

/// Why a queue is not served any more.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Request(#[from] Malformed),
    #[error("the host's disk interface failed")]
    Host(#[from] io::Error),
}

/// What is left to do for a request in flight.
#[derive(Debug)]
struct Answer {
    head: u16,
    status: GuestAddress,
    in_len: u64,
    /// Bytes of payload that are counted if it succeeds.
    read: u64,
    written: u64,
    what: &'static str,
}

/// A request that must wait.
struct Held {
    request: Request,
    chain: Chain,
    until: Instant,
}

/// The state of a serving thread beside what it owns.
struct Service<'a> {
    worker: &'a mut QueueWorker,
    engine: Box<dyn Engine<Answer>>,
    done: Vec<Done<Answer>>,
    gate: Gate,
    /// The last one taken from the queue, if it is over the limit.
    held: Option<Held>,
    /// Waiting for the guest, with nothing in flight, and for the disk.
    spins: [Spin; 2],
    /// Something was put in the used ring and the guest was not told.
    untold: bool,
}

impl QueueWorker {
    /// The thread's body: serve the queue until `kill`.
    pub(super) fn run(&mut self, kill: &EventFd) {
        let Err(fault) = self.serve(kill) else { return };
        // Whoever is to blame: a driver that is not told waits for its requests for ever.
        self.interrupt.needs_reset(&self.device, &Chained(&fault));
        wait_for(kill);
    }

    fn serve(&mut self, kill: &EventFd) -> Result<(), Fault> {
        let events = Events { kick: self.queue.kick.try_clone()?, kill: kill.try_clone()? };
        let capacity = usize::from(self.queue.ring.size()).max(1);
        let engine = engine::new(self.engine, Arc::clone(&self.disk), events, capacity)?;
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let spins = [Spin::new(cpus), Spin::new(cpus)];
        let gate = Gate::new(self.limiter.clone(), Arc::clone(&self.counters));
        let mut service =
            Service { worker: self, engine, done: Vec::new(), gate, held: None, spins, untold: false };
        let served = service.turns();
        if service.held.take().is_some() {
            service.worker.queue.unpop();
        }
        // After a fault of the guest its queue is left alone, but nothing may stay in flight.
        service.engine.drain(&mut service.done);
        served?;
        service.finish().map(drop)
    }

    /// Ask for kicks, or say that they are not needed. True if there may be more to take.
    fn kicks(&mut self, wanted: bool) -> Result<bool, Fault> {
        if wanted {
            return Ok(self.queue.enable_kicks(&self.ram)?);
        }
        self.queue.disable_kicks(&self.ram)?;
        Ok(true)
    }
}

impl Service<'_> {
    /// Serve until the worker is to end.
    fn turns(&mut self) -> Result<(), Fault> {
        self.worker.kicks(false)?;
        loop {
            let taken = self.take()?;
            let wake = self.engine.turn(Sleep::No, &mut self.done)?;
            let finished = self.finish()?;
            if wake.kill {
                return Ok(());
            }
            if taken || finished {
                self.spins.iter_mut().for_each(Spin::busy);
                continue;
            }
            if self.idle()?.kill {
                return Ok(());
            }
        }
    }

    /// There is nothing to do now: look for more for a while, then sleep.
    fn idle(&mut self) -> Result<Wake, Fault> {
        let now = Instant::now();
        let throttled = self.held.as_ref().map(|held| held.until.saturating_duration_since(now));
        // What is waited for when nothing is in flight is known: the limit, not the guest.
        let looks = throttled.is_none() || self.engine.in_flight() > 0;
        if looks && self.spin().again(now) {
            std::hint::spin_loop();
            return Ok(Wake::default());
        }
        let sleep = match throttled {
            // No kicks: the queue is looked at when the time is over.
            Some(time) => Sleep::For(time),
            // A full engine can take no more: only completions matter.
            None if !self.engine.is_full() && self.worker.kicks(true)? => {
                self.worker.kicks(false)?;
                return Ok(Wake::default());
            }
            None => Sleep::Forever,
        };
        if looks {
            self.spin().slept();
        }
        let wake = self.engine.turn(sleep, &mut self.done)?;
        self.finish()?;
        if !wake.kill && sleep == Sleep::Forever {
            self.worker.kicks(false)?;
        }
        Ok(wake)
    }

    /// The habit for the wait at hand.
    fn spin(&mut self) -> &mut Spin {
        let [guest, disk] = &mut self.spins;
        if self.engine.in_flight() == 0 { guest } else { disk }
    }

    /// Start some of what the guest has made available. Whether there was any.
    fn take(&mut self) -> Result<bool, Fault> {
        let mut taken = false;
        for _ in 0..BATCH {
            if self.engine.is_full() {
                break;
            }
            let Some((request, chain)) = self.next()? else { break };
            self.start(request, &chain)?;
            taken = true;
        }
        Ok(taken)
    }

    /// The next request, if there is one and it may go now.
    fn next(&mut self) -> Result<Option<(Request, Chain)>, Fault> {
        let (request, chain) = match self.held.take() {
            Some(Held { request, chain, .. }) => (request, chain),
            None => {
                let QueueWorker { queue, ram, disk, .. } = &mut *self.worker;
                let Some(chain) = queue.pop(ram)? else { return Ok(None) };
                let bounds = Bounds { size: disk.size(), readonly: disk.readonly() };
                (Request::parse(ram, &chain, bounds)?, chain)
            }
        };
        if let Err(until) = self.gate.pass(request.cost()) {
            self.held = Some(Held { request, chain, until });
            return Ok(None);
        }
        Ok(Some((request, chain)))
    }

    fn start(&mut self, request: Request, chain: &Chain) -> Result<(), Fault> {
        let (read, written) = (request.read_len(), request.write_len());
        let Request { head, status, in_len, kind } = request;
        let mut answer = Answer { head, status, in_len, read, written, what: "a read" };
        let ram = &self.worker.ram;
        let io = match kind {
            Kind::Read { offset, data } => Io::Read { offset, buffers: Buffers::new(ram, data) },
            Kind::Write { offset, data } => {
                answer.what = "a write";
                Io::Write { offset, buffers: Buffers::new(ram, data), durable: self.worker.durable }
            }
            // Nothing was written that would have to be flushed.
            Kind::Flush if self.worker.disk.readonly() => return self.answer(&answer, Status::Ok, 0),
            Kind::Flush => {
                answer.what = "a flush";
                Io::Flush
            }
            Kind::Erase(extents) => {
                answer.what = "a discard or write-zeroes";
                Io::Erase(extents)
            }
            Kind::GetId => {
                let serial = self.worker.serial;
                let len = usize::try_from(in_len).unwrap_or(usize::MAX).min(serial.bytes().len());
                let written = chain.write(ram, 0, serial.bytes().get(..len).unwrap_or_default());
                return self.answer(&answer, Status::Ok, written as u64);
            }
            Kind::Refused(status) => return self.answer(&answer, status, 0),
        };
        self.engine.start(answer, io);
        Ok(())
    }

    /// Give back what is done, with one interrupt for all of it. Whether there was any.
    fn finish(&mut self) -> Result<bool, Fault> {
        let mut done = std::mem::take(&mut self.done);
        for Done { token, result } in done.drain(..) {
            match result {
                Ok(()) => {
                    self.worker.counters.to_guest.add(token.read);
                    self.worker.counters.from_guest.add(token.written);
                    self.answer(&token, Status::Ok, token.in_len)?;
                }
                Err(error) => {
                    let QueueWorker { device, disk, counters, .. } = &*self.worker;
                    counters.errors.add(1);
                    let path = disk.path().display();
                    ratelog::warn(format_args!("{device}: {} on {path} failed: {error}", token.what));
                    self.answer(&token, Status::IoError, 0)?;
                }
            }
        }
        // Keeps its room for the next time.
        self.done = done;
        if !self.untold {
            return Ok(false);
        }
        self.untold = false;
        if self.worker.queue.wants_interrupt(&self.worker.ram)? {
            self.worker.interrupt.used(self.worker.queue.index);
        }
        Ok(true)
    }

    /// Answer a request of whose `in_len` bytes before the status byte the first `written` were written.
    fn answer(&mut self, answer: &Answer, status: Status, written: u64) -> Result<(), Fault> {
        let ram = &self.worker.ram;
        // It lies in guest RAM: that was checked, and RAM does not shrink.
        let _ = ram.write_obj(status.byte(), answer.status);
        // The used length counts what was written without a gap from the start (virtio 1.2, 2.7.8.2).
        let len = if written == answer.in_len { written.saturating_add(1) } else { written };
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.worker.queue.add_used(ram, answer.head, len)?;
        self.worker.counters.requests.add(1);
        self.untold = true;
        Ok(())
    }
}
