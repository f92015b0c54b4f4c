//! The device's thread: FUSE requests out of the queues, to the library's server, and its answers back.

use std::io::Error as IoError;
use std::sync::Arc;

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use virtio_queue::{DescriptorChain, QueueT};

use arch::memory::{GuestRam, SharedRam};

use super::share::Share;
use super::words::MOST_DATA;
use crate::counters::Counters;
use crate::ratelog;
use crate::virtio::chain::Chain;
use crate::virtio::device::Interrupt;
use crate::virtio::events::{self, Outcome, Serve};
use crate::virtio::queue::{Queue, QueueError};

/// The header of a request (`struct fuse_in_header`), in bytes.
const IN_HEADER: usize = 40;
/// The header of an answer (`struct fuse_out_header`), in bytes.
const OUT_HEADER: usize = 16;

/// The longest request: its data, and what stands before them, in bytes.
const LONGEST: usize = MOST_DATA as usize + 4096;

/// Requests that have no answer.
const FORGET: u32 = 2;
const BATCH_FORGET: u32 = 42;
const INTERRUPT: u32 = 36;

/// What the thread owns.
pub(super) struct State {
    ram: SharedRam,
    interrupt: Interrupt,
    queues: Vec<Queue>,
    share: Arc<Share>,
    server: Arc<Server<Arc<Share>>>,
    counters: Arc<Counters>,
    /// The thread has begun.
    begun: bool,
}

/// What of a request's header is looked at before the library does.
struct Header {
    len: u32,
    opcode: u32,
    unique: u64,
}

impl Header {
    fn read(chain: &Chain, ram: &GuestRam) -> Option<Self> {
        let mut bytes = [0; IN_HEADER];
        if chain.read(ram, 0, &mut bytes) != bytes.len() {
            return None;
        }
        let [len, opcode, low, high] = *bytes.first_chunk::<16>()?.as_chunks::<4>().0 else { return None };
        let unique = u64::from(u32::from_le_bytes(low)) | u64::from(u32::from_le_bytes(high)) << 32;
        Some(Self { len: u32::from_le_bytes(len), opcode: u32::from_le_bytes(opcode), unique })
    }

    fn has_answer(&self) -> bool {
        !matches!(self.opcode, FORGET | BATCH_FORGET | INTERRUPT)
    }
}

impl State {
    pub(super) fn new(
        ram: SharedRam,
        interrupt: Interrupt,
        queues: Vec<Queue>,
        (share, server): (Arc<Share>, Arc<Server<Arc<Share>>>),
        counters: Arc<Counters>,
    ) -> Self {
        Self { ram, interrupt, queues, share, server, counters, begun: false }
    }

    pub(super) fn into_queues(self) -> Vec<Queue> {
        self.queues
    }
}

impl Serve for State {
    fn event(&mut self, token: u64) -> Result<(), QueueError> {
        if !self.begun {
            self.share.own_mask();
            self.begun = true;
        }
        let Self { ram, interrupt, queues, share, server, counters, .. } = self;
        let Some(queue) = queues.iter_mut().find(|queue| u64::from(queue.index) == token) else {
            return Ok(());
        };
        let mut again = queue.second_look()?;
        events::serve(queue, ram, interrupt, |chain| {
            // Each may take as long as the host's disk. What is left in the queue is looked at when the device goes on.
            if share.is_stopping() {
                return Outcome::Later;
            }
            share.trim();
            let next = again.next_avail();
            let descriptors = again.pop_descriptor_chain(&**ram);
            again.set_next_avail(next.wrapping_add(1));
            Outcome::Done(answer(chain, descriptors, ram, server, counters))
        })
    }
}

/// Answer a request; returns how many bytes were written. `chain` was checked. `descriptors` is the same chain for the library, which
/// reads it once more and checks it again: a guest that changes it meanwhile has its memory written elsewhere, and no harm is done.
fn answer(
    chain: &Chain,
    descriptors: Option<DescriptorChain<&GuestRam>>,
    ram: &GuestRam,
    server: &Server<Arc<Share>>,
    counters: &Counters,
) -> u32 {
    counters.requests.add(1);
    let Some(header) = Header::read(chain, ram) else {
        counters.errors.add(1);
        return refuse(chain, ram, 0, libc::EIO);
    };
    counters.from_guest.add(u64::from(header.len).min(chain.readable_len()));
    let long = u64::from(header.len) > chain.readable_len() || (header.len as usize) < IN_HEADER;
    let Some(descriptors) = descriptors.filter(|_| !long) else {
        counters.errors.add(1);
        return if header.has_answer() { refuse(chain, ram, header.unique, libc::EINVAL) } else { 0 };
    };
    let written = match handle(descriptors, ram, server) {
        Ok(0) if header.has_answer() => refuse(chain, ram, header.unique, 0),
        Ok(written) => u32::try_from(written).unwrap_or(0),
        Err(error) => {
            counters.errors.add(1);
            ratelog::warn(format_args!("a malformed FUSE request ({}): {error}", header.opcode));
            if header.has_answer() { refuse(chain, ram, header.unique, libc::EIO) } else { 0 }
        }
    };
    counters.to_guest.add(written.into());
    written
}

/// Have the library answer.
fn handle(
    descriptors: DescriptorChain<&GuestRam>,
    ram: &GuestRam,
    server: &Server<Arc<Share>>,
) -> Result<usize, fuse_backend_rs::Error> {
    let invalid = |error: fuse_backend_rs::transport::Error| {
        fuse_backend_rs::Error::InvalidMessage(IoError::other(error))
    };
    let reader = Reader::from_descriptor_chain(ram, descriptors.clone()).map_err(invalid)?;
    if reader.available_bytes() > LONGEST {
        // The library makes room for as much as some requests say they have.
        return Err(fuse_backend_rs::Error::InvalidMessage(IoError::other("it is too long")));
    }
    let writer = VirtioFsWriter::new(ram, descriptors).map_err(invalid)?;
    server.handle_message(reader, writer.into(), None, None)
}

/// Answer with a header alone: an error number, or 0 for success. Returns how many bytes were written: none if there is no room.
fn refuse(chain: &Chain, ram: &GuestRam, unique: u64, errno: i32) -> u32 {
    if chain.writable_len() < OUT_HEADER as u64 {
        return 0;
    }
    let mut bytes = [0; OUT_HEADER];
    bytes[..4].copy_from_slice(&(OUT_HEADER as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&(-errno).to_le_bytes());
    bytes[8..].copy_from_slice(&unique.to_le_bytes());
    chain.write(ram, 0, &bytes) as u32
}
