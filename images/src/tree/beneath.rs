//! [`Beneath`]: how an entry's parent is reached, and nothing outside.

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{Error, shown};

/// How often an open is tried that a rename elsewhere disturbs.
const TRIES: usize = 64;

/// Where an entry belongs: a path of at least one name, without `.`, `..` and slashes that say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: Vec<u8>,
    /// Where the last name begins.
    last: usize,
}

impl Place {
    /// `None`: it is the directory itself.
    pub fn of(path: &[u8], limit: usize) -> Result<Option<Self>, Error> {
        let (mut whole, mut last, mut depth) = (Vec::with_capacity(path.len()), 0, 0_usize);
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(Error::Outside { entry: shown(path) }),
                _ => {}
            }
            depth += 1;
            if depth > limit {
                return Err(Error::TooDeep { entry: shown(path), limit });
            }
            if !whole.is_empty() {
                whole.push(b'/');
            }
            last = whole.len();
            whole.extend_from_slice(name);
        }
        Ok((depth > 0).then_some(Self { path: whole, last }))
    }

    pub fn path(&self) -> &[u8] {
        &self.path
    }

    pub fn name(&self) -> &[u8] {
        self.path.get(self.last..).unwrap_or_default()
    }

    /// Empty: the directory itself.
    pub fn parent(&self) -> &[u8] {
        self.path.get(..self.last.saturating_sub(1)).unwrap_or_default()
    }
}

/// A directory below which things are made.
pub struct Beneath<'a> {
    root: BorrowedFd<'a>,
    resolve: ResolveFlags,
    /// The last parent: archives have what is in a directory in a row.
    parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl<'a> Beneath<'a> {
    /// In a guest's root, links are followed as the guest would. Otherwise none may lead out.
    pub fn new(root: BorrowedFd<'a>, is_root: bool) -> Self {
        let scope = if is_root { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH };
        Self { root, resolve: scope | ResolveFlags::NO_MAGICLINKS, parent: None }
    }

    pub fn root(&self) -> BorrowedFd<'a> {
        self.root
    }

    /// Something was taken away: what is kept may be gone.
    pub fn forget(&mut self) {
        self.parent = None;
    }

    /// The directory that an entry is in, which is made if it is missing.
    pub fn parent(&mut self, place: &Place) -> Result<Rc<OwnedFd>, Error> {
        let path = place.parent();
        let kept = self.parent.take().filter(|(kept, _)| kept == path);
        let kept = match kept {
            Some(kept) => kept,
            None => (path.to_vec(), Rc::new(self.make(path).map_err(|errno| failed(path, errno))?)),
        };
        Ok(Rc::clone(&self.parent.insert(kept).1))
    }

    /// The directory that an entry is in.
    pub fn existing_parent(&self, place: &Place) -> Result<OwnedFd, Error> {
        self.open(place.parent(), OFlags::PATH).map_err(|errno| failed(place.parent(), errno))
    }

    /// A directory, by its own name and not by a link's; `None`: it is not there, or is none.
    pub fn directory(&self, path: &[u8]) -> Result<Option<OwnedFd>, Error> {
        match self.open(path, OFlags::RDONLY | OFlags::NOFOLLOW) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(failed(path, errno)),
        }
    }

    /// What is known of a directory, through links.
    pub fn look(&self, path: &[u8]) -> Option<Stat> {
        rustix::fs::fstat(self.open(path, OFlags::PATH).ok()?).ok()
    }

    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = OsStr::from_bytes(if path.is_empty() { b"." } else { path });
        let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for _ in 1..TRIES {
            match rustix::fs::openat2(self.root, path, flags, Mode::empty(), self.resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        rustix::fs::openat2(self.root, path, flags, Mode::empty(), self.resolve)
    }

    /// Opens a directory, and makes those on the way that are missing.
    fn make(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) if !path.is_empty() => {}
            result => return result,
        }
        let mut dir = self.open(b"", OFlags::PATH)?;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut start = 0;
        for end in ends.chain(Some(path.len())) {
            let (upto, name) =
                (path.get(..end).unwrap_or_default(), path.get(start..end).unwrap_or_default());
            dir = match self.open(upto, OFlags::PATH) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&dir, OsStr::from_bytes(name), Mode::from_raw_mode(0o755))?;
                    self.open(upto, OFlags::PATH)?
                }
                result => result?,
            };
            start = end + 1;
        }
        Ok(dir)
    }
}

fn failed(path: &[u8], errno: Errno) -> Error {
    let entry = shown(if path.is_empty() { b"." } else { path });
    match errno {
        // A link leads out; a link of /proc's.
        Errno::XDEV | Errno::LOOP => Error::Outside { entry },
        errno => Error::Entry { doing: "open the directory", entry, source: errno.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_plain_names_only() {
        let place = |path: &str| Place::of(path.as_bytes(), 3);
        let one = place("/./a//b/").unwrap().unwrap();
        assert_eq!((one.path(), one.parent(), one.name()), (&b"a/b"[..], &b"a"[..], &b"b"[..]));
        assert_eq!(place("a").unwrap().unwrap().parent(), b"");
        assert_eq!(place(".//").unwrap(), None);
        assert!(matches!(place("a/../b"), Err(Error::Outside { .. })));
        assert!(matches!(place("a/b/c/d"), Err(Error::TooDeep { .. })));
    }
}
