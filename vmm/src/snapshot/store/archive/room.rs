//! [`Room`]: whether the host's file system can take what an archive unpacks to.
//!
//! A small file can unpack to any size. What it announces is compared with what is free before anything of it is unpacked, and what is free is looked at
//! again while it is: others write, too.

use super::super::Store;
use super::ArchiveError;

/// The most that is left free for others, in bytes.
const RESERVE: u64 = 1 << 30;
/// After how many bytes it is looked again.
const LOOK: u64 = 64 << 20;

/// Counts what is unpacked into a store.
pub(super) struct Room<'a> {
    store: &'a Store,
    /// The archive, for messages.
    archive: String,
    /// Bytes that may be written before it is looked again.
    left: u64,
}

impl<'a> Room<'a> {
    pub(super) fn new(store: &'a Store, archive: String) -> Self {
        Self { store, archive, left: 0 }
    }

    /// Refuse what cannot fit: `bytes` are announced. The store is there.
    pub(super) fn announce(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        let room = self.look(bytes)?;
        self.left = room.min(LOOK);
        Ok(())
    }

    /// `bytes` are written next.
    pub(super) fn spend(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        if self.left < bytes {
            self.left = self.look(bytes)?.min(LOOK).max(bytes);
        }
        self.left = self.left.saturating_sub(bytes);
        Ok(())
    }

    /// How many bytes may be written: at least `needed`.
    fn look(&self, needed: u64) -> Result<u64, ArchiveError> {
        let dir = self.store.places().root();
        let space = self.store.storage().space(dir);
        let space = space
            .map_err(ArchiveError::io(format!("ask for the room on the file system of {}", dir.display())))?;
        let keep = reserve(space.total);
        let room = space.free.saturating_sub(keep);
        if room < needed {
            let (archive, dir) = (self.archive.clone(), dir.to_owned());
            return Err(ArchiveError::NoRoom { path: archive, needed, dir, free: space.free, keep });
        }
        Ok(room)
    }
}

/// What is kept free of a file system of `total` bytes: 5 %, and no more than 1 GiB.
fn reserve(total: u64) -> u64 {
    (total / 20).min(RESERVE)
}
