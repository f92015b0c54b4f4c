//! Freezing a disk for a snapshot.
//!
//! ```text
//! prepare(new top) ─► device stopped ─► freeze: new top takes writes ─► device goes on
//!                                          └─► Frozen::finish, on any thread: the old top becomes durable
//! ```

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use super::chain::{self, MAX_DEPTH};
use super::member::Member;
use super::{Content, Disk, DiskError};
use crate::storage::HostStorage;

/// An empty layer that can take the place of a disk's top.
#[derive(Debug)]
pub struct NextTop(Arc<Member>);

/// A top that was frozen, and is not durable yet.
#[derive(Debug)]
#[must_use = "it is not durable before it is finished"]
pub struct Frozen {
    /// Those below it that nobody has finished, oldest first, and it itself: it is worth as much as what it lies on.
    open: Vec<Arc<Member>>,
    path: PathBuf,
}

impl Disk {
    /// Open and lock the new, empty layer at `path`, which was made on this disk's top, for [`Disk::freeze`]. Changes nothing.
    ///
    /// # Errors
    /// If it cannot be used, is not on this disk's top or not of its size, or the disk has no layers.
    pub fn prepare(&self, path: &Path) -> Result<NextTop, DiskError> {
        let Content::Layers(stack) = &self.content else {
            return Err(DiskError::NoLayers { path: self.path.clone() });
        };
        let stack = stack.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let member = chain::open_top(&HostStorage, path, self.direct.is_some())?;
        let backing = member.image().and_then(chain::backing);
        let on_top = match (backing, stack.uppermost()) {
            (Some((backing, _)), Some(top)) => chain::same_file(&backing, top.path()),
            _ => false,
        };
        if !on_top || member.size() != self.size() {
            return Err(DiskError::NotOnTop { path: path.to_owned(), disk: self.path.clone() });
        }
        if stack.members().count() >= MAX_DEPTH {
            return Err(DiskError::TooDeep { path: path.to_owned() });
        }
        Ok(NextTop(member))
    }

    /// Nobody needs what was written to its top any more (a rollback, or the end of a throw-away): the end of the disk writes nothing back
    /// and waits for nothing. The top's file is left as a crash would leave it. Of a raw disk this does nothing.
    pub fn abandon(&self) {
        if let Some(top) = self.stack().as_ref().and_then(|stack| stack.top()) {
            top.abandon();
        }
    }

    /// Freeze the top, and write to `next` from now on. The device must be stopped: nothing may be in flight. No I/O.
    ///
    /// # Errors
    /// If the disk has no layers or is read only, or has grown since `next` was prepared. Then nothing has changed.
    pub fn freeze(&self, next: NextTop) -> Result<Frozen, DiskError> {
        let no_layers = || DiskError::NoLayers { path: self.path.clone() };
        let Content::Layers(stack) = &self.content else { return Err(no_layers()) };
        let mut stack = stack.lock().unwrap_or_else(PoisonError::into_inner);
        if next.0.size() != self.size() {
            return Err(DiskError::NotOnTop { path: next.0.path().to_owned(), disk: self.path.clone() });
        }
        let (frozen, open) = stack.freeze(next.0).ok_or_else(no_layers)?;
        *stack = Arc::new(frozen);
        let path = open.last().map_or(&*self.path, |top| top.path()).to_owned();
        Ok(Frozen { open, path })
    }
}

impl Frozen {
    /// Make all that was written to it durable, and give up the right to write it: others may read it from now on. Until then a flush
    /// of the guest does the first half. So it goes with those below it that were frozen before and could not be finished then.
    ///
    /// # Errors
    /// If the host fails. It may be tried again; the guest's own flushes fail too as long as it does.
    pub fn finish(&self) -> Result<(), DiskError> {
        self.open.iter().try_for_each(|member| {
            let closed = member.close().and_then(|()| member.file().sync());
            closed.map_err(|source| DiskError::Flush { path: member.path().to_owned(), source })
        })
    }

    /// The file that was frozen.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
