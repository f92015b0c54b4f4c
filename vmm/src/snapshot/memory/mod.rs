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
//!
//! # Why a fork
//! The pause must be short however much memory the guest has, for every user, and for every kind of mapping. Measured on Linux 6.18 with
//! 2 cores, all memory touched, in milliseconds:
//!
//! | pause for | 256 MiB | 1 GiB | 4 GiB |
//! | --- | --- | --- | --- |
//! | fork, huge pages | 0.1 | 0.3 to 0.8 | 2 to 3 |
//! | fork, pages of 4 KiB | 2.2 | 7.5 to 20 | 46 |
//! | userfaultfd write protection, huge pages | 0.02 | 0.03 | 0.1 |
//! | userfaultfd write protection, pages of 4 KiB | 3.3 | 19 | 46 |
//!
//! - *userfaultfd* is no faster for small pages, must handle each fault in a thread of this process while the guest waits, cannot watch
//!   a private mapping of a file, which is what a restored guest's memory is, and needs a privilege for faults within KVM
//!   (`vm.unprivileged_userfaultfd`, or `/dev/userfaultfd`).
//! - *KVM's dirty log* says which pages changed, and is no copy of them: what changed since the last look is copied in the pause, and
//!   200 MiB/s make 20 MiB in 100 ms, about 10 ms to copy. Devices' writes would have to be logged by ourselves, and a log that is always on
//!   keeps KVM from mapping huge pages.
//! - *A fork* costs as much as there are page table entries, and no more for what was never touched. Then the kernel copies what the
//!   guest writes to: 3 µs a page, so 200 MiB/s cost a vCPU 15 % of its time for as long as the child writes, 5 ms for an idle guest. KVM
//!   drops its own tables of the guest's memory at the fork, and fills them again as it is touched.
//!
//! So guest memory is best in huge pages, which it is from the start, as far as the host allows. Writes during a
//! snapshot break them up; [`rejoin`] puts them together behind it (1 s for all of 1 GiB, with pauses). Memory that was mapped from
//! a snapshot stays in small pages: 1 GiB of it, all touched, takes a fork of 8 to 20 ms.
//!
//! Memory of hugetlbfs forks too. The guest's writes then take further pages from the pool; if there are none, the kernel takes
//! the child's, and the snapshot fails with [`MemoryFileError::HugePages`], while the guest goes on.
//!
//! # What the child looks at
//! Pages that the guest has of its own (private ones, by `PAGEMAP_SCAN` or `/proc/self/pagemap`), those in which the image that was mapped
//! differs from the parent snapshot's (snapshots taken since), and those where the balloon has put zeros over an image. All of them
//! are compared with the parent's, and only different ones are written, but for unchanged ones that fill small gaps where there would be
//! very many runs.

mod child;
mod dense;
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
mod rejoin;
mod save;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use error::{MemoryFileError, Step};
pub use image::Image;
pub use index::{Content, Index, IndexError, PAGE, Run};
pub use merge::{flatten, merge, verify};
pub use reaper::Reaper;
pub use rejoin::rejoin;
pub use save::{Saved, Saver, Saving};

/// The two files of one snapshot's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLayer {
    /// The pages.
    pub data: PathBuf,
    /// Which pages they are.
    pub index: PathBuf,
}
