//! Token buckets: how much a device may do in a time.
//!
//! ```text
//!  queue 0 ── Gate ──┐                 ┌─ Bucket (bandwidth)
//!  queue 1 ── Gate ──┼── Limiter ──────┤
//!  queue 2 ── Gate ──┘  (one lock)     └─ Bucket (ops)
//! ```
//!
//! A [`Limiter`] belongs to the VM, so that a reboot of the guest fills no bucket; all queues that share a limit share it.
//! Each queue's thread has a [`Gate`] of its own. A request that cannot go at once takes its tokens all the same and is
//! told when they will be there: queues are served in the order in which they asked, and a small request
//! never overtakes a large one that waits. Nothing here sleeps or makes a system call but to read the clock, and
//! a device without a limit does not even do that.

use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::counters::Counters;

/// A rate and how far it may be exceeded for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Tokens (bytes, or requests) a second.
    pub rate: NonZero<u64>,
    /// How many tokens a full bucket holds: what may be spent at once after a pause.
    pub burst: NonZero<u64>,
}

/// What limits one direction of a device, or all of it. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In bytes of payload.
    pub bandwidth: Option<Limit>,
    /// In requests, or packets.
    pub ops: Option<Limit>,
}

/// Levels are counted in billionths of a token, which is what a rate of one a second makes of a nanosecond: nothing is rounded.
const UNIT: u128 = 1_000_000_000;

/// One limit at a moment: a value that does not know what time it is.
///
/// What is spent in any time is at most the burst and what the rate gives in that time. A request that is larger than the burst goes
/// when the bucket is full, and leaves it in debt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    limit: Limit,
    /// How much is missing from a full bucket, in [`UNIT`]s of a token. More than the burst is debt. A sum of requests of 64 bits
    /// each: far from overflowing.
    missing: u128,
    /// When that was so.
    at: Instant,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn full(limit: Limit, now: Instant) -> Self {
        Self { limit, missing: 0, at: now }
    }

    /// Take `tokens`, whether or not they are there, and say how long after `now` they may be used. Who asks later waits longer.
    #[must_use]
    pub fn take(&mut self, tokens: u64, now: Instant) -> Duration {
        let wait = self.wait(tokens, now);
        self.missing = self.missing.saturating_add(u128::from(tokens) * UNIT);
        wait
    }

    /// Put `tokens` back that were taken and not used.
    pub fn give_back(&mut self, tokens: u64) {
        self.missing = self.missing.saturating_sub(u128::from(tokens) * UNIT);
    }

    /// How long after `now` there will be `tokens`, or as many as the bucket can hold.
    pub fn wait(&mut self, tokens: u64, now: Instant) -> Duration {
        self.refill(now);
        let Limit { rate, burst } = self.limit;
        let room = u128::from(burst.get().saturating_sub(tokens)) * UNIT;
        let nanos = self.missing.saturating_sub(room).div_ceil(rate.get().into());
        // In centuries nobody sees the difference.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn refill(&mut self, now: Instant) {
        // A clock that was read on another thread may be a little behind.
        let nanos = now.saturating_duration_since(self.at).as_nanos();
        self.at = self.at.max(now);
        self.missing = self.missing.saturating_sub(nanos.saturating_mul(self.limit.rate.get().into()));
    }
}

/// The limits that all queues of one direction, or of one device, share.
#[derive(Debug)]
pub struct Limiter {
    /// Lock order: taken alone, for a few instructions.
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
}

impl Limiter {
    /// With full buckets. `None` where nothing is limited.
    #[must_use]
    pub fn new(limits: Limits) -> Option<Arc<Self>> {
        let Limits { bandwidth, ops } = limits;
        if bandwidth.is_none() && ops.is_none() {
            return None;
        }
        let now = Instant::now();
        let full = |limit: Option<Limit>| limit.map(|limit| Bucket::full(limit, now));
        let buckets = Mutex::new(Buckets { bandwidth: full(bandwidth), ops: full(ops) });
        Some(Arc::new(Self { buckets }))
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    /// Take one operation of so many bytes: how long after `now` it may go.
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let bandwidth = self.bandwidth.as_mut().map(|bucket| bucket.take(bytes, now));
        let ops = self.ops.as_mut().map(|bucket| bucket.take(1, now));
        bandwidth.max(ops).unwrap_or_default()
    }

