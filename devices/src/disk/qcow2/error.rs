//! What is wrong with an image.

use std::io;

/// Why a qcow2 file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// The host fails.
    #[error("the host cannot read or write it")]
    Io(#[from] io::Error),
    /// It ends before what its header says is there.
    #[error("it is cut off: {what} at {offset:#x} lies outside the file; take it from a backup")]
    Outside {
        /// The table.
        what: &'static str,
        /// Where it should be, in bytes.
        offset: u64,
    },
    /// A number that no image has.
    #[error("its {what} is {value}, which no qcow2 image has; look at it with `qemu-img check`")]
    Value {
        /// The field.
        what: &'static str,
        /// What is there.
        value: u64,
    },
    /// Something of the format that skiff does not do.
    #[error("it uses {0}, which skiff does not support: convert it with `qemu-img convert -O qcow2`")]
    Unsupported(&'static str),
    /// Feature bits that nobody knows.
    #[error(
        "it uses features that skiff does not know (bits {0:#x}): convert it with `qemu-img convert -O qcow2`"
    )]
    Unknown(u64),
    /// It may be read as it is, but not be written.
    #[error(
        "it has {0}, which would not survive being written: use it as the base of layers (layers=on), or readonly=on"
    )]
    NotWritable(&'static str),
    /// Its tables contradict each other.
    #[error("its tables are damaged ({what} at {offset:#x}): repair it with `qemu-img check -r all`")]
    Damaged {
        /// What contradicts.
        what: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
    },
    /// It has too many clusters to keep count of.
    #[error(
        "it is too large to be written with clusters of {cluster} bytes: convert it with `qemu-img convert -O qcow2`"
    )]
    TooLarge {
        /// Its cluster size in bytes.
        cluster: u64,
    },
    /// Its backing file has a format that is not supported.
    #[error(
        "its backing file is a {0} image, which skiff does not support: rebase it with `qemu-img rebase`"
    )]
    BackingFormat(String),
}

impl From<Malformed> for io::Error {
    fn from(error: Malformed) -> Self {
        match error {
            Malformed::Io(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}
