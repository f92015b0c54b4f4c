//! What is taken from the Debian archive: kernels and busybox, by package, into the target directory.
//! Nothing is installed.

pub mod archive;
pub mod busybox;
pub mod kernel;
mod mirror;
pub mod modules;

/// A release of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Debian 11.
    Bullseye,
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Release {
    /// Every release that guests are taken from, oldest first.
    pub const ALL: [Release; 3] = [Release::Bullseye, Release::Bookworm, Release::Trixie];

    /// The suite's name in the archive.
    pub fn suite(self) -> &'static str {
        match self {
            Release::Bullseye => "bullseye",
            Release::Bookworm => "bookworm",
            Release::Trixie => "trixie",
        }
    }

    /// The number that people know it by.
    pub fn number(self) -> u32 {
        match self {
            Release::Bullseye => 11,
            Release::Bookworm => 12,
            Release::Trixie => 13,
        }
    }
}
