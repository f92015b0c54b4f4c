//! [`pack`].

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::beneath::{Beneath, Place};
use super::remove::names;
use super::tar::{Entry, Kind, Writer};
use super::{Error, Limits, shown};

/// An extended attribute's name and value.
type Attribute = (Vec<u8>, Vec<u8>);

/// The most that the names or the value of attributes may take, in bytes: what Linux lets them.
const ATTRIBUTES: usize = 64 << 10;

/// What is packed, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// A file or a tree below the directory; `.` is the directory itself.
    pub from: PathBuf,
    /// What it is called in the archive; `.`: what is in it has its own names.
    pub name: PathBuf,
    /// Files keep their owners' numbers and their privileges; otherwise they are root's and have none.
    pub owners: bool,
}

/// What went into an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Entries of every kind.
    pub entries: u64,
    /// Bytes of data.
    pub bytes: u64,
    /// Sockets and device nodes, which are left out.
    pub skipped: u64,
}

/// Packs a tree below the directory `dir` into a tar archive, in the order of names. No link is followed, but for those on the way
/// to what is packed, and none of these may lead out.
///
/// # Errors
/// [`Error`].
pub fn pack(dir: impl AsFd, into: impl Write, packing: &Packing) -> Result<Packed, Error> {
    let mut work = Work {
        tar: Writer::new(into),
        owners: packing.owners,
        done: Packed::default(),
        links: HashMap::new(),
    };
    let name = packing.name.as_os_str().as_bytes();
    match Place::of(packing.from.as_os_str().as_bytes(), Limits::default().depth)? {
        None => {
            let here = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(dir.as_fd(), ".", here, Mode::empty());
            work.directory(opened.map_err(|errno| failed("open", name, errno))?, name)?;
        }
        Some(place) => {
            let parent = Beneath::new(dir.as_fd(), false).existing_parent(&place)?;
            if let Some(below) = work.one(&parent, OsStr::from_bytes(place.name()), name)? {
                work.directory(below, name)?;
            }
        }
    }
    work.tar.finish().map_err(Error::Write)?;
    Ok(work.done)
}

struct Work<W> {
    tar: Writer<W>,
    owners: bool,
    done: Packed,
    /// Files that have several names, and the first of these.
    links: HashMap<(u64, u64), Vec<u8>>,
}

/// A directory on the way down.
struct Level {
    dir: OwnedFd,
    path: Vec<u8>,
    /// What is still to be packed of it, from the last name to the first.
    names: Vec<OsString>,
}

impl<W: Write> Work<W> {
    /// A directory with all that is below it.
    fn directory(&mut self, dir: OwnedFd, path: &[u8]) -> Result<(), Error> {
        let stat = rustix::fs::fstat(&dir).map_err(|errno| failed("look at", path, errno))?;
        self.put(&self.header(&stat, Kind::Directory, path, Some(dir.as_fd()))?, &mut io::empty())?;
        let limit = Limits::default().depth;
        let mut levels = vec![level(dir, path)?];
        while let Some(level_now) = levels.last_mut() {
            let Some(name) = level_now.names.pop() else {
                levels.pop();
                continue;
            };
            let path = join(&level_now.path, name.as_bytes());
            let dir = level_now.dir.try_clone().map_err(|source| host_failed("open", &path, source))?;
            let Some(below) = self.one(&dir, &name, &path)? else {
                continue;
            };
            if levels.len() > limit {
                return Err(Error::TooDeep { entry: shown(&path), limit });
            }
            let stat = rustix::fs::fstat(&below).map_err(|errno| failed("look at", &path, errno))?;
            self.put(&self.header(&stat, Kind::Directory, &path, Some(below.as_fd()))?, &mut io::empty())?;
            levels.push(level(below, &path)?);
        }
        Ok(())
    }

