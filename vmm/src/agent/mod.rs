//! The agent in the guest, seen from the host: the link that it keeps, and requests to it.
//!
//! ```text
//!   VM's process                                      guest                      skiff exec, cp, …
//!   agent thread ◄── PATH_10778 ◄── vsock ◄──── skiff-agent ◄──── vsock ◄── PATH (CONNECT 10777)
//!     readiness ──► API: wait-ready, events
//! ```
//! The VM's process knows by the [link](link::Link) whether the agent is there; it takes no part in requests, which any process makes as
//! a [client]. Whatever comes from the guest is hostile: bounded, and read as nothing but [frames](::agent::frame::Frame).

pub mod client;
pub(crate) mod link;
pub(crate) mod readiness;

pub use readiness::Agent;
