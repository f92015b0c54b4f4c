//! Who may change the store, and when.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use devices::storage::StoredFile;
use rustix::fs::{FlockOperation, flock};

use super::super::sealed;
use super::{Store, StoreError};

/// Names the state directory whose VMs the store is for.
const OWNER: &str = "owner";

/// While this lives, nothing of the store is deleted or replaced. For moments: whoever removes something waits for it.
#[derive(Debug)]
pub struct Pin(#[expect(dead_code, reason = "its close unlocks")] Option<Box<dyn StoredFile>>);

impl Store {
    /// Let nothing be deleted or replaced meanwhile. Any number of threads and processes can at once; who has one must not
    /// remove snapshots or sweep.
    ///
    /// # Errors
    /// If the host fails.
    pub fn pin(&self) -> Result<Pin, StoreError> {
        self.lock("lock", FlockOperation::LockShared)
    }

    /// Wait until nobody else uses or changes what is there.
    pub(super) fn alone(&self) -> Result<Pin, StoreError> {
        self.lock("lock", FlockOperation::LockExclusive)
    }

    /// Wait until nobody else sweeps.
    pub(super) fn sweeping(&self) -> Result<Pin, StoreError> {
        self.lock("sweep.lock", FlockOperation::LockExclusive)
    }

    fn lock(&self, name: &str, how: FlockOperation) -> Result<Pin, StoreError> {
        let path = self.places.root().join(name);
        let Some(file) = self.lock_file(&path).map_err(StoreError::io("open", &path))? else {
            return Ok(Pin(None));
        };
        if let Some(fd) = file.fd() {
            let locked = rustix::io::retry_on_intr(|| flock(fd, how));
            locked.map_err(|error| StoreError::io("lock", &path)(error.into()))?;
        }
        self.check_owner()?;
        Ok(Pin(Some(file)))
    }

    /// Whether the VMs of another state directory use this store: either's sweeps would free what the other's need.
    fn check_owner(&self) -> Result<(), StoreError> {
        let Some(ours) = self.places.owner() else { return Ok(()) };
        let path = self.places.root().join(OWNER);
        match sealed::read_small(self.storage(), &path) {
            Ok(theirs) if theirs == ours.as_os_str().as_bytes() => Ok(()),
            Ok(theirs) => Err(StoreError::Owner {
                theirs: OsStr::from_bytes(&theirs).into(),
                ours: ours.to_owned(),
                path,
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // The first VMs of a user may well be several.
                let written = sealed::replace_together(self.storage(), &path, ours.as_os_str().as_bytes());
                written.map_err(StoreError::io("write", &path))
            }
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// The file to lock, made if it is not there.
    fn lock_file(&self, path: &Path) -> std::io::Result<Option<Box<dyn StoredFile>>> {
        match self.storage.open(path, true) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            opened => return opened.map(Some),
        }
        for dir in [self.places.layers(), self.places.snapshots()] {
            self.storage.create_dir(&dir)?;
        }
        let root = self.places.root();
        self.storage.sync_dir(root)?;
        for above in root.ancestors().skip(1) {
            // Those that were there before may be closed to this user, and need it not.
            let _ = self.storage.sync_dir(above);
        }
        match self.storage.create(path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.storage.open(path, true).map(Some),
            made => made.map(Some),
        }
    }
}
