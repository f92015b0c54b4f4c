//! How requests reach a disk: io_uring where the host has it, plain system calls elsewhere.
//!
//! An engine belongs to one worker thread, is made on that thread and never leaves it. The thread also waits in it
//! for its two events, so that a doorbell, the end and a completion are all one system call to wait for. A request to a disk
//! of layers is cut into pieces, each of which is one extent of one file.
//!
//! ```text
//! start(token, io) ──► in flight ──turn()──► Done { token, result }
//!                          └──drain() at the end: waits, then cancels, then gives up
//! ```

mod files;
mod layered;
mod plain;
#[cfg(test)]
mod tests;
mod transfer;
mod uring;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

pub use crate::virtio::buffers::Buffers;

use super::{Disk, Extent};
use plain::Plain;
use uring::Uring;

/// What to do to a disk. Offsets are in bytes; the caller has checked that all of it lies inside the disk.
#[derive(Debug)]
pub enum Io {
    /// Fill guest memory from the disk.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Where in guest memory.
        buffers: Buffers,
    },
    /// Write guest memory to the disk.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Where in guest memory.
        buffers: Buffers,
        /// It must be on stable storage when it is done.
        durable: bool,
    },
    /// Put all that was done before on stable storage.
    Flush,
    /// Discard or zero parts of the disk, in order.
    Erase(Vec<Extent>),
}

/// A request has ended.
#[derive(Debug)]
pub struct Done<T> {
    /// What it was started with.
    pub token: T,
    /// All of it was done, or why not.
    pub result: io::Result<()>,
}

/// Which events were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake {
    /// The doorbell rang.
    pub kick: bool,
    /// The worker is to end.
    pub kill: bool,
}

/// How long [`Engine::turn`] may sleep until something has ended or an event was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Not at all.
    No,
    /// About so long.
    For(Duration),
    /// As long as it takes.
    Forever,
}

/// The events that an engine watches for its thread.
#[derive(Debug)]
pub struct Events {
    /// The doorbell. The engine reads it as it needs.
    pub kick: EventFd,
    /// The worker's end. Never read.
    pub kill: EventFd,
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring if the host allows it, otherwise plain.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// `preadv2` and `pwritev2`, one request after the other.
    Plain,
}

/// Carries out requests on one disk. `T` is the caller's name for a request.
pub trait Engine<T> {
    /// Begin a request. It may be held back until the next [`Engine::turn`].
    fn start(&mut self, token: T, io: Io);

    /// Whether no more can be started until some are done.
    fn is_full(&self) -> bool;

    /// How many were started and are not done.
    fn in_flight(&self) -> usize;

    /// Hand what was started to the host, and collect into `done` what has ended. If nothing has yet, `sleep`; it may
    /// also return with nothing before the time is over.
    ///
    /// # Errors
    /// If the host's interface itself fails: the engine is then of no more use.
    fn turn(&mut self, sleep: Sleep, done: &mut Vec<Done<T>>) -> io::Result<Wake>;

    /// Wait for everything in flight, at most for some seconds: what the host has not done by then is abandoned,
    /// its memory with it.
    fn drain(&mut self, done: &mut Vec<Done<T>>);
}

/// Make the engine of the calling thread, for up to `capacity` requests at once.
///
/// # Errors
/// If [`EngineKind::Uring`] was asked for and the host refuses.
pub fn new<T: 'static>(
    kind: EngineKind,
    disk: Arc<Disk>,
    events: Events,
    capacity: usize,
) -> io::Result<Box<dyn Engine<T>>> {
    if kind == EngineKind::Plain {
        return Ok(Box::new(Plain::new(disk, events)));
    }
    match Uring::new(Arc::clone(&disk), &events, capacity) {
        Ok(engine) => Ok(Box::new(engine)),
        Err(error) if kind == EngineKind::Auto => {
            log::info!("{}: no io_uring here ({error}), using plain reads and writes", disk.path().display());
            Ok(Box::new(Plain::new(disk, events)))
        }
        Err(error) => Err(error),
    }
}

/// Whether the host lets this process use io_uring.
///
/// # Errors
/// The host's reason if it does not.
pub fn probe_uring() -> io::Result<()> {
    uring::probe()
}
