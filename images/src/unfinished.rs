//! What this process has not finished: files and directories that are of no use to anybody if it ends now.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// All that there is. Nothing else is locked with it.
static ALL: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A file or directory that [`abandon`] deletes as long as this lives. It need not be there yet.
#[derive(Debug)]
pub struct Unfinished(PathBuf);

impl Unfinished {
    /// The one at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        ALL.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        ALL.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// End the programs that this process has started, which takes seconds at most, and delete what it has not finished: it is about to be ended
/// by a signal. Downloads stay, to be gone on with.
pub fn abandon() {
    crate::child::end_all();
    let all = std::mem::take(&mut *ALL.lock().unwrap_or_else(PoisonError::into_inner));
    for path in all {
        // What cannot be deleted is left to whoever finds it.
        let _ = remove(&path);
    }
}

/// Delete a file, or a directory, whose own directories may not let their owner in. What is not there need not be.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => fs::remove_file(path),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_finished_stays_and_the_rest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("tree/below")).unwrap();
        fs::set_permissions(path("tree/below"), std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
        for name in ["file", "done"] {
            fs::write(path(name), "").unwrap();
        }
        let [tree, file, done, nothing] =
            ["tree", "file", "done", "nothing"].map(|name| Unfinished::new(path(name)));
        drop(done);
        // As abandon does, but that is everybody's in this process.
        for unfinished in [&tree, &file, &nothing] {
            assert!(ALL.lock().unwrap().contains(unfinished.path()));
            remove(unfinished.path()).unwrap();
        }
        assert!(!ALL.lock().unwrap().contains(&path("done")));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