    /// Packs what is no directory; opens and returns what is one.
    fn one(&mut self, dir: &OwnedFd, name: &OsStr, path: &[u8]) -> Result<Option<OwnedFd>, Error> {
        let look = |errno| failed("look at", path, errno);
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(look)?;
        let open = |more: OFlags| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | more;
            rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|errno| failed("open", path, errno))
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return open(OFlags::DIRECTORY).map(Some),
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            _ => {
                self.done.skipped = self.done.skipped.saturating_add(1);
                return Ok(None);
            }
        };
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let link = first.clone();
                let entry = Entry { link, ..self.header(&stat, Kind::HardLink, path, None)? };
                self.put(&entry, &mut io::empty())?;
                return Ok(None);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        match kind {
            Kind::File => {
                let file = File::from(open(OFlags::empty())?);
                // Of what was opened, should it have changed meanwhile.
                let stat = rustix::fs::fstat(&file).map_err(look)?;
                let entry = self.header(&stat, Kind::File, path, Some(file.as_fd()))?;
                self.done.bytes = self.done.bytes.saturating_add(entry.stored);
                self.put(&entry, &mut &file)?;
            }
            Kind::Symlink => {
                let link = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(look)?.into_bytes();
                self.put(&Entry { link, ..self.header(&stat, kind, path, None)? }, &mut io::empty())?;
            }
            _ => self.put(&self.header(&stat, kind, path, None)?, &mut io::empty())?,
        }
        Ok(None)
    }

    fn put(&mut self, entry: &Entry, data: &mut dyn io::Read) -> Result<(), Error> {
        self.done.entries = self.done.entries.saturating_add(1);
        self.tar.entry(entry, data).map_err(Error::Write)
    }

    /// What stands before a file; `open` is the file, for its attributes.
    fn header(
        &self,
        stat: &Stat,
        kind: Kind,
        path: &[u8],
        open: Option<BorrowedFd<'_>>,
    ) -> Result<Entry, Error> {
        let bits = if self.owners { 0o7777 } else { 0o1777 };
        let stored = if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or_default() } else { 0 };
        let xattrs = match open {
            Some(file) => self.attributes(file).map_err(|errno| failed("read attributes of", path, errno))?,
            None => Vec::new(),
        };
        Ok(Entry {
            path: if kind == Kind::Directory { [path, b"/"].concat() } else { path.to_vec() },
            kind,
            mode: stat.st_mode & bits,
            uid: if self.owners { stat.st_uid } else { 0 },
            gid: if self.owners { stat.st_gid } else { 0 },
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()),
            link: Vec::new(),
            size: stored,
            stored,
            map: None,
            xattrs,
        })
    }

    /// The attributes that [`super::unpack`] would take.
    fn attributes(&self, file: BorrowedFd<'_>) -> Result<Vec<Attribute>, Errno> {
        let mut names = vec![0; ATTRIBUTES];
        let length = match rustix::fs::flistxattr(file, &mut names) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => 0,
            Err(errno) => return Err(errno),
        };
        let mut attributes = Vec::new();
        for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0) {
            if !super::is_kept(name, self.owners) {
                continue;
            }
            let mut value = vec![0; ATTRIBUTES];
            let length = rustix::fs::fgetxattr(file, OsStr::from_bytes(name), &mut value)?;
            value.truncate(length);
            attributes.push((name.to_vec(), value));
        }
        attributes.sort();
        Ok(attributes)
    }
}

fn level(dir: OwnedFd, path: &[u8]) -> Result<Level, Error> {
    let mut names = names(&dir).map_err(|errno| failed("list", path, errno))?;
    names.sort_by(|one, other| other.cmp(one));
    Ok(Level { dir, path: path.to_vec(), names })
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if matches!(path, b"" | b".") { name.to_vec() } else { [path, b"/", name].concat() }
}

fn failed(doing: &'static str, path: &[u8], errno: Errno) -> Error {
    host_failed(doing, path, errno.into())
}

fn host_failed(doing: &'static str, path: &[u8], source: io::Error) -> Error {
    Error::Entry { doing, entry: shown(path), source }
}
