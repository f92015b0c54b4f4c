//! What clients type, on its way to the guest.
//!
//! The guest may take its time, or take nothing at all, so connections only queue; the `typing` thread hands on. It takes
//! one frame after the other: what is typed by several clients mixes between frames, never within one.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use devices::worker::named_thread;

use crate::control::Controller;

/// How many bytes may wait for the guest: what a user can paste.
const WAITING: usize = 1 << 20;

/// The queue. Its thread ends with [`Typing::close`].
pub(super) struct Typing(Arc<(Mutex<Queue>, Condvar)>);

#[derive(Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    closed: bool,
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Typing {
    pub(super) fn start(controller: Controller) -> io::Result<Self> {
        let shared = Arc::<(Mutex<Queue>, Condvar)>::default();
        let queue = Arc::clone(&shared);
        named_thread("typing").spawn(move || {
            while let Some(bytes) = next(&queue) {
                controller.input(&bytes);
            }
        })?;
        Ok(Self(shared))
    }

    /// Queue `bytes`, or give them back where there is no room now.
    pub(super) fn push(&self, bytes: Vec<u8>) -> Result<(), Vec<u8>> {
        let mut queue = lock(&self.0.0);
        if queue.closed || bytes.is_empty() {
            return Ok(());
        }
        if queue.bytes.saturating_add(bytes.len()) > WAITING {
            return Err(bytes);
        }
        queue.bytes += bytes.len();
        queue.frames.push_back(bytes);
        self.0.1.notify_one();
        Ok(())
    }

    /// The VM has ended: nothing is typed any more.
    pub(super) fn close(&self) {
        let mut queue = lock(&self.0.0);
        *queue = Queue { closed: true, ..Queue::default() };
        self.0.1.notify_one();
    }
}

fn next((queue, filled): &(Mutex<Queue>, Condvar)) -> Option<Vec<u8>> {
    let empty = |queue: &mut Queue| queue.frames.is_empty() && !queue.closed;
    let mut queue = filled.wait_while(lock(queue), empty).unwrap_or_else(PoisonError::into_inner);
    let bytes = queue.frames.pop_front()?;
    queue.bytes = queue.bytes.saturating_sub(bytes.len());
    Some(bytes)
}
