//! Which snapshot an image is started from. The snapshot itself is among those of VMs, which this crate does not know.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, digest_of, file_name};
use crate::digest::Digest;

/// A VM of an image that has booted, as it was then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Warm {
    /// The snapshot's ID.
    pub snapshot: String,
    /// The life of the VM that it was taken of, which no VM has any more.
    pub vm: String,
    /// How many vCPUs it has.
    pub cpus: u8,
    /// How much memory, in bytes.
    pub memory: u64,
}

impl Store {
    fn warm_path(&self, id: &Digest) -> PathBuf {
        self.root.join("warm").join(format!("{}.json", file_name(id)))
    }

    /// Let the image `id` start from this snapshot, or with `None` boot.
    ///
    /// # Errors
    /// If the host fails.
    pub fn set_warm(&self, id: &Digest, warm: Option<&Warm>) -> Result<(), StoreError> {
        let _shared = self.shared()?;
        let path = self.warm_path(id);
        let Some(warm) = warm else {
            return self.storage.remove_file(&path).map_err(StoreError::io("delete", &path));
        };
        let text =
            serde_json::to_vec_pretty(warm).map_err(|error| StoreError::io("write", &path)(error.into()))?;
        self.replace(&path, &text, true)
    }

    /// The snapshot that the image `id` starts from. A note that cannot be read is none: the image boots.
    ///
    /// # Errors
    /// If the host fails.
    pub fn warm(&self, id: &Digest) -> Result<Option<Warm>, StoreError> {
        let text = self.read_small(&self.warm_path(id))?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// All images that start from a snapshot.
    ///
    /// # Errors
    /// If the host fails.
    pub fn all_warm(&self) -> Result<Vec<(Digest, Warm)>, StoreError> {
        let mut all = Vec::new();
        for name in self.list_dir(&self.root.join("warm"))? {
            let Some(id) = name.strip_suffix(".json").and_then(digest_of) else { continue };
            all.extend(self.warm(&id)?.map(|warm| (id, warm)));
        }
        Ok(all)
    }
}
