//! Those who watch a console without slowing it down.
//!
//! Each [`Viewer`] has a bounded queue: the device's thread puts bytes in, a thread of the connection takes them
//! out. One that is too slow loses the oldest, and is told how much.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

/// How many bytes may wait for a viewer. When more come, the older half is dropped: one long gap is easier to read around
/// than many short ones.
pub(super) const WAITING: usize = 1 << 20;
/// How much is handed over at once, in bytes.
const PIECE: usize = 32 * 1024;

/// What a viewer gets next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// What the guest printed.
    Output(Vec<u8>),
    /// So many bytes were dropped here.
    Skipped(u64),
}

#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Dropped before the first of `bytes`.
    skipped: u64,
    closed: bool,
}

/// One viewer's queue.
#[derive(Default)]
pub(crate) struct Viewer {
    /// Locked last of all the console's locks.
    queue: Mutex<Queue>,
    filled: Condvar,
}

impl Viewer {
    /// Never blocks.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closed || bytes.is_empty() {
            return;
        }
        queue.bytes.extend(bytes);
        if queue.bytes.len() > WAITING {
            let excess = queue.bytes.len() - WAITING / 2;
            queue.bytes.drain(..excess);
            queue.skipped = queue.skipped.saturating_add(excess as u64);
        }
        self.filled.notify_one();
    }

    /// Wait for what comes next. `None` once the viewer is closed and everything was taken.
    pub(crate) fn next(&self) -> Option<Seen> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = |queue: &mut Queue| queue.bytes.is_empty() && queue.skipped == 0 && !queue.closed;
        let mut queue = self.filled.wait_while(queue, empty).unwrap_or_else(PoisonError::into_inner);
        if queue.skipped > 0 {
            return Some(Seen::Skipped(std::mem::take(&mut queue.skipped)));
        }
        let count = queue.bytes.len().min(PIECE);
        (count > 0).then(|| Seen::Output(queue.bytes.drain(..count).collect()))
    }

    /// Nothing more comes.
    pub(super) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(viewer: &Viewer) -> Vec<Seen> {
        viewer.close();
        std::iter::from_fn(|| viewer.next()).collect()
    }

    #[test]
    fn what_was_pushed_before_the_end_is_seen_and_nothing_after_it() {
        let viewer = Viewer::default();
        viewer.push(b"one ");
        viewer.push(b"two");
        viewer.close();
        viewer.push(b"three");
        assert_eq!(all(&viewer), [Seen::Output(b"one two".to_vec())]);
    }

    #[test]
    fn a_slow_viewer_loses_the_oldest_and_is_told_how_much() {
        let viewer = Viewer::default();
        let sent: Vec<u8> = (0..WAITING + 100).map(|n| (n % 251) as u8).collect();
        for piece in sent.chunks(1000) {
            viewer.push(piece);
        }
        let seen = all(&viewer);
        let Some(Seen::Skipped(skipped)) = seen.first() else { panic!("{:?}", seen.first()) };
        let rest: Vec<u8> = seen[1..]
            .iter()
            .flat_map(|seen| match seen {
                Seen::Output(bytes) => bytes.clone(),
                Seen::Skipped(_) => panic!("two gaps"),
            })
            .collect();
        assert!(rest.len() >= WAITING / 2);
        assert!(rest == sent[*skipped as usize..]);
    }

    #[test]
    fn whoever_waits_is_woken() {
        let viewer = Viewer::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| (viewer.next(), viewer.next()));
            viewer.push(b"x");
            std::thread::sleep(std::time::Duration::from_millis(20));
            viewer.close();
            assert_eq!(waiting.join().unwrap(), (Some(Seen::Output(b"x".to_vec())), None));
        });
    }
}
