//! The thread of one queue pair: it sends, receives, and (that of the first pair) serves the control queue.
//!
//! ```text
//!            ┌───────────────────── something moved ─────────────────────┐
//!            ▼                                                           │
//!  control ─► send ─► receive ─► look at the events (no wait) ─► look again for a while ─► enable kicks ─► wait
//!     ▲                                  └── kill: give back what is in hand, end             │
//!     └────────────────────────────────── disable kicks ◄─────────────────────────────────────┘
//! ```
//!
//! All events are watched for edges: no eventfd is read, what the port says is remembered in [`Service`] until the port says
//! otherwise, and a port that has broken wakes the thread once.

use std::io;
use std::num::NonZero;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::GuestMemoryError;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use arch::memory::SharedRam;

use super::control::Control;
use super::receive::Receiver;
use super::shared::{Shared, State};
use super::transmit::Transmitter;
use crate::counters::Counters;
use crate::net::{Backend, Port};
use crate::ratelog::{self, Chained};
use crate::virtio::device::Interrupt;
use crate::virtio::queue::{Queue, QueueError};
use crate::virtio::spin::Spin;
use crate::worker::wait_for;

/// The most frames that go one way before the other has its turn: one interrupt for all of them.
pub(super) const MAX_FRAMES: u16 = 64;
/// And the most bytes.
pub(super) const MAX_BYTES: u64 = 1 << 20;
/// After so many buffers the guest is shown what it has back, interrupt or not: it may be looking.
pub(super) const PUBLISH: u16 = 16;

/// After a port has broken another is asked for this often: some back ends come back.
const RETRY: Duration = Duration::from_secs(1);

const KILL: u64 = 0;
const KICK: u64 = 1;
const NEWS: u64 = 2;
const PORT: u64 = 3;

/// What all parts of a queue pair's thread need.
pub(super) struct Common {
    /// The device's name, for the log.
    pub device: String,
    pub ram: SharedRam,
    pub interrupt: Interrupt,
    pub shared: Arc<Shared>,
    pub counters: Arc<Counters>,
}

impl Common {
    /// Show the guest what was used in `queue`, and interrupt it for that as it wants.
    pub(super) fn tell(&self, queue: &mut Queue, moved: bool) -> Result<(), Fault> {
        queue.publish_used(&self.ram)?;
        if moved && queue.wants_interrupt(&self.ram)? {
            self.interrupt.used(queue.index);
        }
        Ok(())
    }

    /// The network is there, or is not, and why.
    pub(super) fn link(&self, up: bool, why: &str) {
        if !self.shared.set_link(up, &self.interrupt) {
            return;
        }
        if up {
            log::info!("{}: the link is up", self.device);
        } else {
            ratelog::warn(format_args!("{}: the link is down: {why}", self.device));
        }
    }
}

/// Why a queue pair is not served any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("the driver made available {0}")]
    Driver(&'static str),
    #[error("a buffer is outside guest memory")]
    Memory(#[from] GuestMemoryError),
    #[error("the host's events failed")]
    Host(#[from] io::Error),
}

/// Why a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was long enough.
    More,
    /// The guest has made no more available.
    Guest,
    /// The port has no more, or takes no more.
    Port,
    /// The limit lets the next one go then.
    Limit(Instant),
    /// The port is of no more use.
    Gone,
}

/// What came of some frames one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// Whether there were any.
    pub moved: bool,
    pub end: End,
}

/// What the thread owns; the queues go back when it ends.
pub(super) struct Pair {
    pub index: u16,
    pub common: Common,
    pub backend: Arc<dyn Backend>,
    pub receiver: Receiver,
    pub transmitter: Transmitter,
    pub control: Option<Control>,
}

impl Pair {
    /// The thread's body: serve the queues until `kill`.
    pub(super) fn run(&mut self, kill: &EventFd) {
        let served = self.serve(kill);
        self.receiver.put_back();
        if let Some(control) = &mut self.control {
            control.put_back(&self.common.shared);
        }
        self.common.shared.reached(self.index, State::Off);
        let Err(fault) = served else { return };
        let Common { device, interrupt, .. } = &self.common;
        // Whoever is to blame: a driver that is not told waits for its frames for ever.
        interrupt.needs_reset(device, &Chained(&fault));
        wait_for(kill);
    }

    fn serve(&mut self, kill: &EventFd) -> Result<(), Fault> {
        Service::new(self, kill)?.turns()
    }

    /// All its queues.
    pub(super) fn queues(&self) -> impl Iterator<Item = &Queue> {
        let control = self.control.as_ref().map(|control| &control.queue);
        [&self.receiver.queue, &self.transmitter.queue].into_iter().chain(control)
    }

