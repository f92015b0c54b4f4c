//! A [`Storage`] in memory that fails, fills up and loses power when a test wants it to.
//!
//! Every call that changes something or makes it durable is an operation and is counted, from 0 on. A test runs its work once
//! to know how many there are, then again with a [`Fault`] at each of them. After [`Fault::PowerOff`] every call fails;
//! [`FaultyStorage::after_power_cut`] is the world in which the machine starts again: what was synced is there, and of the
//! rest an arbitrary part, by 512-byte sectors of files and by whole changes of names. [`FaultyStorage::after_kill`] is the
//! world after the program alone has died: all is as it was seen.
//!
//! It can be cloned: clones are one storage. Any thread may use it.

mod content;
#[cfg(test)]
mod tests;
mod world;

use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Space, Storage, StoredFile};
use content::SECTOR;
use world::{Dice, NodeId, World};

/// What is to go wrong, and at which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// That operation fails with `EIO`; those after it work. A write may have been done in part.
    Eio {
        /// Its number.
        at: u64,
    },
    /// From that operation on there is no room: all that needs some fails with `ENOSPC`. A write may have been done in part.
    Full {
        /// Its number.
        at: u64,
    },
    /// The power fails before that operation.
    PowerOff {
        /// Its number.
        at: u64,
    },
}

/// What an operation asks of the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    /// Room for more.
    Room,
    /// Nothing of the kind.
    Nothing,
}

#[derive(Debug)]
struct State {
    world: World,
    done: u64,
    fault: Option<Fault>,
    space: Space,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct FaultyStorage(Arc<Mutex<State>>);

impl Default for FaultyStorage {
    fn default() -> Self {
        Self::of(World::new())
    }
}

impl FaultyStorage {
    /// An empty one, which works.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn of(world: World) -> Self {
        let space = Space { total: 1 << 40, free: 1 << 40 };
        Self(Arc::new(Mutex::new(State { world, done: 0, fault: None, space })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many operations were asked for, those that failed among them.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().done
    }

    /// What is to go wrong from now on; `None` is nothing. A power that failed stays off.
    pub fn plan(&self, fault: Option<Fault>) {
        let mut state = self.state();
        if !state.is_off() {
            state.fault = fault;
        }
    }

    /// What there is said to be from now on. Nothing else changes it, and nothing fails by it.
    pub fn say_space(&self, space: Space) {
        self.state().space = space;
    }

    /// Whether the power has failed.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.state().is_off()
    }

    /// The storage as the machine finds it after the power failed now. `seed` decides what has survived. Whoever has files of
    /// this one open does not change that one.
    #[must_use]
    pub fn after_power_cut(&self, seed: u64) -> Self {
        let mut world = self.state().world.clone();
        world.lose_power(&mut Dice(seed));
        Self::of(world)
    }

    /// The storage as the next program finds it after this one has died now.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        Self::of(self.state().world.clone())
    }

    /// Every file that is seen, in order.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.state().world.files().into_iter().map(|(path, _)| path).collect()
    }

    /// The content of a file.
    ///
    /// # Errors
    /// If it is not there.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state();
        state.world.content(state.world.file(path)?)?.bytes()
    }

    /// Copy every file below the host's directory `dir`, with holes where nothing was written.
    ///
    /// # Errors
    /// If the host fails.
    pub fn export(&self, dir: &Path) -> io::Result<()> {
        let state = self.state();
        for (path, id) in state.world.files() {
            let path = dir.join(path.strip_prefix("/").unwrap_or(&path));
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let file = std::fs::File::create(&path)?;
            let content = state.world.content(id)?;
            file.set_len(content.len)?;
            for (offset, bytes) in content.written() {
                file.write_all_at(bytes, offset)?;
            }
        }
        Ok(())
    }

    /// One operation that changes names.
    fn change(&self, asks: Asks, change: impl FnOnce(&mut World) -> io::Result<()>) -> io::Result<()> {
        let mut state = self.state();
        state.admit(asks)?;
        change(&mut state.world)
    }

    fn handle(&self, id: NodeId, write: bool) -> Box<dyn StoredFile> {
        Box::new(OpenFile { storage: self.clone(), id, write })
    }
}

impl State {
    fn is_off(&self) -> bool {
        matches!(self.fault, Some(Fault::PowerOff { at }) if at < self.done)
    }

    /// A look that changes nothing.
    fn look(&self) -> io::Result<&World> {
        if self.is_off() { Err(errno(libc::EIO)) } else { Ok(&self.world) }
    }

    /// Count an operation, and say whether it works.
    fn admit(&mut self, asks: Asks) -> io::Result<()> {
        let number = self.done;
        self.done += 1;
        match self.fault {
            Some(Fault::Eio { at }) if number == at => Err(errno(libc::EIO)),
            Some(Fault::PowerOff { at }) if number >= at => Err(errno(libc::EIO)),
            Some(Fault::Full { at }) if number >= at && asks == Asks::Room => Err(errno(libc::ENOSPC)),
            _ => Ok(()),
        }
    }
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Storage for FaultyStorage {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        let mut state = self.state();
        state.admit(Asks::Room)?;
        let id = state.world.create(path)?;
        drop(state);
        Ok(self.handle(id, true))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Box<dyn StoredFile>> {
        let id = self.state().look()?.file(path)?;
        Ok(self.handle(id, write))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(Asks::Nothing, |world| world.rename(from, to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change(Asks::Nothing, |world| world.remove(path, false))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change(Asks::Room, |world| world.create_dir(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.change(Asks::Nothing, |world| world.remove(path, true))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        self.state().look()?.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.state().look()?.find(path) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change(Asks::Nothing, |world| world.sync_dir(dir))
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let state = self.state();
        state.look()?.find(path)?;
        Ok(state.space)
    }
}

/// An open file of it. It keeps working when its name is gone, as the host's do.
#[derive(Debug)]
struct OpenFile {
    storage: FaultyStorage,
    id: NodeId,
    write: bool,
}

impl OpenFile {
    fn change(&self, asks: Asks, change: impl FnOnce(&mut World) -> io::Result<()>) -> io::Result<()> {
        if !self.write {
            return Err(errno(libc::EBADF));
        }
        self.storage.change(asks, change)
    }
}

impl StoredFile for OpenFile {
    fn read_exact_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.storage.state().look()?.content(self.id)?.read(data, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        if !self.write {
            return Err(errno(libc::EBADF));
        }
        let mut state = self.storage.state();
        let admitted = state.admit(Asks::Room);
        match &admitted {
            Err(_) if state.is_off() => {}
            // What fails may have been done in part, by whole sectors.
            Err(_) => {
                let end = offset + data.len() as u64 / 2;
                let part = (end - end % SECTOR).saturating_sub(offset) as usize;
                state.world.write(self.id, data.get(..part).unwrap_or_default(), offset)?;
            }
            Ok(()) => state.world.write(self.id, data, offset)?,
        }
        admitted
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.storage.state().look()?.content(self.id)?.len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Asks::Nothing, |world| world.set_len(self.id, len))
    }

    fn erase(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Asks::Nothing, |world| world.erase(self.id, offset, len))
    }

    fn sync(&self) -> io::Result<()> {
        self.storage.change(Asks::Nothing, |world| world.sync(self.id))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
