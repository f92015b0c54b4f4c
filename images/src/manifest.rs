//! [`Manifest`]: what an image is. Its digest is the image's ID.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The version of manifests that this skiff writes.
pub const SCHEMA: u32 = 1;

/// An image. Its files are blobs of the store; they are never written again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What it is, for people: `Debian GNU/Linux 12 (bookworm)`.
    pub os: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Where it is from.
    pub source: Source,
    /// The kernel: a bzImage or an ELF.
    pub kernel: Blob,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Blob>,
    /// What the kernel needs of its modules to reach a root disk and the agent: a newc archive that is not compressed, to be put before
    /// one with the agent in it (`initrd`). Container images with this image's kernel get it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<Blob>,
    /// The kernel's command line but for its console, such as `root=/dev/vda rw`.
    pub cmdline: String,
    /// The root disk.
    pub disk: Disk,
    /// How the agent runs in it.
    pub agent: Agent,
    /// What a VM of it has if nobody says otherwise.
    #[serde(default)]
    pub defaults: Defaults,
}

impl Manifest {
    /// All files that it names.
    #[must_use]
    pub fn blobs(&self) -> Vec<Blob> {
        let boot = [Some(self.kernel), self.initrd, self.modules].into_iter().flatten();
        let content = match &self.source {
            Source::Oci { content, .. } => content.as_slice(),
            _ => &[],
        };
        boot.chain(self.disk.layers.iter().copied()).chain(content.iter().copied()).collect()
    }
}

/// A file of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Blob {
    /// Its content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// The root disk: qcow2 files, each on the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Disk {
    /// From the top to the one that stands on nothing. Each has the next one's file name as its backing file.
    pub layers: Vec<Blob>,
    /// The size of the disk in bytes.
    pub size: u64,
    /// The size that a VM's disk has at first, in bytes; at least `size`. The agent grows the root file system to it.
    pub grows_to: u64,
}

/// Where an image is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Source {
    /// Built by a recipe.
    Distribution {
        /// Such as `debian:12`.
        name: String,
    },
    /// Built from a file.
    File {
        /// The image that it starts from.
        base: String,
    },
    /// A disk that was imported.
    Disk {
        /// `raw`, `qcow2`, `vmdk` or `vhdx`.
        format: String,
    },
    /// An archive of a root file system.
    Rootfs,
    /// A container's image.
    Oci {
        /// Where it was, as far as is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// Of its OCI manifest.
        digest: Digest,
        /// Its OCI manifest, its configuration and its layers as they came, so that what is pushed or exported is what was pulled or
        /// imported, to the byte.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        content: Vec<Blob>,
    },
}

/// How the agent runs in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Agent {
    /// It does not.
    None,
    /// As a service of the guest's own init, from the disk.
    Service,
    /// It is the guest's init, from the initial RAM disk.
    Init,
}

/// What a VM of an image has if nobody says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Defaults {
    /// How many vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u8>,
    /// How much memory, such as `1G`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Who commands run as, as in OCI's `User`; empty: root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `KEY=VALUE`, for every command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Where commands start; empty: the user's home.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cwd: String,
    /// What a command line is put behind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command line if none is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Ports that its programs listen on, such as `80/tcp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Ports to publish, as `--publish` takes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
}
