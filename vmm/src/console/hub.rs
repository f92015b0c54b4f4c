//! Where what the guest prints on its `stdio` stream goes: to standard output, to the log, and to those who watch.
//!
//! ```text
//!               ┌─► direct   waited for, as a real port would be; there until its owner leaves or nobody reads it
//!  devices ──► Hub ─► viewers  never waited for
//!               ├─► history  for viewers that come later
//!               └─► log      never waited for beyond the write itself
//! ```
//!
//! The device's own thread does all of it, standard output first.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::logfile::LogFile;
use super::ring::Ring;
use super::send::{Cut, send};
use super::viewers::Viewer;
use super::{lock, own};

/// How much a viewer that comes later can see of what was printed before, in bytes.
const HISTORY: usize = 64 * 1024;

/// Shared by the devices that print and the connections of viewers.
pub(crate) struct Hub {
    /// Held while it is waited for, and until `feed` is locked: everybody sees the same order. Locked before `feed`.
    direct: Mutex<Option<File>>,
    /// Whoever waits for `direct` is to stop.
    left: AtomicBool,
    /// Locked before any viewer's queue.
    feed: Mutex<Feed>,
}

struct Feed {
    log: Option<LogFile>,
    history: Ring,
    viewers: Vec<Arc<Viewer>>,
    closed: bool,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new(None, None)
    }
}

impl Hub {
    pub(crate) fn new(stdout: Option<OwnedFd>, log: Option<PathBuf>) -> Self {
        let feed = Feed {
            log: log.map(LogFile::new),
            history: Ring::new(HISTORY),
            viewers: Vec::new(),
            closed: false,
        };
        Self {
            direct: Mutex::new(stdout.map(|stdout| own(stdout.into()))),
            left: AtomicBool::new(false),
            feed: Mutex::new(feed),
        }
    }

    /// Hand on what a device prints. Waits for whoever reads standard output until `cut`; after that, `waits` turns false,
    /// and this device's output does not go there any more.
    pub(super) fn print(&self, bytes: &[u8], cut: &Cut, waits: &mut bool) {
        if bytes.is_empty() {
            return;
        }
        let mut direct = lock(&self.direct);
        if *waits && let Some(file) = &mut *direct {
            let left = || self.left.load(Ordering::SeqCst);
            if let Err(error) = send(file, bytes, || cut.is_cut() || left()) {
                if left() {
                    *direct = None;
                } else if cut.is_cut() {
                    *waits = false;
                } else {
                    log::warn!("standard output takes no more of what the guest prints: {error}");
                    *direct = None;
                }
            }
        }
        let mut feed = lock(&self.feed);
        drop(direct);
        feed.take(bytes);
    }

    /// Whoever standard output belongs to has left: close it. Blocks for moments only.
    pub(crate) fn leave_stdout(&self) {
        self.left.store(true, Ordering::SeqCst);
        *lock(&self.direct) = None;
    }

    /// A new viewer of everything from now on, and before that of the `history`, if wanted: nothing is left out in
    /// between, and nothing is said twice.
    pub(crate) fn view(&self, history: bool) -> Arc<Viewer> {
        let viewer = Arc::<Viewer>::default();
        let mut feed = lock(&self.feed);
        if history {
            viewer.push(&feed.history.whole_lines());
        }
        if feed.closed {
            viewer.close();
        } else {
            feed.viewers.push(Arc::clone(&viewer));
        }
        viewer
    }

    /// This one watches no more.
    pub(crate) fn dismiss(&self, viewer: &Arc<Viewer>) {
        lock(&self.feed).viewers.retain(|other| !Arc::ptr_eq(other, viewer));
        viewer.close();
    }

    /// Nothing is printed any more: viewers come to their end when they have seen everything.
    pub(crate) fn close(&self) {
        let mut feed = lock(&self.feed);
        feed.closed = true;
        for viewer in feed.viewers.drain(..) {
            viewer.close();
        }
    }
}

impl Feed {
    fn take(&mut self, bytes: &[u8]) {
        for viewer in &self.viewers {
            viewer.push(bytes);
        }
        self.history.push(bytes);
        if let Some(log) = &mut self.log {
            log.append(bytes);
        }
    }
}
