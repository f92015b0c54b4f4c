//! What the processor and the boot protocols fix: memory layout, CPUID, MSRs, registers, ACPI tables
//! and the loading of a kernel. There are no threads, no host files and no eventfds in here.
//!
//! This file is the one place that selects a `target_arch`: what a machine needs of its architecture is
//! re-exported from here under one name, so that nothing below holds a `cfg`.
//!
//! In the order a machine is built: [`layout`] says where RAM goes, [`boot::Kernel::parse`] reads a kernel,
//! [`boot::load`] puts it into RAM, [`acpi::write`] describes the devices, and [`cpuid`], [`msr`] and
//! [`regs`] give every vCPU its first state.

pub mod acpi;
pub mod boot;
pub mod memory;

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{cpuid, features, layout, msr, regs, state, template};
