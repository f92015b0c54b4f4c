//! Rate limits as a user asks for them.

use std::num::NonZero;

use devices::limit::{Limit, Limits};

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
    /// As devices have it. A rate of 0 is none: [`VmSpec::validate`](super::VmSpec::validate) has refused it.
    pub(crate) fn limits(&self) -> Limits {
        let limit = |rate: Option<u64>, burst: Option<u64>| {
            let rate = rate.and_then(NonZero::new)?;
            Some(Limit { rate, burst: burst.and_then(NonZero::new).unwrap_or(rate) })
        };
        Limits {
            bandwidth: limit(self.bandwidth.map(|rate| rate.0), self.bandwidth_burst.map(|burst| burst.0)),
            ops: limit(self.ops, self.ops_burst),
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_one_second_s_unless_it_is_given() {
        let limit = |rate, burst| {
            NonZero::new(rate).zip(NonZero::new(burst)).map(|(rate, burst)| Limit { rate, burst })
        };
        let none = LimitSpec::default();
        assert_eq!(none.limits(), Limits::default());
        let plain = LimitSpec { bandwidth: Some(Memory(5 << 20)), ops: Some(7), ..none };
        assert_eq!(plain.limits(), Limits { bandwidth: limit(5 << 20, 5 << 20), ops: limit(7, 7) });
        let bursts = LimitSpec { bandwidth_burst: Some(Memory(1)), ops_burst: Some(9), ..plain };
        assert_eq!(bursts.limits(), Limits { bandwidth: limit(5 << 20, 1), ops: limit(7, 9) });
    }
}
