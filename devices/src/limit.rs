//! Token buckets: how much a device may do in a time.

use std::num::NonZero;

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
