//! A thread that owns its state and gives it back by value.
//!
//! ```text
//! start(name, state, run) ──► running ──stop()──► joined, state returned
//!                                └──── drop ────► joined, state dropped
//! ```
//!
//! The body is given a kill event; it must return soon after that event is readable.

use std::io;
use std::os::fd::AsRawFd;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The stack of every thread, in bytes. A stack of 2 MiB (Rust's own choice) that happens to lie at a multiple of 2 MiB is one
/// huge page, all of it resident from the first touch on, where the host has transparent huge pages turned on. Below guest
/// RAM, which is aligned, one always does. A smaller stack never is.
const STACK: usize = 1 << 20;

/// How every thread is made: called `name` (15 bytes are shown by `ps -T`), with a stack that costs what is used of it.
pub fn named_thread(name: impl Into<String>) -> Builder {
    Builder::new().name(name.into()).stack_size(STACK)
}

/// A running thread that owns a `T` until it is stopped.
pub struct Worker<T: Send + 'static> {
    kill: EventFd,
    thread: Option<JoinHandle<T>>,
}

/// A thread did not end in time. It goes on by itself, with its state.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost;

impl<T: Send + 'static> Worker<T> {
    /// Start a thread called `name` (15 bytes are shown by `ps -T`) that runs `body` on `state`.
    ///
    /// # Errors
    /// If the host has no more threads or file descriptors.
    pub fn start<F>(name: &str, state: T, body: F) -> io::Result<Self>
    where
        F: FnOnce(&mut T, &EventFd) + Send + 'static,
    {
        let kill = EventFd::new(EFD_NONBLOCK)?;
        let killed = kill.try_clone()?;
        let thread = named_thread(name).spawn(move || {
            let mut state = state;
            body(&mut state, &killed);
            state
        })?;
        Ok(Self { kill, thread: Some(thread) })
    }

    /// Ask the thread to end, and do not wait for it. Of several threads each may take its time at the same time.
    pub fn ask_to_stop(&self) {
        // Fails only with the counter at its maximum, which is as readable.
        let _ = self.kill.write(1);
    }

    /// End the thread and take its state back. `None` if the thread panicked.
    #[must_use]
    pub fn stop(mut self) -> Option<T> {
        self.join()
    }

    /// End the thread, but wait no longer than `limit` for that.
    ///
    /// # Errors
    /// If it has not ended by then.
    pub fn stop_within(mut self, limit: Duration) -> Result<(), Lost> {
        self.ask_to_stop();
        let (begin, mut nap) = (Instant::now(), Duration::from_micros(50));
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if begin.elapsed() >= limit {
                self.thread = None;
                return Err(Lost);
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(10));
        }
        drop(self.join());
        Ok(())
    }

    fn join(&mut self) -> Option<T> {
        let thread = self.thread.take()?;
        self.ask_to_stop();
        thread.join().ok()
    }
}

impl<T: Send + 'static> Drop for Worker<T> {
    fn drop(&mut self) {
        drop(self.join());
    }
}

/// Sleep until `event` is readable, without reading it.
pub(crate) fn wait_for(event: &EventFd) {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: `poll` is one entry and outlives the call.
        let ready = unsafe { libc::poll(&mut poll, 1, -1) };
        if ready >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A non-blocking eventfd has no blocking read; poll is what real bodies do.
    fn wait(event: &EventFd) {
        while event.read().is_err() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn stop_returns_what_the_thread_made_of_its_state() {
        let worker = Worker::start("test", vec![1], |state, kill| {
            state.push(2);
            wait(kill);
            state.push(3);
        })
        .unwrap();
        assert_eq!(worker.stop(), Some(vec![1, 2, 3]));
    }

    #[test]
    fn drop_ends_the_thread() {
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ended);
        drop(Worker::start("test", (), move |(), kill| {
            wait(kill);
            flag.store(true, Ordering::SeqCst);
        }));
        assert!(ended.load(Ordering::SeqCst));
    }

    #[test]
    fn who_does_not_end_is_left() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (told, state) = std::sync::mpsc::channel();
        let worker = Worker::start("test", told, move |told, _| {
            let _ = wait.recv();
            told.send(1).unwrap();
        });
        assert_eq!(worker.unwrap().stop_within(Duration::from_millis(1)), Err(Lost));
        drop(go);
        assert_eq!(state.recv(), Ok(1), "it goes on with what it has");
        let worker = Worker::start("test", (), |(), kill| wait_for(kill)).unwrap();
        assert_eq!(worker.stop_within(Duration::from_secs(3600)), Ok(()));
    }

    #[test]
    fn a_panic_in_the_thread_is_contained() {
        let worker = Worker::start("test", (), |(), _| panic!("on purpose")).unwrap();
        assert_eq!(worker.stop(), None);
    }

    #[test]
    fn those_that_were_asked_end_side_by_side() {
        let (told, ended) = std::sync::mpsc::channel();
        let start = |n: u32| {
            let told = told.clone();
            let body = move |_: &mut (), kill: &EventFd| {
                wait(kill);
                told.send(n).unwrap();
            };
            Worker::start("test", (), body).unwrap()
        };
        let workers = [start(0), start(1)];
        workers.iter().for_each(Worker::ask_to_stop);
        let mut all: Vec<u32> = ended.iter().take(2).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1]);
        workers.into_iter().for_each(|worker| assert_eq!(worker.stop(), Some(())));
    }
}