    fn give_back(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bandwidth {
            bucket.give_back(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.give_back(1);
        }
    }

    /// How long after `now` there is anything to be had.
    fn wait(&mut self, now: Instant) -> Duration {
        let one = |bucket: &mut Option<Bucket>| bucket.as_mut().map(|bucket| bucket.wait(1, now));
        one(&mut self.bandwidth).max(one(&mut self.ops)).unwrap_or_default()
    }
}

/// One queue's way past a limiter. Belongs to the queue's thread. A request that waits has its tokens already; they are given
/// back when the gate is dropped.
#[derive(Debug)]
pub struct Gate {
    limiter: Option<Arc<Limiter>>,
    counters: Arc<Counters>,
    turn: Turn,
}

/// What the queue waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Nothing,
    /// Its next request, of so many bytes, has taken its tokens and goes then.
    Taken {
        bytes: u64,
        at: Instant,
    },
    /// Tokens for a request whose length is not known.
    Any,
}

impl Gate {
    /// A queue's way past `limiter`, if there is one. Waits are counted in `counters`.
    #[must_use]
    pub fn new(limiter: Option<Arc<Limiter>>, counters: Arc<Counters>) -> Self {
        Self { limiter, counters, turn: Turn::Nothing }
    }

    /// Whether the queue's next request, of so many bytes, may go now.
    ///
    /// # Errors
    /// When it may go. The caller leaves the queue alone until then, and asks again with the same request.
    pub fn pass(&mut self, bytes: u64) -> Result<(), Instant> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        let now = Instant::now();
        if let Turn::Taken { bytes: taken, at } = self.turn {
            if taken == bytes && now < at {
                return Err(at);
            }
            self.turn = Turn::Nothing;
            if taken == bytes {
                return Ok(());
            }
            // The guest has changed it since.
            limiter.lock().give_back(taken);
        }
        let wait = limiter.lock().take(bytes, now);
        if wait.is_zero() {
            return Ok(());
        }
        let at = later(now, wait);
        self.turn = Turn::Taken { bytes, at };
        self.counters.throttled.add(1);
        Err(at)
    }

    /// The request that passed cannot go yet for another reason: it keeps its tokens until it is asked about again.
    pub fn postpone(&mut self, bytes: u64) {
        if self.limiter.is_some() {
            self.turn = Turn::Taken { bytes, at: Instant::now() };
        }
    }

    /// Whether a request may go whose length is known only when it is done (a frame that is received). It is to be
    /// [charged](Gate::charge) then.
    ///
    /// # Errors
    /// When to ask again.
    pub fn check(&mut self) -> Result<(), Instant> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        let now = Instant::now();
        let wait = limiter.lock().wait(now);
        if wait.is_zero() {
            self.turn = Turn::Nothing;
            return Ok(());
        }
        if self.turn != Turn::Any {
            self.turn = Turn::Any;
            self.counters.throttled.add(1);
        }
        Err(later(now, wait))
    }

    /// Pay for a request that went after [`Gate::check`], be it with a debt.
    pub fn charge(&mut self, bytes: u64) {
        if let Some(limiter) = &self.limiter {
            let _ = limiter.lock().take(bytes, Instant::now());
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let (Some(limiter), Turn::Taken { bytes, .. }) = (&self.limiter, self.turn) {
            limiter.lock().give_back(bytes);
        }
    }
}

fn later(now: Instant, wait: Duration) -> Instant {
    // A wait has 64 bits of nanoseconds, a clock of seconds.
    now.checked_add(wait).unwrap_or(now)
}

#[cfg(test)]
#[path = "limit_tests.rs"]
mod tests;
