//! Rate limits as a user asks for them.

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
