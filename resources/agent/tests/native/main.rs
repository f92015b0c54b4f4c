//! The agent as it runs on any Linux, this machine among them: over Unix sockets in place of vsock, with files below a directory in
//! place of the guest's own.

mod commands;
mod link;
mod support;
mod transfers;
