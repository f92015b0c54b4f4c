//! [`remove`].

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::{Error, shown};

/// Removes `name`, one name, in the directory `dir`, with all that is below it. No link is followed. What is not there is no error.
///
/// Directories that their owner may not enter are made enterable first, as far as the caller may do that.
///
/// # Errors
/// [`Error::Entry`].
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
            let name = OsStr::from_bytes(name.as_bytes());
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW);
            if !kept.contains(&stat.map_err(|errno| failed(name, errno))?.st_ino) {
                remove(&dir, Path::new(name))?;
            } else if let Ok(below) = open(dir.as_fd(), name) {
                rest.push(below);
            }
        }
    }
    Ok(())
}

/// Goes down by one descriptor and up by `..`, so that no depth takes more than a few descriptors, and that none takes more stack.
fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Error> {
    let mut path = vec![(name.as_bytes().to_vec(), Vec::new())];
    let top = open(dir, name).map_err(|errno| failed(name, errno))?;
    let mut here = top;
    fill(&here, &mut path).map_err(|errno| failed(name, errno))?;
    loop {
        let Some((own, left)) = path.last_mut() else { return Ok(()) };
        match left.pop() {
            Some(next) => {
                let next: Vec<u8> = next;
                let next_name = OsStr::from_bytes(&next);
                here = open(here.as_fd(), next_name).map_err(|errno| failed(next_name, errno))?;
                path.push((next.clone(), Vec::new()));
                fill(&here, &mut path).map_err(|errno| failed(OsStr::from_bytes(&next), errno))?;
            }
            None => {
                let own = std::mem::take(own);
                path.pop();
                let own_name = OsStr::from_bytes(&own);
                if path.is_empty() {
                    return gone(rustix::fs::unlinkat(dir, own_name, AtFlags::REMOVEDIR), own_name);
                }
                here = open(here.as_fd(), OsStr::new("..")).map_err(|errno| failed(own_name, errno))?;
                gone(rustix::fs::unlinkat(&here, own_name, AtFlags::REMOVEDIR), own_name)?;
            }
        }
    }
}

/// Removes what is no directory in `here`, and notes the directories for later.
fn fill(here: &OwnedFd, path: &mut [(Vec<u8>, Vec<Vec<u8>>)]) -> Result<(), Errno> {
    let mut directories = Vec::new();
    for name in names(here)? {
        match rustix::fs::unlinkat(here, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => directories.push(name.into_bytes()),
            Err(errno) => return Err(errno),
        }
    }
    if let Some((_, left)) = path.last_mut() {
        *left = directories;
    }
    Ok(())
}

/// Opens a directory, and lets its owner in if that is what is missing.
fn open(dir: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, name, flags, Mode::empty());
    let opened = match opened {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
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

/// The names in a directory, in no order.
pub fn names(dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
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
