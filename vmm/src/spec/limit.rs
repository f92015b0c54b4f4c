//! Rate limits as a user asks for them.

use super::options::{Given, Value};
use super::{Memory, ParseError};

/// What a device may do in a time. Nothing is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitSpec {
    /// Bytes a second.
    pub bandwidth: Option<Memory>,
    /// Bytes that may go at once after a pause; by default one second's.
    pub bandwidth_burst: Option<Memory>,
    /// Requests or packets a second.
    pub ops: Option<u64>,
    /// Requests or packets that may go at once after a pause; by default one second's.
    pub ops_burst: Option<u64>,
}

impl LimitSpec {
    /// Its keys and values, see [`Part::pairs`](super::options::Part::pairs).
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&'static str, Value)> {
        let bytes = [("bandwidth", self.bandwidth), ("bandwidth-burst", self.bandwidth_burst)];
        let counts = [("ops", self.ops), ("ops-burst", self.ops_burst)];
        let bytes = bytes.into_iter().filter_map(|(key, bytes)| Some((key, Value::text(bytes?))));
        bytes.chain(counts.into_iter().filter_map(|(key, count)| Some((key, Value::Number(count?)))))
    }
}

/// Limits while they are read.
#[derive(Default)]
pub(super) struct LimitDraft {
    limit: LimitSpec,
    /// `burst` alone: what it is of is known when all keys are.
    burst: Option<Given>,
}

impl LimitDraft {
    /// Take one of the keys of limits.
    pub fn set(&mut self, given: Given) -> Result<(), ParseError> {
        match given.key {
            "bandwidth" => self.limit.bandwidth = Some(given.bytes()?),
            "bandwidth-burst" => self.limit.bandwidth_burst = Some(given.bytes()?),
            "ops" => self.limit.ops = Some(given.number(COUNT)?),
            "ops-burst" => self.limit.ops_burst = Some(given.number(COUNT)?),
            _ => self.burst = Some(given),
        }
        Ok(())
    }

    /// The whole. A plain `burst` is the bandwidth's, or of requests if those alone are limited.
    pub fn finish(self) -> Result<LimitSpec, ParseError> {
        let mut limit = self.limit;
        let Some(burst) = self.burst else {
            return Ok(limit);
        };
        let (bytes, ops) = (limit.bandwidth.is_some(), limit.ops.is_some());
        match (bytes, ops) {
            (true, _) if limit.bandwidth_burst.is_some() => Err(burst.twice_as("bandwidth-burst")),
            (true, _) => {
                limit.bandwidth_burst = Some(burst.bytes()?);
                Ok(limit)
            }
            (false, true) if limit.ops_burst.is_some() => Err(burst.twice_as("ops-burst")),
            (false, true) => {
                limit.ops_burst = Some(burst.number(COUNT)?);
                Ok(limit)
            }
            (false, false) => Err(burst.without_rate()),
        }
    }
}

/// What a number of requests looks like.
const COUNT: &str = "a number of requests";
