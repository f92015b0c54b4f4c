//! What a living process has added or taken, so that no prune takes it away before it has a name, or is a VM's.
//!
//! A session is a locked file in `using/` with a digest a line. It is written under the store's shared lock, and read under the exclusive one:
//! a prune sees a digest before the blob that it names is there. When its process is gone, so is the lock, and the file is nothing.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::storage::{Storage, StoredFile};
use rustix::fs::{FlockOperation, flock};

use super::{Locked, Store, StoreError};
use crate::digest::Digest;

/// This process's file. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Session {
    path: PathBuf,
    file: Box<dyn StoredFile>,
    end: u64,
    digests: BTreeSet<Digest>,
    storage: std::sync::Arc<dyn Storage>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Nobody minds a file without a lock: the next prune removes it.
        let _ = self.storage.remove_file(&self.path);
    }
}

impl Store {
    /// Let no prune touch `digest` for as long as this store lives.
    pub(super) fn note(&self, _: &Locked, digest: Digest) -> Result<(), StoreError> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.is_none() {
            *session = Some(self.begin()?);
        }
        let Some(session) = session.as_mut() else { return Ok(()) };
        if !session.digests.contains(&digest) {
            let line = format!("{digest}\n");
            session
                .file
                .write_all_at(line.as_bytes(), session.end)
                .map_err(StoreError::io("write", &session.path))?;
            session.end = session.end.saturating_add(line.len() as u64);
            session.digests.insert(digest);
        }
        Ok(())
    }

    fn begin(&self) -> Result<Session, StoreError> {
        let dir = self.dir("using")?;
        let (path, file) =
            create_locked(&*self.storage, &dir, "").map_err(StoreError::io("write in", &dir))?;
        Ok(Session { path, file, end: 0, digests: BTreeSet::new(), storage: self.storage.clone() })
    }

    /// Remove the files of processes that were killed. A prune does so as well.
    ///
    /// # Errors
    /// If the host fails.
    pub fn forget_dead(&self) -> Result<(), StoreError> {
        let _alone = self.lock(FlockOperation::LockExclusive)?;
        self.noted().map(drop)
    }

    /// What living processes have added or taken. Those of dead ones are removed. The caller has the store for itself.
    pub(super) fn noted(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let dir = self.root.join("using");
        let mut all = BTreeSet::new();
        for name in self.list_dir(&dir)? {
            let path = dir.join(name);
            if !self.is_in_use(&path)? {
                self.storage.remove_file(&path).map_err(StoreError::io("delete", &path))?;
                continue;
            }
            let text = self.read_small(&path)?.unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            all.extend(text.lines().filter_map(|line| line.parse::<Digest>().ok()));
        }
        Ok(all)
    }

    /// Whether a living process has locked the file. One that is gone is not in use.
    pub(super) fn is_in_use(&self, path: &Path) -> Result<bool, StoreError> {
        match self.storage.open(path, true) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            opened => Ok(is_locked(&*opened.map_err(StoreError::io("open", path))?)),
        }
    }
}

/// Whether another open file has the lock.
fn is_locked(file: &dyn StoredFile) -> bool {
    let locked = file.fd().map(|fd| flock(fd, FlockOperation::NonBlockingLockExclusive));
    matches!(locked, Some(Err(rustix::io::Errno::WOULDBLOCK)))
}

/// A file of a name that nobody has.
pub(super) fn create_new(
    storage: &dyn Storage,
    dir: &Path,
    prefix: &str,
) -> io::Result<(PathBuf, Box<dyn StoredFile>)> {
    loop {
        let path = dir.join(fresh(prefix));
        match storage.create(&path) {
            // Left behind by a process that had the same number.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return Ok((path, made?)),
        }
    }
}

/// The same, locked. The caller has the store's shared lock, so that no prune finds it before.
pub(super) fn create_locked(
    storage: &dyn Storage,
    dir: &Path,
    prefix: &str,
) -> io::Result<(PathBuf, Box<dyn StoredFile>)> {
    let (path, file) = create_new(storage, dir, prefix)?;
    if let Some(fd) = file.fd() {
        flock(fd, FlockOperation::NonBlockingLockExclusive)?;
    }
    Ok((path, file))
}

/// A name that this process gives once.
pub(super) fn fresh(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{prefix}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
