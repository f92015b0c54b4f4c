//! The loop of a device's thread: sleep until a queue is kicked or the host side has something, then serve.
//!
//! [`start`] makes the thread, which owns its state until it is stopped ([`crate::worker`]). Events are watched
//! edge-triggered: nobody has to read the eventfds, and what rang before the thread started is seen.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use arch::memory::GuestRam;

use super::chain::Chain;
use super::device::{ActivateError, Interrupt};
use super::queue::{Queue, QueueError};
use crate::ratelog::Chained;
use crate::worker::Worker;

/// The token of the kill event; sources have small numbers.
const KILL: u64 = u64::MAX;

/// What a device's thread does. It owns the queues.
pub trait Serve: Send + 'static {
    /// The eventfd that was registered with `token` was written, maybe more than once. Must not block, and
    /// end soon whatever the guest does.
    ///
    /// # Errors
    /// If the guest broke the rules: the device is marked, and nothing is served any more.
    fn event(&mut self, token: u64) -> Result<(), QueueError>;
}

/// Start the thread `dev:<id>` that serves `state`, woken by `sources`: eventfds that live as long as `state`,
/// each with its token.
///
/// # Errors
/// If the host has no more threads or file descriptors.
pub fn start<T: Serve>(
    id: &str,
    interrupt: &Interrupt,
    state: T,
    sources: &[(&EventFd, u64)],
) -> Result<Worker<T>, ActivateError> {
    let epoll = Epoll::new().map_err(ActivateError::Events)?;
    for (source, token) in sources {
        watch(&epoll, source.as_raw_fd(), *token).map_err(ActivateError::Events)?;
    }
    let name = format!("dev:{id}");
    let device = id.to_owned();
    let interrupt = interrupt.clone();
    Worker::start(&name, state, move |state, kill| {
        let watched = watch(&epoll, kill.as_raw_fd(), KILL);
        if let Err(error) = watched.and_then(|()| run(&epoll, &device, &interrupt, state)) {
            interrupt.needs_reset(&device, &error);
        }
    })
    .map_err(|source| ActivateError::Thread { name, source })
}

fn watch(epoll: &Epoll, fd: RawFd, token: u64) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token))
}

/// Serve until killed.
fn run<T: Serve>(epoll: &Epoll, device: &str, interrupt: &Interrupt, state: &mut T) -> io::Result<()> {
    let mut events = [EpollEvent::default(); 16];
    let mut broken = false;
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for event in events.iter().take(count) {
            if event.data() == KILL {
                return Ok(());
            }
            if broken {
                continue;
            }
            if let Err(error) = state.event(event.data()) {
                interrupt.needs_reset(device, &Chained(&error));
                broken = true;
            }
        }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, with this many bytes written to its writable part.
    Done(u32),
    /// It cannot be served now, and neither can those behind it: it stays in the queue.
    Later,
}

/// Serve the requests in `queue` by `request`, and interrupt as the guest wants it. At most a ring full at a
/// time: if there may be more the queue kicks itself, so that a guest that never stops cannot keep its
/// thread from being stopped.
///
/// # Errors
/// If the guest broke the rules. What was served before is returned to it all the same.
pub fn serve(
    queue: &mut Queue,
    ram: &GuestRam,
    interrupt: &Interrupt,
    mut request: impl FnMut(&Chain) -> Outcome,
) -> Result<(), QueueError> {
    let mut used = 0_u16;
    let end = drain(queue, ram, &mut used, &mut request);
    if used > 0 && queue.wants_interrupt(ram)? {
        interrupt.used(queue.index);
    }
    if end? == End::More {
        // Fails only with the counter at its maximum, which rings as well.
        let _ = queue.kick.write(1);
    }
    Ok(())
}

/// Why [`drain`] ended.
#[derive(PartialEq, Eq)]
enum End {
    /// The guest will ring when there is more, or whoever said [`Outcome::Later`] looks again.
    Wait,
    /// There may be more already.
    More,
}

fn drain(
    queue: &mut Queue,
    ram: &GuestRam,
    used: &mut u16,
    request: &mut impl FnMut(&Chain) -> Outcome,
) -> Result<End, QueueError> {
    queue.disable_kicks(ram)?;
    while *used < queue.ring.size() {
        let Some(chain) = queue.pop(ram)? else {
            return Ok(if queue.enable_kicks(ram)? { End::More } else { End::Wait });
        };
        match request(&chain) {
            Outcome::Done(len) => queue.add_used(ram, chain.head, len)?,
            Outcome::Later => {
                queue.unpop();
                return Ok(End::Wait);
            }
        }
        *used += 1;
    }
    Ok(End::More)
}
