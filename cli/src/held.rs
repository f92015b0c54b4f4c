//! [`Dir`]: a directory that is held open.
//!
//! A guest may have a folder of the host too, and change it at any time: move what is in it, put a link or a pipe in a file's place. What is
//! done through a [`Dir`] is done in the directory that was opened, whatever its path leads to by then, through no link beneath it, and to
//! regular files alone: nothing waits for the other end of a pipe.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use images::tree;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use vmm::snapshot::Id;

/// Beneath the directory, and through no link.
const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// How a directory is opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How a file is opened, besides what is to be done with it.
const FILE: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
/// The mode of a new file, as far as the caller's mask lets it.
const MODE: u32 = 0o666;

/// See the module's documentation. Paths that its functions take begin in it, or with its own path.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// The directory that the user calls `path`: links on the way to it are the user's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let at = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(Self { fd: rustix::fs::open(at, DIRECTORY, Mode::empty())?, path: path.to_owned() })
    }

    /// The same, made if it is not there.
    pub fn open_or_make(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o777).create(path)?;
        Self::open(path)
    }

    /// Where it was when it was opened, for people.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For who keeps files open over a fork.
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn inner<'p>(&self, path: &'p Path) -> &'p Path {
        let inner = path.strip_prefix(&self.path).unwrap_or(path);
        if inner.as_os_str().is_empty() { Path::new(".") } else { inner }
    }

    fn at(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let opened = rustix::fs::openat2(&self.fd, self.inner(path), flags, mode, RESOLVE);
        opened.map_err(|errno| match errno {
            Errno::LOOP | Errno::XDEV => io::Error::other("a link is in its place or on the way to it"),
            // A pipe that is to be written, and that nobody reads.
            Errno::NXIO => no_file(),
            errno => errno.into(),
        })
    }

    /// A directory beneath it.
    pub fn below(&self, path: &Path) -> io::Result<Self> {
        Ok(Self { fd: self.at(path, DIRECTORY, Mode::empty())?, path: self.path.join(self.inner(path)) })
    }

    /// A directory beneath it, made if it is not there, as are those on the way.
    pub fn make(&self, path: &Path) -> io::Result<Self> {
        let mut here = self.below(Path::new("."))?;
        for name in self.inner(path).iter().filter(|name| *name != ".") {
            here.make_one(name, 0o777).or_else(|error| match error.kind() {
                ErrorKind::AlreadyExists => Ok(()),
                _ => Err(error),
            })?;
            here = here.below(Path::new(name))?;
        }
        Ok(here)
    }

    fn make_one(&self, name: &OsStr, mode: u32) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode))?)
    }

    /// A file to be read.
    pub fn file(&self, path: &Path) -> io::Result<File> {
        regular(self.at(path, OFlags::RDONLY | FILE, Mode::empty())?)
    }

    /// A file to be written, as it is or new.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        regular(self.at(path, OFlags::WRONLY | OFlags::CREATE | FILE, Mode::from_raw_mode(MODE))?)
    }

    /// A file to be written, empty.
    pub fn create(&self, path: &Path) -> io::Result<File> {
        let file = self.open_file(path)?;
        file.set_len(0)?;
        Ok(file)
    }

    /// A file that is new.
    pub fn create_new(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | FILE;
        Ok(self.at(Path::new(name), flags, Mode::from_raw_mode(MODE))?.into())
    }

    /// Let the file `name` hold `bytes`: who reads it finds what was there or all of them. What was in its place is gone then, be it a link.
    pub fn replace(&self, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
        let mut aside = OsStr::new(".").to_owned();
        aside.push(name);
        aside.push(format!(".{}", Id::draw()?));
        let written = self.create_new(&aside).and_then(|mut file| file.write_all(bytes));
        let named = written.and_then(|()| Ok(rustix::fs::renameat(&self.fd, &aside, &self.fd, name)?));
        named.inspect_err(|_| {
            // It may not have been made.
            let _ = rustix::fs::unlinkat(&self.fd, &aside, AtFlags::empty());
        })
    }

    /// Whether there is something called `name`, be it a link that leads nowhere.
    pub fn has(&self, name: &OsStr) -> bool {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Remove `name` with all that is below it.
    pub fn remove(&self, name: &OsStr) -> Result<(), tree::Error> {
        tree::remove(&self.fd, Path::new(name))
    }

    /// The names in it, in no order.
    pub fn names(&self) -> io::Result<Vec<std::ffi::OsString>> {
        Ok(tree::names(&self.fd)?)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A directory of nobody else's in another, gone with all that is in it when dropped.
#[derive(Debug)]
pub struct Aside<'d> {
    parent: &'d Dir,
    name: String,
    dir: Dir,
}

impl<'d> Aside<'d> {
    /// In `parent`, called by `prefix` and something that is drawn.
    pub fn new(parent: &'d Dir, prefix: &str) -> io::Result<Self> {
        let name = format!("{prefix}{}", Id::draw()?);
        parent.make_one(OsStr::new(&name), 0o700)?;
        let dir = parent.below(Path::new(&name))?;
        Ok(Self { parent, name, dir })
    }

    /// The directory.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Let the one thing in it be `name` in the directory that it is in. Says whether there is just one, of a kind that `fits`.
    pub fn give(&self, name: &OsStr, fits: impl Fn(FileType) -> bool) -> io::Result<bool> {
        let names = self.dir.names()?;
        let [own] = names.as_slice() else { return Ok(false) };
        let stat = rustix::fs::statat(&self.dir.fd, own, AtFlags::SYMLINK_NOFOLLOW)?;
        if !fits(FileType::from_raw_mode(stat.st_mode)) {
            return Ok(false);
        }
        rustix::fs::renameat(&self.dir.fd, own, &self.parent.fd, name)?;
        Ok(true)
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        // Of a guest's making, it may be of any depth. It may stay as well.
        let _ = self.parent.remove(OsStr::new(&self.name));
    }
}

fn regular(fd: OwnedFd) -> io::Result<File> {
    match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::RegularFile => Ok(fd.into()),
        _ => Err(no_file()),
    }
}

