//! [`VmSpec`]: what a user asked for, with every default filled in. Host side only: paths and choices.
//! What the guest can see of the machine never stands here.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most vCPUs that a VM can have.
pub const MAX_CPUS: u8 = 64;
/// The least memory that a VM can have, in bytes.
pub const MIN_MEMORY: u64 = 64 << 20;

/// One VM, as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// A bzImage, an ELF vmlinux or a PVH ELF.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// How many vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// How much memory.
    pub memory: Memory,
    /// How virtio devices are reached.
    pub transport: Transport,
    /// Where the serial port (ttyS0) leads.
    pub serial: Stream,
    /// Where the virtio console (hvc0) leads.
    pub console: Stream,
    /// The disks, in the order of vda, vdb, …
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
}

/// One disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// A raw file or a block device.
    pub path: PathBuf,
    /// The guest cannot write it, and other VMs may read it too.
    #[serde(default)]
    pub readonly: bool,
    /// Bypass the host's page cache (O_DIRECT).
    #[serde(default)]
    pub direct: bool,
    /// The serial number the guest sees, at most 20 bytes. By default one is derived from the disk's position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// How many request queues; by default one per vCPU, up to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// How requests reach the host's kernel.
    #[serde(default)]
    pub io: DiskIo,
}

/// How a disk's requests reach the host's kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskIo {
    /// io_uring where the host allows it, else plain calls.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Plain preadv and pwritev.
    Plain,
}

/// How a virtio device is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// virtio over PCI.
    #[default]
    Pci,
    /// virtio over MMIO, announced by ACPI.
    Mmio,
}

/// Where one of the guest's character devices leads on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Stream {
    /// The program's standard input and output.
    Stdio,
    /// Output is appended to this file; there is no input.
    File(PathBuf),
    /// Output is dropped; there is no input.
    Null,
}

/// An amount of memory in bytes, written `512M`, `4G` or as a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Memory(pub u64);

/// A value that was given could not be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Not an amount of memory.
    #[error("'{0}' is not an amount of memory: write a number with K, M or G, such as 512M")]
    Memory(String),
    /// Not a stream.
    #[error("'{0}' is not one of stdio, file=PATH and null")]
    Stream(String),
}

impl FromStr for Memory {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::Memory(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let lower = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
        let unit = |name: char, shift: u32| lower.strip_suffix(name).map(|digits| (digits, shift));
        let (digits, shift) = unit('k', 10)
            .or_else(|| unit('m', 20))
            .or_else(|| unit('g', 30))
            .or_else(|| unit('t', 40))
            .unwrap_or((lower, 0));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u64 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(1_u64 << shift).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Memory {
    /// The largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.is_multiple_of(1_u64 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl From<Memory> for String {
    fn from(memory: Memory) -> Self {
        memory.to_string()
    }
}

impl TryFrom<String> for Memory {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl FromStr for Stream {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "null" => Ok(Self::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(ParseError::Stream(text.to_owned())),
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "file={}", path.display()),
            Self::Null => f.write_str("null"),
        }
    }
}

impl From<Stream> for String {
    fn from(stream: Stream) -> Self {
        stream.to_string()
    }
}

impl TryFrom<String> for Stream {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_units_and_written_with_the_largest_that_fits() {
        for (text, bytes, shown) in [
            ("512M", 512 << 20, "512M"),
            ("512MiB", 512 << 20, "512M"),
            ("4g", 4 << 30, "4G"),
            ("1048576", 1 << 20, "1M"),
            ("1536m", 1536 << 20, "1536M"),
            ("100", 100, "100"),
        ] {
            let memory: Memory = text.parse().unwrap();
            assert_eq!(memory, Memory(bytes), "{text}");
            assert_eq!(memory.to_string(), shown);
        }
        for text in ["", "M", "-1M", "1.5G", "12X", "99999999999G", "1MM"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
    }

    #[test]
    fn streams_are_read_as_they_are_written() {
        for text in ["stdio", "null", "file=/tmp/a=b"] {
            assert_eq!(text.parse::<Stream>().unwrap().to_string(), text);
        }
        for text in ["", "file=", "tty", "null=x", "stdio "] {
            assert!(text.parse::<Stream>().is_err(), "{text}");
        }
    }
}
