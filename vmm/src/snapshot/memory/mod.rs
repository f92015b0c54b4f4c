//! The guest's memory in snapshots: saved while the guest runs on, put back without reading it.
//!
//! ```text
//!   memory-ID   as long as RAM, sparse: a page at its own offset, the regions packed one after the other
//!   index-ID    which pages those are ([`Index`]); all others are the parent snapshot's, or zero without one
//!
//!   in the pause     Saver::fork      a child process has all memory as it is now, copy-on-write
//!   behind it        Saving::finish   the child writes what differs from the parent's image, and ends
//!   at a restore     Image::map       the files of the chain become guest RAM, privately
//!   at a removal     merge            two neighbours become one
//! ```

mod child;
mod error;
mod image;
mod index;
mod merge;
mod message;
mod pagemap;
mod pieces;
mod plan;
mod progress;
mod reaper;
mod save;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use error::{MemoryFileError, Step};
pub use image::Image;
pub use index::{Content, Index, IndexError, PAGE, Run};
pub use merge::{flatten, merge, verify};
pub use reaper::Reaper;
pub use save::{Saved, Saver, Saving};

/// The two files of one snapshot's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLayer {
    /// The pages.
    pub data: PathBuf,
    /// Which pages they are.
    pub index: PathBuf,
}
