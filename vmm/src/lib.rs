//! KVM, devices and threads joined into a machine.
//!
//! [`machine::start`] takes a [`spec::VmSpec`] and returns a handle to a running VM. Everything that is asked of it
//! goes through [`control::VmAction`]; how it ended is a [`control::Outcome`].

pub mod agent;
pub mod api;
mod board;
mod console;
pub mod control;
mod counting;
mod error;
mod event;
mod home;
mod host;
pub mod host_check;
mod interrupts;
mod kvm;
pub mod machine;
mod memory;
mod net;
pub mod notice;
mod passt;
pub mod snapshot;
pub mod spec;
pub mod stats;
mod vcpu;

pub use console::{StreamError, without_queries};
pub use devices::worker::named_thread;
pub use error::VmError;
pub use home::HomeError;
pub use host::HostError;
pub use kvm::KvmError;
pub use memory::MemoryError;
pub use net::NetError;
pub use passt::PasstError;
pub use vcpu::{StateError, TemplateError, VcpuError};
