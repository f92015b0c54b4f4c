//! What the processor and the boot protocols fix: memory layout, CPUID, MSRs, registers, ACPI tables
//! and the loading of a kernel. There are no threads, no host files and no eventfds in here.
//!
//! This file is the one place that selects a `target_arch`: what a machine needs of its architecture is
//! re-exported from here under one name, so that nothing below holds a `cfg`.

pub mod memory;
