//! Rate limits as a user asks for them.

use std::num::NonZero;

use devices::limit::{Limit, Limits};
use serde::{Deserialize, Serialize};

use super::Memory;

/// What a device may do in a time. Nothing is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LimitSpec {
    /// Bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Memory>,
    /// Bytes that may go at once after a pause; by default one second's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_burst: Option<Memory>,
    /// Requests or packets a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<u64>,
    /// Requests or packets that may go at once after a pause; by default one second's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
}

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