    /// All its queues, by value.
    pub(super) fn into_queues(self) -> impl Iterator<Item = Queue> {
        let control = self.control.map(|control| control.queue);
        [self.receiver.queue, self.transmitter.queue].into_iter().chain(control)
    }
}

fn watch(epoll: &Epoll, fd: RawFd, token: u64, events: EventSet) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events | EventSet::EDGE_TRIGGERED, token))
}

/// The state of a serving thread beside what it owns.
struct Service<'a> {
    pair: &'a mut Pair,
    epoll: Epoll,
    port: Option<Box<dyn Port>>,
    /// The port has broken, and when to ask for another.
    retry: Option<Instant>,
    /// A frame may wait.
    readable: bool,
    /// A frame may be taken.
    writable: bool,
    limited: Limited,
    /// The port is down, and is to say when it is up.
    down: bool,
    spin: Spin,
}

/// Until when a direction rests that has reached its limit.
#[derive(Clone, Copy, Default)]
struct Limited {
    transmit: Option<Instant>,
    receive: Option<Instant>,
}

/// Whether the time has not come yet.
fn rests(until: &mut Option<Instant>) -> bool {
    *until = until.filter(|at| Instant::now() < *at);
    until.is_some()
}

impl<'a> Service<'a> {
    /// Without a port yet. Woken by the pair's queues and `kill`.
    fn new(pair: &'a mut Pair, kill: &EventFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let news = pair.common.shared.news(pair.index)?;
        watch(&epoll, kill.as_raw_fd(), KILL, EventSet::IN)?;
        watch(&epoll, news.as_raw_fd(), NEWS, EventSet::IN)?;
        for queue in pair.queues() {
            watch(&epoll, queue.kick.as_raw_fd(), KICK, EventSet::IN)?;
        }
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        Ok(Self {
            pair,
            epoll,
            port: None,
            retry: None,
            readable: false,
            writable: false,
            limited: Limited::default(),
            down: false,
            spin: Spin::new(cpus),
        })
    }

    /// Serve until the worker is to end.
    fn turns(&mut self) -> Result<(), Fault> {
        loop {
            self.follow();
            let mut busy = self.control()?;
            busy |= self.transmit()?;
            busy |= self.receive()?;
            let wait = if busy {
                self.spin.busy();
                false
            } else if self.spin.again(Instant::now()) {
                std::hint::spin_loop();
                false
            } else {
                // Not if the guest made more available before it could see that it is to ring.
                let more = self.kicks(true)?;
                self.spin.slept();
                !more
            };
            if self.events(wait)? {
                return Ok(());
            }
            if !busy {
                self.kicks(false)?;
            }
        }
    }

