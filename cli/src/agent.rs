//! The agent as this program carries it: built by `build.rs`, put into every image that skiff makes.

/// The agent's program: static, for a guest of any distribution.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/skiff-agent"));
