//! KVM, devices and threads joined into a machine.
//!
//! [`machine::start`] takes a [`spec::VmSpec`] and returns a handle to a running VM. Everything that is asked of it
//! goes through [`control::VmAction`]; how it ended is a [`control::Outcome`].

mod console;
pub mod control;
mod error;
mod event;
pub mod machine;
pub mod spec;

pub use error::VmError;
