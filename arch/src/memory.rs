//! The guest memory type that every crate of skiff shares.

use std::sync::Arc;

/// The guest's RAM, as one or two mapped regions. Read and written only through vm-memory's volatile
/// accessors: the guest changes it at any moment.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// A shared handle to [`GuestRam`], held by every device that is active.
pub type SharedRam = Arc<GuestRam>;
