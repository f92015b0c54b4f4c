//! Snapshots: a whole machine at one instant, on disk.
//!
//! ```text
//! $XDG_DATA_HOME/skiff/                 [`Places`]
//!   layers/ID.qcow2                     a layer of a disk; its backing file is another layer, or the user's own base
//!   snapshots/ID/manifest.json          what the snapshot is ([`Manifest`]); the one file that makes it one
//!   snapshots/ID/state                  devices, vCPUs, interrupt controllers, clock
//!   snapshots/ID/memory-…               the pages that this point adds to its base's, at their place in guest RAM
//!   snapshots/ID/index-…                which pages those are
//!   snapshots/ID/checked.json           what was found in order, and need not be read again; see `store/verify.rs`
//!   snapshots/.new-ID/                  on its way to be one
//!   boot/ID                             a kernel, an initrd or a readonly disk that came with an imported snapshot
//!   lock, sweep.lock, owner             see [`store`]
//! ```
//!
//! Snapshots form a tree, over all VMs: a clone's first snapshot has the one it came from as its parent. A snapshot
//! is never changed, but that its pages may be merged with those of a base that is removed.

pub mod envelope;
mod id;
pub mod manifest;
pub mod memory;
mod places;
pub mod record;
mod sealed;
pub(crate) mod state;
pub mod store;

pub use id::{Id, IdError};
pub use manifest::Manifest;
pub use places::Places;
pub use record::Record;
pub use store::Store;
