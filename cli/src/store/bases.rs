//! What tests start from: snapshots of guests that have booted and had their setup, `bases/` in the data directory.
//!
//! ```text
//! bases/SLOT.json     one snapshot, and the key of all that it depends on
//! bases/….lock        held, shared, by whoever starts tests from that snapshot
//! ```
//! A slot is a place for one snapshot of one image, machine and project: when the setup changes, the new snapshot takes the old one's place. What
//! cannot be read is not there: it can be made anew. As long as its slot is there, so is the snapshot, as if its VM were. One whose place was taken while tests start
//! from it has a slot of its own until they are done.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use anyhow::{Context, Result};
use images::digest::Digest;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vmm::snapshot::Id;
use vmm::snapshot::store::User;

use super::Store;
use super::images::user;
use super::state::replace;

/// A snapshot that tests start from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Base {
    /// For people.
    pub name: String,
    /// Of all that it depends on.
    pub key: String,
    /// The image, in plain digits.
    pub image: String,
    /// The snapshot's ID.
    pub snapshot: String,
    /// The life of the VM that it was taken of, which no VM has any more.
    pub vm: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// How many lines its kernel had said of want of memory.
    #[serde(default)]
    pub oom_lines: usize,
    /// Another has taken its place.
    #[serde(default)]
    pub outdated: bool,
}

/// As long as this is there, so is the snapshot.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

impl Store {
    fn bases_dir(&self) -> PathBuf {
        self.data.join("bases")
    }

    /// What is in `slot`, if it makes sense.
    pub fn base(&self, slot: &Digest) -> Option<Base> {
        let text = fs::read(self.bases_dir().join(format!("{}.json", slot.hex()))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Let `base` be in `slot`. What was there before is free as soon as nobody holds it.
    pub fn set_base(&self, slot: &Digest, base: &Base) -> Result<()> {
        let before = self.base(slot).filter(|before| before.snapshot != base.snapshot);
        // First: what is in no slot may be swept.
        if let Some(before) = before {
            let own = Digest::of(before.snapshot.as_bytes());
            self.write_base(&own, &Base { outdated: true, ..before })?;
        }
        self.write_base(slot, base)?;
        self.forget_outdated_bases();
        Ok(())
    }

    fn write_base(&self, slot: &Digest, base: &Base) -> Result<()> {
        let text = serde_json::to_vec_pretty(base).context("this cannot be written as JSON")?;
        replace(&self.make_bases_dir()?, &format!("{}.json", slot.hex()), &text, true)
    }

    fn make_bases_dir(&self) -> Result<PathBuf> {
        let dir = self.bases_dir();
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Hold the snapshot `id` of a base, which is to be looked at only then: it may be gone. Nothing if it is being forgotten.
    pub fn hold_base(&self, id: &str) -> Result<Option<Hold>> {
        Ok(self.lock_base(id, FlockOperation::NonBlockingLockShared)?.map(|lock| Hold { _lock: lock }))
    }

    fn base_lock(&self, id: &str) -> PathBuf {
        // An ID that was read may be anything.
        self.bases_dir().join(format!("{}.lock", Digest::of(id.as_bytes()).hex()))
    }

    fn lock_base(&self, id: &str, how: FlockOperation) -> Result<Option<File>> {
        self.make_bases_dir()?;
        let path = self.base_lock(id);
        let failed = || format!("cannot lock {}", path.display());
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(failed)?;
        match flock(&file, how) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            locked => locked.map(|()| Some(file)).with_context(failed),
        }
    }

    /// All of them, by their slots.
    pub fn bases(&self) -> Result<Vec<(Digest, Base)>> {
        let dir = self.bases_dir();
        let failed = || format!("cannot list {}", dir.display());
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(failed)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.with_context(failed)?.file_name();
            let slot = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let slot = slot.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            all.extend(slot.and_then(|slot| Some((slot, self.base(&slot)?))));
        }
        all.sort_by(|(_, one), (_, other)| (&one.name, &one.key).cmp(&(&other.name, &other.key)));
        Ok(all)
    }

    /// Forget those that `goes` says, but none that somebody holds. Says how many; what they took is free after a sweep.
    pub fn forget_bases(&self, goes: impl Fn(&Base) -> bool) -> Result<usize> {
        let mut count = 0_usize;
        for (slot, base) in self.bases()?.into_iter().filter(|(_, base)| goes(base)) {
            let Some(_alone) = self.lock_base(&base.snapshot, FlockOperation::NonBlockingLockExclusive)?
            else {
                continue;
            };
            // Another may have come into its place meanwhile.
            if self.base(&slot).is_none_or(|now| now.snapshot != base.snapshot) {
                continue;
            }
            let path = self.bases_dir().join(format!("{}.json", slot.hex()));
            match fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                removed => removed.with_context(|| format!("cannot delete {}", path.display()))?,
            }
            self.free_snapshot(&base.snapshot);
            // Last: whoever has opened it sees that the snapshot was removed. It may stay as well.
            let _ = fs::remove_file(self.base_lock(&base.snapshot));
            count = count.saturating_add(1);
        }
        Ok(count)
    }

