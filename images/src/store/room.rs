//! Whether the host's file system can take more.

use super::{Store, StoreError};

/// The most that is left free for others, in bytes.
const RESERVE: u64 = 1 << 30;

impl Store {
    /// Refuse what would fill the file system so far that less than 5 % of it is left, or than 1 GiB of a large one. An estimate: others write, too.
    ///
    /// # Errors
    /// If there is not enough room for `bytes` more.
    pub fn room(&self, bytes: u64) -> Result<(), StoreError> {
        // The store may not be there yet.
        let there = self.root.ancestors().find(|path| path.exists()).unwrap_or(&self.root);
        let Ok(host) = rustix::fs::statvfs(there) else { return Ok(()) };
        let unit = host.f_frsize;
        let free =
            host.f_bavail.saturating_mul(unit).saturating_sub(reserve(host.f_blocks.saturating_mul(unit)));
        if bytes > free {
            return Err(StoreError::Room { path: self.root.clone(), needed: bytes, free });
        }
        Ok(())
    }
}

/// What is kept free of a file system of `total` bytes.
fn reserve(total: u64) -> u64 {
    (total / 20).min(RESERVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_fit_is_refused_and_what_is_nothing_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("not/yet"));
        store.room(0).unwrap();
        let error = store.room(1 << 62).unwrap_err().to_string();
        assert!(error.contains("skiff image prune"), "{error}");
        assert_eq!((reserve(1 << 30), reserve(1 << 50)), ((1 << 30) / 20, 1 << 30));
    }
}
