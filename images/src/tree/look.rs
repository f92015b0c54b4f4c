//! Looking into a tree as its guest would: [`open`] and [`list`].

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::remove::names;

/// How links are followed: as in a guest whose root it is.
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens a regular file below the directory `root`, to read it. Links are followed in that directory, absolute ones too.
///
/// # Errors
/// If it is not there, or is something else.
pub fn open(root: impl AsFd, path: impl AsRef<Path>) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(root, path.as_ref(), flags, Mode::empty(), IN_ROOT)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    Ok(File::from(file))
}

/// The names in a directory below the directory `root`, in order; those that are no UTF-8 are left out.
///
/// # Errors
/// If it is not there, or is none.
pub fn list(root: impl AsFd, path: impl AsRef<Path>) -> io::Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat2(root, path.as_ref(), flags, Mode::empty(), IN_ROOT)?;
    let mut names: Vec<String> =
        names(&dir)?.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    Ok(names)
}
