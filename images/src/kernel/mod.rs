//! Kernels: the one in a root file system ([`take`]), and the one for guests that have none of their own.

mod find;
mod modules;

use std::io;
use std::path::PathBuf;

pub use find::{Found, boots, take};

/// A kernel cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the guest cannot be read.
    #[error("the guest's /{path} cannot be read")]
    Read {
        /// Its path.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A module cannot be read.
    #[error("the kernel's module /{path} cannot be read")]
    Module {
        /// Its path.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The copy cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
