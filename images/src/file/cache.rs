//! Which step's result is where: small files under `cache/` of the store of images.
//!
//! ```text
//! cache/step-KEY.json      a step's result: a snapshot
//! cache/image-KEY.json     a whole file's result: an image
//! cache/KEY.lock           held (flock) by whoever makes what KEY names
//! ```
//! An entry that cannot be read is none: it can be made anew. Whoever deletes a snapshot or an image leaves its entry, which then leads nowhere and
//! is passed over.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::store::{Store, StoreError};

/// A step's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StepResult {
    /// The snapshot's ID.
    pub snapshot: String,
    /// The life of the VM that it was taken of, by which it is kept.
    pub vm: String,
    /// What the step was, for people.
    pub title: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
}

/// A whole file's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ImageResult {
    /// The image's ID in plain digits: nothing is kept for being remembered here.
    image: String,
}

/// The entries.
#[derive(Clone, Debug)]
pub struct Cache<'a> {
    store: &'a Store,
    dir: PathBuf,
}

/// What a key names is made by nobody else while this lives.
#[derive(Debug)]
pub struct Making(#[expect(dead_code, reason = "its close unlocks")] File);

impl<'a> Cache<'a> {
    /// Those of `store`.
    #[must_use]
    pub fn of(store: &'a Store) -> Self {
        Self { store, dir: store.root().join("cache") }
    }

    fn step_path(&self, key: Digest) -> PathBuf {
        self.dir.join(format!("step-{}.json", key.hex()))
    }

    fn image_path(&self, key: Digest) -> PathBuf {
        self.dir.join(format!("image-{}.json", key.hex()))
    }

    /// The result of the step that has this key, if it was ever made.
    ///
    /// # Errors
    /// If the host fails.
    pub fn step(&self, key: Digest) -> Result<Option<StepResult>, StoreError> {
        self.get(&self.step_path(key))
    }

    /// Remember it.
    ///
    /// # Errors
    /// If the host fails.
    pub fn put_step(&self, key: Digest, result: &StepResult) -> Result<(), StoreError> {
        self.put(&self.step_path(key), result)
    }

    /// The image of the file that has this key, if it was ever made and is there.
    ///
    /// # Errors
    /// If the host fails.
    pub fn image(&self, key: Digest) -> Result<Option<Digest>, StoreError> {
        let result: Option<ImageResult> = self.get(&self.image_path(key))?;
        let id = result.and_then(|result| format!("sha256:{}", result.image).parse().ok());
        Ok(id.filter(|id| self.store.get(id).is_ok()))
    }

    /// Remember it.
    ///
    /// # Errors
    /// If the host fails.
    pub fn put_image(&self, key: Digest, image: Digest) -> Result<(), StoreError> {
        self.put(&self.image_path(key), &ImageResult { image: image.hex() })
    }

    /// All steps' results, by their keys.
    ///
    /// # Errors
    /// If the host fails.
    pub fn all_steps(&self) -> Result<Vec<(Digest, StepResult)>, StoreError> {
        let mut all = Vec::new();
        for name in self.store.list_dir(&self.dir)? {
            let Some(key) = key_of(&name, "step-", ".json") else { continue };
            all.extend(self.step(key)?.map(|result| (key, result)));
        }
        Ok(all)
    }

    /// Forget a step's result.
    ///
    /// # Errors
    /// If the host fails.
    pub fn remove_step(&self, key: Digest) -> Result<(), StoreError> {
        self.remove(&self.step_path(key))
    }

    /// Forget all images, and delete locks that nobody holds.
    ///
    /// # Errors
    /// If the host fails.
    pub fn clear(&self) -> Result<(), StoreError> {
        for name in self.store.list_dir(&self.dir)? {
            let path = self.dir.join(&name);
            if key_of(&name, "image-", ".json").is_some() {
                self.remove(&path)?;
            } else if key_of(&name, "", ".lock").is_some()
                && let Ok(file) = OpenOptions::new().write(true).open(&path)
                && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                // Whoever opened it meanwhile sees that it is gone, and makes another.
                self.remove(&path)?;
            }
        }
        Ok(())
    }

    /// Be the one who makes what `key` names. `waiting` is called once if somebody else does so just now, and then this waits.
    ///
    /// # Errors
    /// If the host fails.
    pub fn make(&self, key: Digest, waiting: impl FnOnce()) -> Result<Making, StoreError> {
        let path = self.dir.join(format!("{}.lock", key.hex()));
        let mut waiting = Some(waiting);
        let mut make = || -> io::Result<Making> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            loop {
                let mut options = OpenOptions::new();
                let file =
                    options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
                if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                    if let Some(waiting) = waiting.take() {
                        waiting();
                    }
                    rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
                }
                // It may be one that was cleared away meanwhile.
                if is_at(&file, &path) {
                    return Ok(Making(file));
                }
            }
        };
        make().map_err(StoreError::io("lock", &self.dir))
    }

    fn get<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, StoreError> {
        let text = self.store.read_small(path)?;
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    fn put(&self, path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
        let text = serde_json::to_vec(value).map_err(|error| StoreError::io("write", path)(error.into()))?;
        self.store.replace(path, &text, true)
    }

    fn remove(&self, path: &Path) -> Result<(), StoreError> {
        self.store.storage.remove_file(path).map_err(StoreError::io("delete", path))
    }
}

fn key_of(name: &str, start: &str, end: &str) -> Option<Digest> {
    format!("sha256:{}", name.strip_prefix(start)?.strip_suffix(end)?).parse().ok()
}

/// Whether `path` is the name of this very file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(opened), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (opened.dev(), opened.ino()) == (named.dev(), named.ino())
}
