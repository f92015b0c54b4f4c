//! [`VmSpec`]: what a user asked for, with every default filled in. Host side only: paths and choices.
//! What the guest can see of the machine never stands here.
//!
//! Each part has a module with its text form (`512M`, `path=disk.img,readonly=on`). Those made of keys and values share
//! one parser for text and for the tables of a file, in `spec/options.rs`. What can be said about a spec without asking
//! the host is checked by [`VmSpec::validate`], in `spec/check.rs`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

mod check;
mod disk;
mod folder;
mod limit;
mod memory;
mod net;
mod options;
mod port;
#[cfg(test)]
mod tests;
mod text;
mod vsock;

pub use arch::template::CpuTemplate;
pub use check::SpecError;
pub use disk::{DISK_KEYS, DiskIo, DiskSpec, MAX_DISK_QUEUES, MAX_DISK_SERIAL};
pub use folder::{FOLDER_KEYS, FolderSpec};
pub use limit::LimitSpec;
pub use memory::{HUGE_PAGE, MEMORY_KEYS, MEMORY_STEP, MIN_MEMORY, Memory, MemorySpec};
pub use net::{MAX_NET_QUEUES, Mac, NET_KEYS, NetBackend, NetSpec};
pub use options::closest;
pub use port::{PortForward, Protocol};
pub use text::ParseError;
pub use vsock::VsockSpec;

/// The most vCPUs that a VM can have.
pub const MAX_CPUS: u8 = arch::layout::MAX_CPUS as u8;
/// The longest kernel command line in bytes, its final NUL not counted: what Linux keeps on x86
/// (COMMAND_LINE_SIZE).
pub const MAX_CMDLINE: usize = arch::layout::CMDLINE_SIZE - 1;
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
    /// What of the host's processor the guest is not to see.
    #[serde(default, rename = "cpu-template", skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// The disks, in the order of vda, vdb, …
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskSpec>,
    /// The network devices, in the order of eth0, eth1, …
    #[serde(default, rename = "net", skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetSpec>,
    /// The folders of the host that the guest shares.
    #[serde(default, rename = "fs", skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<FolderSpec>,
}

impl VmSpec {
    /// As a file has it (`skiff run --config`).
    ///
    /// # Errors
    /// If a path in it is no text; says which part.
    pub fn to_toml(&self) -> Result<String, String> {
        toml::to_string(self).map_err(|error| error.to_string())
    }

    /// What a file says.
    ///
    /// # Errors
    /// If it says no spec; why.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// Whether a guest of `other` would find the same devices, in the same places.
    pub(crate) fn is_same_machine(&self, other: &Self) -> bool {
        let machine = |spec: &Self| {
            let (disks, nets) = (spec.disks.len(), spec.nets.len());
            (spec.cpus, spec.memory.size, spec.transport, disks, nets, spec.vsock.is_some(), spec.balloon)
        };
        machine(self) == machine(other) && self.tags() == other.tags()
    }

    /// Whether there is a folder that the agent mounts.
    #[must_use]
    pub fn has_mounts(&self) -> bool {
        self.folders.iter().any(|folder| folder.mount.is_some())
    }

    /// What the guest knows its folders by.
    #[must_use]
    pub fn tags(&self) -> Vec<String> {
        self.folders.iter().enumerate().map(|(at, folder)| folder.tag(at)).collect()
    }
}

/// What a field is if it is not given.
fn yes() -> bool {
    true
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The program's standard input and output.
    Stdio,
    /// Output is appended to this file; there is no input.
    File(PathBuf),
    /// Output is dropped; there is no input.
    Null,
}