    /// Look at what has happened; with `wait`, sleep until something has. Whether the worker is to end.
    fn events(&mut self, wait: bool) -> Result<bool, Fault> {
        let mut events = [EpollEvent::default(); 8];
        let Limited { transmit, receive } = self.limited;
        let timeout = match [self.retry, transmit, receive].into_iter().flatten().min() {
            _ if !wait => 0,
            None => -1,
            // Rounded up: not a moment too early.
            Some(at) => {
                let millis = at.saturating_duration_since(Instant::now()).as_millis();
                i32::try_from(millis).map_or(i32::MAX, |millis| millis.saturating_add(1))
            }
        };
        let count = match self.epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error.into()),
        };
        let mut kill = false;
        for event in events.iter().take(count) {
            match event.data() {
                KILL => kill = true,
                PORT => self.port_says(event.event_set()),
                // Kicks and news are looked at in each turn.
                _ => {}
            }
        }
        Ok(kill)
    }

    fn port_says(&mut self, events: EventSet) {
        self.readable |= events.contains(EventSet::IN);
        if events.contains(EventSet::OUT) {
            self.writable = true;
            if !self.pair.common.shared.link_up() {
                self.pair.common.link(true, "");
            }
        }
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            self.lose_port();
        }
    }

    /// Whether this pair is in use.
    fn wanted(&self) -> bool {
        self.pair.index < self.pair.common.shared.wanted()
    }

    /// Open the port when the pair is used, and drop it when it is not.
    fn follow(&mut self) {
        let wanted = self.wanted();
        if !wanted && (self.port.is_some() || self.retry.is_some()) {
            self.drop_port();
            self.retry = None;
            self.pair.common.shared.reached(self.pair.index, State::Off);
        }
        let due = self.retry.is_none_or(|at| at <= Instant::now());
        if wanted && self.port.is_none() && due {
            self.open_port();
        }
    }

    fn open_port(&mut self) {
        let Pair { index, common, backend, .. } = &*self.pair;
        let opened = backend.port(*index).and_then(|port| {
            watch(&self.epoll, port.fd().as_raw_fd(), PORT, EventSet::IN | EventSet::OUT)?;
            Ok(port)
        });
        match opened {
            Ok(port) => {
                self.port = Some(port);
                self.retry = None;
                (self.readable, self.writable) = (true, true);
                common.shared.reached(*index, State::On);
            }
            Err(error) => {
                if self.retry.is_none() {
                    let device = &common.device;
                    ratelog::warn(format_args!("{device}: queue pair {index} cannot be opened: {error}"));
                }
                self.retry = Some(Instant::now() + RETRY);
                common.shared.reached(*index, State::Failed);
                if *index == 0 {
                    common.link(false, "the host's side is gone");
                }
            }
        }
    }

    fn drop_port(&mut self) {
        // Nobody would look whether their time has come.
        self.limited = Limited::default();
        if let Some(port) = self.port.take() {
            // It may stay open elsewhere. Cannot fail: it was added.
            let _ = self.epoll.ctl(ControlOperation::Delete, port.fd().as_raw_fd(), EpollEvent::default());
        }
    }

    /// The port is of no more use.
    fn lose_port(&mut self) {
        self.drop_port();
        self.retry = Some(Instant::now() + RETRY);
        self.pair.common.link(false, "the host's side is gone");
    }

    fn control(&mut self) -> Result<bool, Fault> {
        let Pair { common, control, .. } = &mut *self.pair;
        control.as_mut().map_or(Ok(false), |control| control.turn(common))
    }

    fn transmit(&mut self) -> Result<bool, Fault> {
        // What the guest sends on a pair that it does not use stays where it is.
        if self.retry.is_none() && (self.port.is_none() || !self.writable) {
            return Ok(false);
        }
        // What is dropped for want of a port is dropped at once.
        if self.retry.is_none() && rests(&mut self.limited.transmit) {
            return Ok(false);
        }
        let Pair { common, transmitter, .. } = &mut *self.pair;
        let turn = transmitter.turn(common, self.port.as_deref_mut())?;
        match turn.end {
            End::Port => self.writable = false,
            End::Limit(at) => self.limited.transmit = Some(at),
            End::Gone => self.lose_port(),
            End::More | End::Guest => {}
        }
        self.follow_link();
        Ok(turn.moved)
    }

    /// A tap that goes down says nothing, and says that it is up again only to those who looked at it meanwhile. A guest that sees
    /// the link down sends nothing by which that could be found out.
    fn follow_link(&mut self) {
        let down = !self.pair.common.shared.link_up();
        if down
            && !self.down
            && let Some(port) = &self.port
        {
            let event = EpollEvent::new(EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED, PORT);
            // Cannot fail: it was added.
            let _ = self.epoll.ctl(ControlOperation::Modify, port.fd().as_raw_fd(), event);
        }
        self.down = down;
    }

    fn receive(&mut self) -> Result<bool, Fault> {
        let Some(port) = self.port.as_deref_mut().filter(|_| self.readable) else {
            return Ok(false);
        };
        if rests(&mut self.limited.receive) {
            return Ok(false);
        }
        let Pair { common, receiver, .. } = &mut *self.pair;
        let turn = receiver.turn(common, port)?;
        match turn.end {
            End::Port => self.readable = false,
            End::Limit(at) => self.limited.receive = Some(at),
            End::Gone => self.lose_port(),
            End::More | End::Guest => {}
        }
        Ok(turn.moved)
    }

    /// Ask for the kicks that matter, or say that none is needed. True if there is more to take already.
    fn kicks(&mut self, wanted: bool) -> Result<bool, Fault> {
        let gone = self.retry.is_some();
        let used = self.port.is_some() || gone;
        // While it rests there is more to take, and the ring is looked at when it may go.
        let sends = gone || self.port.is_some() && self.writable && self.limited.transmit.is_none();
        let Pair { common, receiver, transmitter, control, .. } = &mut *self.pair;
        let ram = &common.ram;
        let mut more = false;
        if wanted {
            // Looked at even if no frame waits: a ring that is broken is to be found so.
            let before = receiver.in_hand();
            let enough = used && receiver.gather(common)?;
            // What was not there when a frame was asked for may be what it waits for.
            more |= self.readable && receiver.in_hand() > before;
            if !enough {
                more |= receiver.queue.enable_kicks(ram)? && used;
            }
            if sends {
                more |= transmitter.queue.enable_kicks(ram)?;
            }
            if let Some(control) = control.as_mut().filter(|control| !control.waits()) {
                more |= control.queue.enable_kicks(ram)?;
            }
            return Ok(more);
        }
        receiver.queue.disable_kicks(ram)?;
        transmitter.queue.disable_kicks(ram)?;
        if let Some(control) = control {
            control.queue.disable_kicks(ram)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
#[path = "pair_tests.rs"]
mod tests;
