//! The devices of a PC that predate PCI, each at its fixed ports.
pub mod power;
