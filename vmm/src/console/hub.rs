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
use super::queries::without_queries;
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
        let left = || self.left.load(Ordering::SeqCst);
        let mut direct = lock(&self.direct);
        if left() {
            *direct = None;
        }
        if *waits
            && let Some(file) = &mut *direct
            && let Err(error) = send(file, bytes, || cut.is_cut() || left())
        {
            if left() {
                *direct = None;
            } else if cut.is_cut() {
                *waits = false;
            } else {
                log::warn!("standard output takes no more of what the guest prints: {error}");
                *direct = None;
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
            viewer.push(&without_queries(&feed.history.whole_lines()));
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

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::console::Seen;

    fn with_pipe(log: Option<PathBuf>) -> (PipeReader, Arc<Hub>) {
        let (reader, writer) = std::io::pipe().unwrap();
        (reader, Arc::new(Hub::new(Some(writer.into()), log)))
    }

    fn print(hub: &Hub, bytes: &[u8]) {
        hub.print(bytes, &Cut::default(), &mut true);
    }

    /// What a viewer saw when there is no more, which must be without gaps.
    fn seen(viewer: &Viewer) -> Vec<u8> {
        let piece = |seen| match seen {
            Seen::Output(bytes) => bytes,
            Seen::Skipped(count) => panic!("{count} bytes are missing"),
        };
        std::iter::from_fn(|| viewer.next()).flat_map(piece).collect()
    }

    #[test]
    fn everybody_gets_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let (mut reader, hub) = with_pipe(Some(log.clone()));
        let viewer = hub.view(true);
        print(&hub, b"one\n");
        print(&hub, b"two\n");
        let late = hub.view(true);
        let later = hub.view(false);
        hub.close();
        drop(hub);
        let mut direct = Vec::new();
        reader.read_to_end(&mut direct).unwrap();
        let all = b"one\ntwo\n".to_vec();
        assert_eq!(
            [direct, std::fs::read(log).unwrap(), seen(&viewer), seen(&late)],
            [(); 4].map(|()| all.clone())
        );
        assert_eq!(seen(&later), b"");
    }

    #[test]
    fn between_history_and_live_nothing_is_missing_or_said_twice() {
        let hub = Arc::new(Hub::default());
        let printer = Arc::clone(&hub);
        let printing = std::thread::spawn(move || {
            // Less than the history and a viewer's queue hold.
            for n in 0..5000_u32 {
                print(&printer, format!("{n}\n").as_bytes());
            }
        });
        let viewers: Vec<_> = (0..50).map(|_| hub.view(true)).collect();
        printing.join().unwrap();
        hub.close();
        let all: String = (0..5000).map(|n| format!("{n}\n")).collect();
        for viewer in viewers {
            assert!(seen(&viewer) == all.as_bytes());
        }
    }

    #[test]
    fn nobody_waits_for_a_viewer() {
        let hub = Hub::default();
        let (slow, gone) = (hub.view(false), hub.view(false));
        hub.dismiss(&gone);
        for _ in 0..100 {
            print(&hub, &[b'x'; 32 * 1024]);
        }
        hub.close();
        assert!(matches!(slow.next(), Some(Seen::Skipped(count)) if count > 2_000_000));
        assert_eq!(gone.next(), None);
        assert_eq!(hub.view(false).next(), None);
    }

    #[test]
    fn standard_output_is_waited_for_until_its_owner_leaves_and_is_then_closed() {
        let (mut reader, hub) = with_pipe(None);
        let (printer, viewer) = (Arc::clone(&hub), hub.view(false));
        let printing = std::thread::spawn(move || {
            print(&printer, &[b'x'; 1 << 18]);
            print(&printer, b"on without it");
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!printing.is_finished(), "a pipe does not hold so much");
        hub.leave_stdout();
        printing.join().unwrap();
        hub.close();
        assert_eq!(seen(&viewer).len(), (1 << 18) + 13);
        let mut direct = Vec::new();
        reader.read_to_end(&mut direct).unwrap();
        assert!(direct.len() < 1 << 18);
    }

    #[test]
    fn a_device_that_is_cut_is_not_waited_for_and_those_of_the_next_boot_are() {
        let (mut reader, hub) = with_pipe(None);
        let (cut, mut waits) = (Cut::default(), true);
        cut.cut();
        hub.print(&[b'x'; 1 << 18], &cut, &mut waits);
        assert!(!waits);
        let since = Instant::now();
        for _ in 0..1000 {
            hub.print(b"lost", &cut, &mut waits);
        }
        assert!(since.elapsed() < Duration::from_secs(10), "each of them waits");
        let next = std::thread::spawn(move || print(&hub, b"next boot"));
        let mut direct = Vec::new();
        reader.read_to_end(&mut direct).unwrap();
        next.join().unwrap();
        assert!(direct.ends_with(b"xnext boot"));
    }

    #[test]
    fn a_reader_that_is_gone_is_not_missed() {
        let (reader, hub) = with_pipe(None);
        drop(reader);
        let viewer = hub.view(false);
        print(&hub, b"a");
        print(&hub, b"b");
        hub.close();
        assert_eq!(seen(&viewer), b"ab");
    }
}
