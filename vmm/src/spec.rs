//! [`VmSpec`]: what a user asked for, with every default filled in. Host side only: paths and choices.
//! What the guest can see of the machine never stands here.
//!
//! The text forms (`512M`, `path=disk.img,readonly=on`) are read and written in `spec/text.rs`; what can be
//! said about a spec without asking the host is checked by [`VmSpec::validate`], in `spec/check.rs`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

mod check;
mod limit;
mod net;
mod text;

pub use check::SpecError;
pub use limit::LimitSpec;
pub use net::{MAX_NET_QUEUES, Mac, NET_KEYS, NetBackend, NetSpec, PortForward, Protocol};
pub use text::ParseError;

/// The most vCPUs that a VM can have.
pub const MAX_CPUS: u8 = arch::layout::MAX_CPUS as u8;
/// The least memory that a VM can have, in bytes.
pub const MIN_MEMORY: u64 = arch::layout::MIN_MEMORY;
/// Memory is given in multiples of this, in bytes.
pub const MEMORY_STEP: u64 = 1 << 20;
/// The longest kernel command line in bytes, its final NUL not counted: what Linux keeps on x86
/// (COMMAND_LINE_SIZE).
pub const MAX_CMDLINE: usize = arch::layout::CMDLINE_SIZE - 1;
/// The longest serial number of a disk in bytes (VIRTIO_BLK_ID_BYTES, virtio 1.2 §5.2.6).
pub const MAX_DISK_SERIAL: usize = 20;
/// The most request queues of one disk.
pub const MAX_DISK_QUEUES: u16 = 16;
/// The fields of a [`DiskSpec`], by the names that text and files give them.
pub const DISK_KEYS: &[&str] = &[
    "path",
    "readonly",
    "direct",
    "serial",
    "queues",
    "io",
    "bandwidth",
    "bandwidth-burst",
    "ops",
    "ops-burst",
    "burst",
];

/// One VM, as asked for. What TOML writes as a table stands last, for there nothing plain can follow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// A bzImage, an ELF vmlinux or a PVH ELF.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line, at most [`MAX_CMDLINE`] bytes.
    pub cmdline: String,
    /// How many vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// How much memory, and of which kind.
    pub memory: MemorySpec,
    /// How virtio devices are reached.
    pub transport: Transport,
    /// Where the serial port (ttyS0) leads.
    pub serial: Stream,
    /// Where the virtio console (hvc0) leads.
    pub console: Stream,
    /// Whether the guest has a balloon: it tells of its memory, gives free pages back, and can be asked for more.
    #[serde(default = "yes")]
    pub balloon: bool,
    /// The host's ports that lead into the guest, by its first `user` network.
    #[serde(default, rename = "publish", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortForward>,
    /// Stream sockets between guest and host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockSpec>,
    /// The disks, in the order of vda, vdb, …
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// The network devices, in the order of eth0, eth1, …
    #[serde(default, rename = "net", skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetSpec>,
}

/// What a field is if it is not given.
fn yes() -> bool {
    true
}

/// A VM's memory, written `2G` or `2G,hugepages=on,overcommit=on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MemorySpec {
    /// At least [`MIN_MEMORY`] and a multiple of [`MEMORY_STEP`].
    pub size: Memory,
    /// Of the host's reserved huge pages of 2 MiB (hugetlbfs), all taken at the start.
    pub hugepages: bool,
    /// It may be more than the host has.
    pub overcommit: bool,
}

/// A VM's vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The Unix socket on which the host connects to the guest. What the guest connects to is at this path with `_PORT` after it.
    pub path: PathBuf,
    /// The guest's context ID, from 3 on.
    #[serde(default = "first_cid")]
    pub cid: u32,
}

/// Every VM can have the same: it is seen by its own guest only.
fn first_cid() -> u32 {
    3
}

/// One disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// A raw file or a block device.
    pub path: PathBuf,
    /// The guest cannot write it, and other VMs may read it too.
    #[serde(default)]
    pub readonly: bool,
    /// Bypass the host's page cache (O_DIRECT).
    #[serde(default)]
    pub direct: bool,
    /// The serial number the guest sees, 1 to [`MAX_DISK_SERIAL`] bytes of printable ASCII without spaces. By default one is
    /// derived from the disk's position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// How many request queues, 1 to [`MAX_DISK_QUEUES`]; by default one per vCPU, up to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// How requests reach the host's kernel.
    #[serde(default)]
    pub io: DiskIo,
    /// What it may do in a time.
    #[serde(flatten)]
    pub limit: LimitSpec,
}

impl DiskSpec {
    /// The disk at `path`, writable, with every default.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readonly: false,
            direct: false,
            serial: None,
            queues: None,
            io: DiskIo::Auto,
            limit: LimitSpec::default(),
        }
    }
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
