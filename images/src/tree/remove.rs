//! [`remove`].

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{Error, shown};

/// Removes `name`, one name, in the directory `dir`, with all that is below it. No link is followed. What is not there is no error.
///
/// Directories that their owner may not enter are made enterable first, as far as the caller may do that.
///
/// # Errors
/// [`Error::Entry`], and [`Error::Moved`] if somebody else moves a directory of it meanwhile.
pub fn remove(dir: impl AsFd, name: &Path) -> Result<(), Error> {
    let name = name.as_os_str();
    if matches!(name.as_bytes(), b"" | b"." | b"..") || name.as_bytes().contains(&b'/') {
        return Err(Error::Outside { entry: shown(name.as_bytes()) });
    }
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // The second is POSIX's word for a directory.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(failed(name, errno)),
    }
    remove_tree(dir.as_fd(), name)
}

/// Removes all that is in a directory but for the inodes in `kept`, in which no more than what is in `kept` stays either.
pub fn empty(dir: impl AsFd, kept: &HashSet<u64>) -> Result<(), Error> {
    let mut rest = vec![dir.as_fd().try_clone_to_owned().map_err(|source| Error::Entry {
        doing: "remove",
        entry: "it".to_owned(),
        source,
    })?];
    while let Some(dir) = rest.pop() {
        for name in names(&dir).map_err(|errno| failed(OsStr::new("."), errno))? {
            let stat = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW);
            if !kept.contains(&stat.map_err(|errno| failed(&name, errno))?.st_ino) {
                remove(&dir, Path::new(&name))?;
            } else if let Ok(below) = open(dir.as_fd(), &name) {
                rest.push(below);
            }
        }
    }
    Ok(())
}

/// What a directory is, whatever it is called: device and inode.
type Identity = (u64, u64);

/// A directory on the way down.
struct Level {
    name: Vec<u8>,
    identity: Identity,
    /// Directories in it that are still there.
    left: Vec<Vec<u8>>,
}

/// A removal that is under way.
///
/// It goes down by one descriptor and up by `..`, so that no depth takes more than a few descriptors, and that none takes more stack. Whoever
/// shares the tree, such as a guest with a folder, may move a directory meanwhile: where `..` leads is looked at before anything is
/// done there.
struct Removal<'a> {
    top: BorrowedFd<'a>,
    here: OwnedFd,
    /// From the first directory to the one that `here` is.
    path: Vec<Level>,
}

fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Error> {
    let mut removal = Removal::begin(dir, name)?;
    while removal.step()? {}
    Ok(())
}

impl<'a> Removal<'a> {
    fn begin(top: BorrowedFd<'a>, name: &OsStr) -> Result<Self, Error> {
        let (here, level) = enter(top, name.as_bytes().to_vec())?;
        Ok(Self { top, here, path: vec![level] })
    }

    /// Goes down into a directory, or up out of one that is empty. Says whether there is more to do.
    fn step(&mut self) -> Result<bool, Error> {
        if let Some(next) = self.path.last_mut().and_then(|level| level.left.pop()) {
            let (below, level) = enter(self.here.as_fd(), next)?;
            self.here = below;
            self.path.push(level);
            return Ok(true);
        }
        let Some(done) = self.path.pop() else { return Ok(false) };
        let name = OsStr::from_bytes(&done.name);
        let Some(above) = self.path.last() else {
            gone(rustix::fs::unlinkat(self.top, name, AtFlags::REMOVEDIR), name)?;
            return Ok(false);
        };
        self.here = up(&self.here, name, above.identity)?;
        gone(rustix::fs::unlinkat(&self.here, name, AtFlags::REMOVEDIR), name)?;
        Ok(true)
    }
}

/// Opens a directory, removes what in it is none, and notes the others for later.
fn enter(dir: BorrowedFd<'_>, name: Vec<u8>) -> Result<(OwnedFd, Level), Error> {
    let opened = open(dir, OsStr::from_bytes(&name)).and_then(|here| {
        let (identity, left) = (identity(&here)?, fill(&here)?);
        Ok((here, identity, left))
    });
    let (here, identity, left) = opened.map_err(|errno| failed(OsStr::from_bytes(&name), errno))?;
    Ok((here, Level { name, identity, left }))
}

/// The directory that `here`, which is called `name`, was entered from. Its mode stays, for it may be anybody's until it is known.
fn up(here: &OwnedFd, name: &OsStr, expected: Identity) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = rustix::fs::openat(here, "..", flags, Mode::empty()).map_err(|errno| failed(name, errno))?;
    if identity(&above).map_err(|errno| failed(name, errno))? == expected {
        Ok(above)
    } else {
        Err(Error::Moved { entry: shown(name.as_bytes()) })
    }
}

fn identity(dir: &OwnedFd) -> Result<Identity, Errno> {
    let stat = rustix::fs::fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Removes what is no directory in `here`. Says what is one.
fn fill(here: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut directories = Vec::new();
    for name in names(here)? {
        match rustix::fs::unlinkat(here, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => directories.push(name.into_vec()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(directories)
}

/// Opens a directory, and lets its owner in if that is what is missing.
fn open(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, name, flags, Mode::empty());
    let opened = match opened {
        Err(Errno::ACCESS) => {
            let_in(dir, name)?;
            rustix::fs::openat(dir, name, flags, Mode::empty())?
        }
        opened => opened?,
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        // What cannot be changed is seen at once when something is removed.
        let _ = rustix::fs::fchmod(&opened, Mode::RWXU);
    }
    Ok(opened)
}

/// Lets its owner into the directory `name`: by a descriptor of it, since the name may be a link to elsewhere a moment later.
fn let_in(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    // fchmod(2) takes no such descriptor.
    rustix::fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), Mode::RWXU)
}

/// The names in a directory, in no order.
///
/// # Errors
/// If it cannot be read.
pub fn names(dir: impl AsFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn gone(result: Result<(), Errno>, name: &OsStr) -> Result<(), Error> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed(name, errno)),
    }
}

fn failed(name: &OsStr, errno: Errno) -> Error {
    Error::Entry { doing: "remove", entry: shown(name.as_bytes()), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_directory_that_is_moved_while_it_is_emptied_leads_to_nothing_else() {
        let temporary = tempfile::tempdir().unwrap();
        let at = |path: &str| temporary.path().join(path);
        fs::create_dir_all(at("in/a/b/c")).unwrap();
        fs::create_dir_all(at("out/kept/below")).unwrap();
        fs::write(at("out/file"), "sentinel").unwrap();
        let dir = File::open(at("in")).unwrap();
        let mut removal = Removal::begin(dir.as_fd(), OsStr::new("a")).unwrap();
        assert!(removal.step().unwrap() && removal.step().unwrap());
        // It is in a/b/c now, and up from there is no longer a/b.
        fs::rename(at("in/a/b/c"), at("out/c")).unwrap();
        fs::create_dir(at("in/a/b/c")).unwrap();
        let error = removal.step().unwrap_err();
        assert!(matches!(&error, Error::Moved { entry } if entry == "\"c\""), "{error:?}");
        assert!(error.to_string().contains("was moved"), "{error}");
        for path in ["out/c", "out/file", "out/kept/below", "in/a/b/c"] {
            assert!(at(path).exists(), "{path}");
        }
        remove(&dir, Path::new("a")).unwrap();
        assert!(!at("in/a").exists());
    }
}
