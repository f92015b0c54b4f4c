//! Asking things of a VM from another process.
//!
//! A VM's process listens on a Unix socket. A client writes one JSON value a line ([`types::Request`]) and reads one line
//! for each ([`types::Response`]), in order. [`types::Request::Attach`] is the last line of its connection: what follows it both ways
//! is a stream of [`types::Frame`]s.

pub mod client;
mod frame;
mod line;
pub mod server;
pub mod types;
