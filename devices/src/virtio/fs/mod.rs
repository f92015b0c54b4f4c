//! virtio-fs: a folder of the host in the guest (virtio 1.2, 5.11).
//!
//! ```text
//!   guest ── FUSE request ──► queue ──► fuse-backend-rs: Server ──► Share ──► fuse-backend-rs: PassthroughFs ──► host's files
//!                                       reads and writes the        checks, owners,   one descriptor a file,
//!                                       protocol                    bounds, numbers   one name at a time
//! ```
//!
//! The guest is hostile, and so may be who moves files about on the host. What keeps it inside the folder:
//!
//! - each request names a node that the guest looked up and at most one name in it, which is no path;
//! - the host never follows a symbolic link on a guest's behalf: the guest reads where it leads, and walks there itself;
//! - a directory that was moved out of the folder leads nowhere any more, and the parent of a node cannot be asked for;
//! - nothing but files and directories is ever opened, and no device is made.
//!
//! One thread, `dev:<id>`, serves all queues and exists only while a driver does. The folder and what the guest has open outlive a stop
//! ([`share::Share`]); they end with a reset. What is saved is a path and an inode number for each file that the guest knows: a
//! restored guest finds those that are still the same, and is told that the others are stale (ESTALE).

mod filesystem;
mod owners;
mod saved;
mod serve;
mod session;
mod share;
mod table;
#[cfg(test)]
mod tests;
mod words;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::api::server::Server;

use super::device::{ActivateError, Activation, DeviceKind, RING_FEATURES, VirtioDevice, read_space};
use super::events;
use super::queue::Queue;
use super::state::DeviceState;
use crate::counters::Counters;
use crate::state::RestoreError;
use crate::worker::Worker;

pub use owners::{NOBODY, Owners};
pub use saved::{FsHandle, FsNode, FsSession, FsState};
pub use share::{Folder, TooFewDescriptors, room};

use serve::State;
use share::Share;

/// The most bytes of a tag.
pub const MAX_TAG: usize = 36;

/// Entries of the queue for what must not wait, and of that for requests. A request of a megabyte has 256 pages and a few more.
const QUEUE_SIZES: [u16; 2] = [128, 512];

/// How long the VM's end waits for a request that the host works on, such as on a server that is gone: less than who kills a VM does before
/// taking to harder means.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the guest knows the folder by: `mount -t virtiofs TAG DIRECTORY`. 1 to [`MAX_TAG`] bytes, no NUL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(String);

/// What cannot be a tag.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is no tag: write 1 to {MAX_TAG} letters, digits and signs, and no space or comma")]
pub struct TagError(String);

impl Tag {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let fits = (1..=MAX_TAG).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',') {
            Ok(Self(text.to_owned()))
        } else {
            Err(TagError(text.to_owned()))
        }
    }
}

/// The device.
pub struct Fs {
    id: String,
    /// The configuration space (5.11.4): the tag, and how many queues for requests there are.
    space: [u8; MAX_TAG + 4],
    share: Arc<Share>,
    server: Arc<Server<Arc<Share>>>,
    counters: Arc<Counters>,
    worker: Option<Worker<State>>,
}

impl Fs {
    /// A device called `id` that shows `folder` to the guest as `tag`, a [`Tag`]'s text. The guest can know and open `most` files each ([`room`]).
    /// It counts requests, and bytes both ways.
    #[must_use]
    pub fn new(id: &str, tag: &str, folder: Arc<Folder>, most: usize, counters: Arc<Counters>) -> Self {
        let mut space = [0; MAX_TAG + 4];
        for (place, byte) in space.iter_mut().take(MAX_TAG).zip(tag.bytes()) {
            *place = byte;
        }
        space[MAX_TAG] = 1;
        let share = Arc::new(Share::new(folder, most));
        let server = Arc::new(Server::new(Arc::clone(&share)));
        Self { id: id.to_owned(), space, share, server, counters, worker: None }
    }
}

impl VirtioDevice for Fs {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Fs
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

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.space, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, queues, interrupt, .. } = activation;
        for needed in [0, 1] {
            if queues.iter().all(|queue| queue.index != needed) {
                return Err(ActivateError::MissingQueue(needed));
            }
        }
        let mut kicks = Vec::new();
        for queue in &queues {
            kicks.push((queue.kick.try_clone().map_err(ActivateError::Events)?, u64::from(queue.index)));
        }
        let sources: Vec<_> = kicks.iter().map(|(kick, token)| (kick, *token)).collect();
        self.share.set_stopping(false);
        let state = State::new(
            ram,
            interrupt.clone(),
            queues,
            (Arc::clone(&self.share), Arc::clone(&self.server)),
            Arc::clone(&self.counters),
        );
        self.worker = Some(events::start(&self.id, &interrupt, state, &sources)?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.share.set_stopping(true);
        self.worker.take().and_then(Worker::stop).map(State::into_queues).unwrap_or_default()
    }

    fn end(&mut self) {
        self.share.set_stopping(true);
        if let Some(worker) = self.worker.take()
            && worker.stop_within(PATIENCE).is_err()
        {
            log::warn!(
                "{}: the host does not answer a request on the shared folder, which is given up",
                self.id
            );
        }
    }

    fn reset(&mut self) {
        self.share.end();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Fs(self.share.save())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Fs(state) = state else { return Err(state.is_not(&self.id, "fs")) };
        self.share.restore(&self.id, state)
    }
}
