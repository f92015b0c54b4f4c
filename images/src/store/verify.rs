//! Whether blobs are what their names say.
//!
//! A blob that nobody has touched since it was last found in order (its stamps in `checked/` tell) is not read again, so that a start of a VM costs
//! a look at each file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, blob, file_name};
use crate::digest::Digest;
use crate::manifest::Manifest;

/// A file that nobody has touched still has this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    /// In nanoseconds since 1970, as is the next.
    modified: i128,
    changed: i128,
}

impl Store {
    /// Check that all of an image is there, and as it was made. `progress` is told what must be read, in bytes, and how much that is.
    ///
    /// # Errors
    /// If something is missing or damaged, or the host fails.
    pub fn verify(&self, manifest: &Manifest, progress: &mut dyn FnMut(u64, u64)) -> Result<(), StoreError> {
        let mut unknown = Vec::new();
        for blob in manifest.blobs() {
            if !self.has(&blob)? {
                let path = self.blob_path(&blob.digest);
                return Err(match self.storage.exists(&path) {
                    Ok(true) => StoreError::Damaged { path, why: format!("it has not {} bytes", blob.size) },
                    _ => StoreError::missing(path),
                });
            }
            if !self.is_stamped(&blob.digest) {
                unknown.push(blob);
            }
        }
        let total = unknown.iter().map(|blob| blob.size).fold(0, u64::saturating_add);
        let mut before = 0_u64;
        for blob in unknown {
            self.check(&blob.digest, &mut |done| progress(before.saturating_add(done), total))?;
            before = before.saturating_add(blob.size);
        }
        Ok(())
    }

    /// Read a blob to its end.
    fn check(&self, digest: &Digest, progress: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        let file = self.storage.open(&path, false).map_err(StoreError::io("open", &path))?;
        let (found, _) = blob::hash(&*file, progress).map_err(StoreError::io("read", &path))?;
        if found != *digest {
            return Err(StoreError::Damaged { path, why: "its content is another".to_owned() });
        }
        self.stamp(digest);
        Ok(())
    }

    /// Note that a blob is in order. Whoever cannot reads it again next time.
    pub(super) fn stamp(&self, digest: &Digest) {
        let Some(stamp) = stamp(&self.blob_path(digest)) else { return };
        let text = serde_json::to_vec(&stamp).unwrap_or_default();
        if let Err(error) = self.replace(&self.stamps().join(file_name(digest)), &text, false) {
            log::info!("{error}");
        }
    }

    /// Whether a blob was in order and nobody has touched it since.
    pub(super) fn is_stamped(&self, digest: &Digest) -> bool {
        let text = self.read_small(&self.stamps().join(file_name(digest))).ok().flatten().unwrap_or_default();
        let then: Option<Stamp> = serde_json::from_slice(&text).ok();
        then.is_some() && then == stamp(&self.blob_path(digest))
    }

    pub(super) fn stamps(&self) -> std::path::PathBuf {
        self.root.join("checked")
    }
}

/// Of a host's file.
fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let file = std::fs::symlink_metadata(path).ok()?;
    let nanoseconds = |seconds: i64, part: i64| i128::from(seconds) * 1_000_000_000 + i128::from(part);
    Some(Stamp {
        device: file.dev(),
        inode: file.ino(),
        len: file.len(),
        modified: nanoseconds(file.mtime(), file.mtime_nsec()),
        changed: nanoseconds(file.ctime(), file.ctime_nsec()),
    })
}
