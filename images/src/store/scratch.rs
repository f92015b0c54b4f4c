//! Places on the store's own file system for work that is not done: directories that go with their process, and downloads that stay.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use devices::storage::StoredFile;
use rustix::fs::{FlockOperation, flock};

use super::{Store, StoreError, session};
use crate::digest::Digest;

/// The file that says by its lock whose a scratch directory is: beside it, so that the directory is empty.
const OWNER: &str = ".owner";
/// The same, as the extension of the directory's name.
const OWNER_EXTENSION: &str = "owner";

/// The scratch directories of this process. Nothing else is locked with it.
static OWN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Delete what this process has not finished: it is about to be ended by a signal. Downloads stay, to be gone on with.
pub fn abandon() {
    let own = std::mem::take(&mut *OWN.lock().unwrap_or_else(PoisonError::into_inner));
    for path in own {
        // What cannot be deleted is left to the next one who needs such a directory.
        if remove_tree(&path).is_ok() {
            let _ = fs::remove_file(path.with_extension(OWNER_EXTENSION));
        }
    }
}

/// A directory of this process's own. Dropped, it is gone with all that is in it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    owner: PathBuf,
    /// Locked.
    _file: Box<dyn StoredFile>,
}

/// A download that may be interrupted: a file that stays until it is complete. Locked as long as this lives.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: fs::File,
}

impl Store {
    /// An empty directory, mode 0700.
    ///
    /// # Errors
    /// If the host fails.
    pub fn scratch(&self) -> Result<Scratch, StoreError> {
        self.sweep_dead()?;
        let _shared = self.shared()?;
        let dir = self.dir("scratch")?;
        let failed = || StoreError::io("write in", &dir);
        let (owner, file) = loop {
            let owner = dir.join(format!("{}{OWNER}", session::fresh("")));
            match self.storage.create(&owner) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => break (owner, made.map_err(failed())?),
            }
        };
        if let Some(fd) = file.fd() {
            flock(fd, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed()(error.into()))?;
        }
        let path = owner.with_extension("");
        let _ = remove_tree(&path);
        self.storage.create_dir(&path).map_err(failed())?;
        OWN.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
        Ok(Scratch { path, owner, _file: file })
    }

    /// The download `key` (a digest, or whatever says for sure what is fetched), as far as it has come.
    ///
    /// # Errors
    /// If another process fetches the same, or the host fails.
    pub fn partial(&self, key: &str) -> Result<Partial, StoreError> {
        let _shared = self.shared()?;
        let dir = self.dir("partial")?;
        // Keys may be addresses, which are no names of files.
        let path = dir.join(super::file_name(&Digest::of(key.as_bytes())));
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(StoreError::io("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::Busy { path }),
            locked => locked.map_err(|error| StoreError::io("lock", &path)(error.into()))?,
        }
        Ok(Partial { path, file })
    }

    /// Delete what processes have left that were killed, if nobody else is at the store: it may be gigabytes.
    fn sweep_dead(&self) -> Result<(), StoreError> {
        if self.list_dir(&self.root.join("scratch"))?.is_empty() {
            return Ok(());
        }
        match self.try_alone()? {
            Some(_alone) => self.sweep_unfinished(false),
            None => Ok(()),
        }
    }

    /// Delete the scratch directories of processes that are gone, and with `all` the downloads that nobody is at. The caller has the
    /// store for itself.
    pub(super) fn sweep_unfinished(&self, all: bool) -> Result<(), StoreError> {
        let dir = self.root.join("scratch");
        for name in self.list_dir(&dir)? {
            let owner = match name.strip_suffix(OWNER) {
                Some(_) => dir.join(&name),
                None => dir.join(format!("{name}{OWNER}")),
            };
            if !self.is_in_use(&owner)? {
                let path = owner.with_extension("");
                if let Err(error) = remove_tree(&path) {
                    log::warn!("cannot delete {}: {error}", path.display());
                    continue;
                }
                self.storage.remove_file(&owner).map_err(StoreError::io("delete", &owner))?;
            }
        }
        let dir = self.root.join("partial");
        for name in if all { self.list_dir(&dir)? } else { Vec::new() } {
            let path = dir.join(name);
            if !self.is_in_use(&path)? {
                self.storage.remove_file(&path).map_err(StoreError::io("delete", &path))?;
            }
        }
        Ok(())
    }
}

impl Scratch {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        OWN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.path);
        match remove_tree(&self.path) {
            Ok(()) => _ = fs::remove_file(&self.owner),
            Err(error) => log::warn!("{} is left to skiff image prune: {error}", self.path.display()),
        }
    }
}

impl Partial {
    /// Where it is, for [`Store::adopt`] at its end.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, at its start.
    #[must_use]
    pub fn file(&self) -> &fs::File {
        &self.file
    }

    /// How much has come, in bytes.
    ///
    /// # Errors
    /// If the host fails.
    pub fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Whether nothing has come.
    ///
    /// # Errors
    /// If the host fails.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Forget what has come: it was wrong.
    ///
    /// # Errors
    /// If the host fails.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Delete a directory whose own directories may not let their owner in.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            open_up(path);
            fs::remove_dir_all(path)
        }
        removed => removed,
    }
}

/// Give every directory in a tree to its owner. Symbolic links are not followed.
fn open_up(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut next = vec![path.to_owned()];
    while let Some(dir) = next.pop() {
        let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        next.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
}