    /// How many nobody holds.
    pub fn free_bases(&self) -> Result<usize> {
        let mut count = 0_usize;
        for (_, base) in self.bases()? {
            let alone = self.lock_base(&base.snapshot, FlockOperation::NonBlockingLockExclusive)?;
            count = count.saturating_add(alone.is_some().into());
        }
        Ok(count)
    }

    /// Forget those whose place another has taken, if nobody holds them.
    pub fn forget_outdated_bases(&self) {
        if let Err(error) = self.forget_bases(|base| base.outdated) {
            log::info!("the snapshots of tests: {error:#}");
        }
    }

    /// Forget those of images that have no name any more: nobody will test on them.
    pub fn forget_stale_bases(&self) -> Result<usize> {
        if self.bases()?.is_empty() {
            return Ok(0);
        }
        let (images, wrong) = self.images().list()?;
        if !wrong.is_empty() {
            // It may be one of those.
            return Ok(0);
        }
        self.forget_bases(|base| {
            base.outdated
                || !images.iter().any(|image| image.id.hex() == base.image && !image.names.is_empty())
        })
    }

    /// Those for whom these snapshots are kept: as if their VMs were still there.
    pub(super) fn base_users(&self) -> Result<Vec<User>> {
        let of = |(_, base): (Digest, Base)| {
            user(format!("tests on {}", base.name), &base.vm, &base.snapshot, String::new())
        };
        Ok(self.bases()?.into_iter().filter_map(of).collect())
    }

    fn free_snapshot(&self, id: &str) {
        // It may be gone.
        if let Some(Err(error)) = id.parse::<Id>().ok().map(|id| self.snapshots().mark_removed(id)) {
            log::info!("the snapshot of tests: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(name: &str, snapshot: &str) -> Base {
        Base {
            name: name.to_owned(),
            key: "k".to_owned(),
            image: Digest::of(name.as_bytes()).hex(),
            snapshot: snapshot.to_owned(),
            vm: "0123456789abcdef".to_owned(),
            created_ms: 1,
            oom_lines: 0,
            outdated: false,
        }
    }

    #[test]
    fn a_slot_holds_one_and_a_sweep_knows_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { dir: dir.path().to_owned(), data: dir.path().join("data") };
        let slot = Digest::of(b"slot");
        assert!(store.bases().unwrap().is_empty() && store.base(&slot).is_none());
        store.set_base(&slot, &base("a", "1123456789abcdef")).unwrap();
        store.set_base(&slot, &base("a", "2123456789abcdef")).unwrap();
        store.set_base(&Digest::of(b"other"), &base("b", "3123456789abcdef")).unwrap();
        let users = store.base_users().unwrap();
        assert_eq!(
            users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(),
            ["tests on a", "tests on b"]
        );
        assert_eq!(users[0].record.parent, "2123456789abcdef".parse().ok());
        assert_eq!(store.forget_bases(|base| base.name == "a").unwrap(), 1);
        assert_eq!(store.forget_stale_bases().unwrap(), 1, "its image is not there");
        assert!(store.base_users().unwrap().is_empty());
    }

    #[test]
    fn what_tests_start_from_stays_until_they_are_done() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { dir: dir.path().to_owned(), data: dir.path().join("data") };
        let slot = Digest::of(b"slot");
        let (old, new) = (base("a", "1123456789abcdef"), base("a", "2123456789abcdef"));
        store.set_base(&slot, &old).unwrap();
        let hold = store.hold_base(&old.snapshot).unwrap().unwrap();
        let again = store.hold_base(&old.snapshot).unwrap().unwrap();
        store.set_base(&slot, &new).unwrap();
        assert_eq!(store.base(&slot), Some(new));
        assert_eq!(store.base_users().unwrap().len(), 2, "a sweep leaves both");
        assert_eq!(store.forget_bases(|_| true).unwrap(), 1);
        drop(hold);
        store.forget_outdated_bases();
        assert_eq!(store.base_users().unwrap().len(), 1);
        drop(again);
        store.forget_outdated_bases();
        assert!(store.bases().unwrap().is_empty());
        assert_eq!(fs::read_dir(store.bases_dir()).unwrap().count(), 0, "no lock is left");
    }

    #[test]
    fn what_makes_no_sense_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store { dir: dir.path().to_owned(), data: dir.path().join("data") };
        let slot = Digest::of(b"slot");
        store.set_base(&slot, &base("a", "not an id")).unwrap();
        assert!(store.base_users().unwrap().is_empty());
        fs::write(store.bases_dir().join(format!("{}.json", slot.hex())), "{").unwrap();
        fs::write(store.bases_dir().join("x.json"), "{}").unwrap();
        assert!(store.bases().unwrap().is_empty());
    }
}
