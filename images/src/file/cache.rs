//! Which step's result is where: small files under `cache/` of the store of images.
//!
//! ```text
//! cache/steps/KEY.json     a step's result: a snapshot
//! cache/images/KEY.json    a whole file's result: an image
//! cache/KEY.lock           held (flock) by whoever makes what KEY names
//! ```
//! An entry is written aside and renamed, and one that cannot be read is none: it can be made anew. Whoever deletes a snapshot or an image leaves
//! its entry, which then leads nowhere and is passed over.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The longest entry that is read, in bytes.
const LONGEST: u64 = 64 * 1024;

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
pub struct ImageResult {
    /// The image's ID.
    pub image: Digest,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
}

/// The entries.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

/// What a key names is made by nobody else while this lives.
#[derive(Debug)]
pub struct Making(#[expect(dead_code, reason = "its close unlocks")] File);

impl Cache {
    /// The one in this directory, which is made when something is put there.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The result of the step that has this key, if it was ever made.
    #[must_use]
    pub fn step(&self, key: Digest) -> Option<StepResult> {
        read(&self.steps().join(file_name(key)))
    }

    /// Remember it.
    ///
    /// # Errors
    /// If the host fails.
    pub fn put_step(&self, key: Digest, result: &StepResult) -> io::Result<()> {
        self.put(&self.steps(), key, result)
    }

    /// The image of the file that has this key, if it was ever made.
    #[must_use]
    pub fn image(&self, key: Digest) -> Option<ImageResult> {
        read(&self.images().join(file_name(key)))
    }

    /// Remember it.
    ///
    /// # Errors
    /// If the host fails.
    pub fn put_image(&self, key: Digest, result: &ImageResult) -> io::Result<()> {
        self.put(&self.images(), key, result)
    }

    /// All steps' results.
    ///
    /// # Errors
    /// If the host fails.
    pub fn all_steps(&self) -> io::Result<Vec<(Digest, StepResult)>> {
        let mut all = Vec::new();
        let entries = match fs::read_dir(self.steps()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(all),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let key = hex.and_then(|hex| format!("sha256:{hex}").parse().ok());
            all.extend(key.and_then(|key| Some((key, self.step(key)?))));
        }
        all.sort_by_key(|(key, _)| *key);
        Ok(all)
    }

    /// Forget a step's result.
    ///
    /// # Errors
    /// If the host fails.
    pub fn remove_step(&self, key: Digest) -> io::Result<()> {
        gone(fs::remove_file(self.steps().join(file_name(key))))
    }

    /// Forget every image that is not among `there`.
    ///
    /// # Errors
    /// If the host fails.
    pub fn keep_images(&self, there: &[Digest]) -> io::Result<()> {
        let entries = match fs::read_dir(self.images()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if !read::<ImageResult>(&path).is_some_and(|result| there.contains(&result.image)) {
                gone(fs::remove_file(path))?;
            }
        }
        Ok(())
    }

    /// Be the one who makes what `key` names. `waiting` is called once if somebody else does so just now, and then this waits.
    ///
    /// # Errors
    /// If the host fails.
    pub fn make(&self, key: Digest, waiting: impl FnOnce()) -> io::Result<Making> {
        make_dir(&self.dir)?;
        let path = self.dir.join(format!("{}.lock", key.hex()));
        let mut waiting = Some(waiting);
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                if let Some(waiting) = waiting.take() {
                    waiting();
                }
                rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
            }
            // It may be one that was swept away meanwhile.
            if same_file(&file, &path) {
                return Ok(Making(file));
            }
        }
    }

    /// Delete locks that nobody holds.
    pub fn sweep_locks(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|end| end == "lock")
                && let Ok(file) = OpenOptions::new().write(true).open(&path)
                && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                // Whoever opened it meanwhile sees that it is gone, and makes another.
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn steps(&self) -> PathBuf {
        self.dir.join("steps")
    }

    fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    fn put(&self, dir: &Path, key: Digest, result: &impl Serialize) -> io::Result<()> {
        make_dir(dir)?;
        write(&dir.join(file_name(key)), result)
    }
}

/// Let the file at `path` be `value` as JSON: at once, and durable.
pub(crate) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    })();
    if written.is_err() {
        // The first error is the one that matters.
        let _ = fs::remove_file(&aside);
    }
    written
}

/// What stands at `path`; `None` if that is nothing of use.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let file = File::open(path).ok()?;
    let value = serde_json::from_reader(io::Read::take(file, LONGEST));
    value.map_err(|error| log::info!("{} is passed over: {error}", path.display())).ok()
}

pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Whoever else removed it did the same.
pub(crate) fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn file_name(key: Digest) -> String {
    format!("{}.json", key.hex())
}

fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let (Ok(opened), Ok(named)) = (file.metadata(), fs::metadata(path)) else { return false };
    (opened.dev(), opened.ino()) == (named.dev(), named.ino())
}
