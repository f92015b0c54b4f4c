//! What is fixed by x86-64: where things lie, and the first state of a vCPU.

pub mod cpuid;
pub mod features;
pub mod layout;
pub mod msr;
pub mod regs;
pub mod state;
pub mod template;
