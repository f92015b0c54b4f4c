//! The words that skiff and its agent in a guest speak, over vsock.
//!
//! Two kinds of connection, both of [`frame::Frame`]s:
//!
//! ```text
//!   guest ──► host, port LINK_PORT      one, for as long as the agent lives: Hello → Welcome → Ready; later PowerOff ←
//!   host ──► guest, port AGENT_PORT     one a request: Open → Accepted or Refused, then what the request needs
//! ```
//! Whoever reads trusts nothing: the host a hostile guest, the agent a host of another version. Nothing here has threads or state.

pub mod frame;
pub mod install;
pub mod message;

/// Where the agent listens in the guest.
pub const AGENT_PORT: u32 = 10777;
/// Where skiff listens for the agent, at context ID 2.
pub const LINK_PORT: u32 = 10778;
/// The version of what is spoken. Goes up when an older agent would misunderstand; new requests and fields do not need it.
pub const PROTOCOL: u32 = 1;
/// skiff's version, for messages about skew.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
