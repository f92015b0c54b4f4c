//! [`Transfer`]: several blobs on their way at once, with one account of how far they are.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::error::Error;
use crate::progress::Progress;

/// How many blobs are on their way at once.
const THREADS: usize = 3;
/// How often the progress is told.
const PERIOD: Duration = Duration::from_millis(100);

/// How far they are.
#[derive(Default)]
pub struct Transfer {
    /// Bytes of all blobs that are done.
    done: AtomicU64,
    /// One of them failed: the others need not go on.
    stopped: AtomicBool,
}

impl Transfer {
    /// So many more bytes are done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes were done in vain.
    pub fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether there is no use in going on.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Do `work` for each of `items`, of `total` bytes together. The threads end before this returns.
    ///
    /// # Errors
    /// The first of any; items that were not begun are left out then.
    pub fn run<T: Sync>(
        &self,
        items: &[T],
        total: u64,
        progress: &mut dyn Progress,
        work: impl Fn(&T) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let queue = Mutex::new(items.iter());
        let (send, results) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..THREADS.min(items.len()) {
                let (send, queue, work) = (send.clone(), &queue, &work);
                scope.spawn(move || {
                    while !self.is_stopped() {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(item) = next else { break };
                        let result = work(item);
                        if result.is_err() {
                            self.stopped.store(true, Ordering::Relaxed);
                        }
                        if send.send(result).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(send);
            let mut failed = None;
            loop {
                match results.recv_timeout(PERIOD) {
                    // Those that stopped since one failed are not what went wrong.
                    Ok(Err(error)) if failed.is_none() => failed = Some(error),
                    Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                progress.advance(self.done.load(Ordering::Relaxed).min(total), Some(total));
            }
            failed.map_or(Ok(()), Err)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_stops_the_rest() {
        let (transfer, begun) = (Transfer::default(), AtomicU64::new(0));
        let items: Vec<u64> = (0..1000).collect();
        let result = transfer.run(&items, 1000, &mut (), |item| {
            begun.fetch_add(1, Ordering::Relaxed);
            match item {
                0 => Err(Error::Missing { registry: "r".to_owned(), what: "x".to_owned() }),
                _ => {
                    thread::sleep(Duration::from_millis(5));
                    Ok(())
                }
            }
        });
        assert!(matches!(result, Err(Error::Missing { .. })));
        assert!(begun.load(Ordering::Relaxed) < 1000);
    }

    #[test]
    fn all_is_done_and_told() {
        struct Last(u64);
        impl Progress for Last {
            fn step(&mut self, _: &str) {}
            fn advance(&mut self, done: u64, total: Option<u64>) {
                assert_eq!(total, Some(10));
                self.0 = done;
            }
        }
        let (transfer, mut last) = (Transfer::default(), Last(0));
        transfer
            .run(&[1_u64, 2, 3, 4], 10, &mut last, |item| {
                transfer.add(*item);
                Ok(())
            })
            .unwrap();
        assert_eq!(last.0, 10);
    }
}