fn no_file() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, "something else than a file is in its place")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn place() -> (tempfile::TempDir, Dir) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        fs::write(dir.path().join("secret"), "mine").unwrap();
        let held = Dir::open(&dir.path().join("shared")).unwrap();
        (dir, held)
    }

    #[test]
    fn files_are_made_read_and_replaced_beneath_it() {
        let (_dir, held) = place();
        let deep = held.make(Path::new("a/b")).unwrap();
        deep.create(Path::new("log")).unwrap().write_all(b"one").unwrap();
        deep.replace(OsStr::new("log"), b"two").unwrap();
        let text = io::read_to_string(held.file(&deep.path().join("log")).unwrap()).unwrap();
        assert_eq!(text, "two");
        assert_eq!(deep.names().unwrap(), ["log"]);
        held.make(Path::new("a/b")).unwrap();
        held.remove(OsStr::new("a")).unwrap();
        assert!(!held.has(OsStr::new("a")));
    }

    #[test]
    fn no_link_leads_out_of_it() {
        let (dir, held) = place();
        let secret = dir.path().join("secret");
        for (link, to) in [("file", "../secret"), ("dir", ".."), ("whole", secret.to_str().unwrap())] {
            symlink(to, held.path().join(link)).unwrap();
        }
        for path in ["file", "whole", "dir/secret", "../secret"] {
            assert!(held.file(Path::new(path)).is_err(), "{path}");
            assert!(held.create(Path::new(path)).is_err(), "{path}");
        }
        assert!(held.make(Path::new("dir/x")).is_err() && held.below(Path::new("dir")).is_err());
        held.replace(OsStr::new("file"), b"theirs").unwrap();
        assert_eq!(fs::read_to_string(held.path().join("file")).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(secret).unwrap(), "mine");
    }

    #[test]
    fn nobody_waits_at_a_pipe() {
        let (_dir, held) = place();
        let made = rustix::fs::mknodat(&held.fd, "pipe", FileType::Fifo, Mode::RWXU, 0);
        made.unwrap();
        for error in [held.file(Path::new("pipe")).err(), held.create(Path::new("pipe")).err()] {
            assert!(error.unwrap().to_string().contains("something else than a file"));
        }
    }

    #[test]
    fn what_is_moved_away_meanwhile_is_still_what_was_opened() {
        let (dir, held) = place();
        fs::create_dir(dir.path().join("keys")).unwrap();
        fs::write(dir.path().join("keys/id"), "secret").unwrap();
        let aside = Aside::new(&held, ".x-").unwrap();
        let path = held.path().join(&aside.name);
        fs::rename(&path, held.path().join("away")).unwrap();
        symlink("../keys", &path).unwrap();
        assert!(!aside.give(OsStr::new("f"), |_| true).unwrap(), "there is nothing in it");
        aside.dir().create(Path::new("own")).unwrap();
        assert!(!aside.give(OsStr::new("f"), |kind| kind == FileType::Symlink).unwrap());
        assert!(aside.give(OsStr::new("f"), |kind| kind == FileType::RegularFile).unwrap());
        drop(aside);
        assert!(held.has(OsStr::new("f")) && dir.path().join("keys/id").exists());
    }
}
