//! The device on a transport, driven by FUSE requests that no kernel stands behind.

mod client;
mod escapes;
mod files;
mod hung;
mod lies;
mod moved;
