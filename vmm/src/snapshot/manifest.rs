//! What a snapshot is, in a file that people can read.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use super::Id;
use super::sealed::{self, SealedError};

/// The version of the format that this build writes; it reads this one and all before.
pub const FORMAT: u32 = 1;

/// What a snapshot is: `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// See [`FORMAT`].
    pub format: u32,
    /// The processor architecture, such as `x86_64`.
    pub arch: String,
    /// Its own name.
    pub id: Id,
    /// The life of the VM that it was taken of, which a rename does not change.
    pub vm: Id,
    /// What users call it; one of a kind among those of that VM which are not removed.
    pub name: String,
    /// The snapshot that the VM came from at that time.
    pub parent: Option<Id>,
    /// When it was taken, in milliseconds since 1970.
    pub created_ms: u64,
    /// What its maker had to say.
    pub comment: String,
    /// Nobody can see it any more; its files stay for as long as more than one snapshot or VM builds on them.
    pub removed: bool,
    /// The VM's spec, as `skiff run --config` takes it.
    pub spec: String,
    /// The guest's memory.
    pub memory: MemoryFiles,
    /// The layers of the disks, those of `disk0` first.
    pub disks: Vec<DiskPoint>,
    /// How long the guest stood still for it, in microseconds.
    pub pause_us: u64,
    /// The other files of the directory, and what they must be. The sum of the file of the memory's pages is over what stands
    /// in its index, and not over its holes.
    pub files: BTreeMap<String, Sum>,
}

impl Manifest {
    /// Its name in a snapshot's directory.
    pub const FILE: &str = "manifest.json";

    /// What its file says.
    ///
    /// # Errors
    /// If it is damaged, newer than this build, or names a file outside of its directory.
    pub(super) fn parse(text: &[u8]) -> Result<Self, SealedError> {
        let manifest: Self = sealed::unseal(text, FORMAT)?;
        let mut names = manifest.files.keys().chain([&manifest.memory.data, &manifest.memory.index]);
        if let Some(name) = names.find(|name| !is_plain(name)) {
            return Err(SealedError::Damaged(format!("it names the file {name:?}")));
        }
        drop(names);
        Ok(manifest)
    }

    /// Its file.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub(super) fn to_text(&self) -> io::Result<Vec<u8>> {
        sealed::seal(self)
    }
}

/// Whether `name` is that of a file in a directory, and nothing else.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.bytes().all(plain)
}

/// Where the memory of a snapshot is: two files of its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryFiles {
    /// The pages.
    pub data: String,
    /// Which pages they are.
    pub index: String,
    /// The snapshot whose memory has those pages that are not here; without one they are zero.
    pub base: Option<Id>,
}

/// A disk at the instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DiskPoint {
    /// Such as `disk0`.
    pub disk: String,
    /// The layer that was the top one, and is frozen since; `None` for a disk that only can be read and has none.
    pub layer: Option<Id>,
    /// How large the guest sees the disk, in bytes.
    pub size: u64,
    /// What the layer's file must be.
    pub sum: Option<Sum>,
    /// What it may be as well: it is being merged with the layer below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merging: Option<Sum>,
}

/// What a file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sum {
    /// Its length in bytes.
    pub len: u64,
    /// The CRC-32 (IEEE) of its content.
    pub crc32: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_of_the_first_version_is_read() {
        let first = Manifest::parse(include_bytes!("fixtures/manifest-1.json")).unwrap();
        assert_eq!((first.name.as_str(), first.arch.as_str()), ("before-upgrade", "x86_64"));
        assert_eq!(first.parent, first.memory.base);
        assert!(
            first.files.contains_key(&first.memory.data) && first.files.contains_key(&first.memory.index)
        );
        let disk = &first.disks[0];
        assert_eq!((disk.size, disk.sum), (64 << 20, Some(Sum { len: 3 << 20, crc32: 2_280_088_846 })));
        let spec = crate::spec::VmSpec::from_toml(&first.spec).unwrap();
        assert_eq!(spec.disks.len(), first.disks.len());
    }
}
