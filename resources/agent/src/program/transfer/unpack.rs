//! A tar archive into a directory, and nowhere else: every name is walked from the directory's descriptor, one component at a time, and
//! no link is followed on the way, whoever has made it.
//!
//! What is there is replaced, but not a directory by something else. Directories get their modes and times at the end.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fsetxattr,
};
use rustix::fs::{chmod, chownat, fchmod, fchown, futimens, linkat, mkdirat, mknodat, openat};
use rustix::fs::{statat, symlinkat, unlinkat, utimensat};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::MAX_ENTRIES;
use crate::sys;

/// What is read and written at once.
const PIECE: usize = 64 * 1024;

/// What stands before an entry's content at most: its headers, names and attributes, all of which are held in memory.
const MAX_HEADERS: u64 = 1 << 20;

const DIRECTORY: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Reads no more than is left.
struct Bounded<R> {
    from: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        let left = self.left.get().checked_sub(count as u64);
        self.left
            .set(left.ok_or_else(|| io::Error::other("the archive has an entry with a name without end"))?);
        Ok(count)
    }
}

/// Puts entries below a directory.
#[derive(Debug)]
pub struct Unpacker {
    root: OwnedFd,
    rename: Option<OsString>,
    owner: Option<(u32, u32)>,
    /// The directories of the archive, to be finished.
    dirs: Vec<(Vec<OsString>, Facts)>,
    /// The directory of the last entry: the next one is often in it, too.
    last: Option<(Vec<OsString>, OwnedFd)>,
}

/// What an entry says of itself.
#[derive(Clone, Debug)]
struct Facts {
    mode: Mode,
    /// `None` for an agent that cannot give files away.
    owner: Option<(Uid, Gid)>,
    times: Option<Timespec>,
    /// Extended attributes.
    attributes: Vec<(String, Vec<u8>)>,
}

impl Facts {
    fn timestamps(&self) -> Option<Timestamps> {
        self.times.map(|time| Timestamps { last_access: time, last_modification: time })
    }

    /// Set the attributes of a file or directory. After its owner and mode, which take some away.
    fn set_attributes(&self, of: impl AsFd) -> io::Result<()> {
        for (name, value) in &self.attributes {
            match fsetxattr(&of, name.as_str(), value, XattrFlags::empty()) {
                // The file system has none, or this is for others to set: the file is of use without.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// What the extended header of an entry says ("pax Interchange Format"): a time below the second, and attributes.
#[derive(Default)]
struct Extended {
    mtime: Option<Timespec>,
    attributes: Vec<(String, Vec<u8>)>,
}

impl Extended {
    /// That of `entry`. Privileges are taken `with_owners` only: they are of no use to another.
    fn of(entry: &mut Entry<'_, impl Read>, with_owners: bool) -> io::Result<Self> {
        let mut all = Self::default();
        for record in entry.pax_extensions()?.into_iter().flatten() {
            let record = record?;
            let Ok(key) = record.key() else { continue };
            if key == "mtime" {
                all.mtime = record.value().ok().and_then(moment);
            } else if let Some(name) = key.strip_prefix("SCHILY.xattr.")
                && (name.starts_with("user.") || with_owners && name == "security.capability")
            {
                all.attributes.push((name.to_owned(), record.value_bytes().to_vec()));
            }
        }
        Ok(all)
    }
}

/// Seconds since 1970 with a fraction, as pax writes them.
fn moment(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = seconds.parse().ok()?;
    let digits = format!("{fraction:0<9}");
    let tv_nsec: i64 = digits.get(..9)?.parse().ok().filter(|nanoseconds| *nanoseconds >= 0)?;
    match seconds.starts_with('-') && tv_nsec > 0 {
        // The fraction leads on, away from zero.
        true => Some(Timespec { tv_sec: tv_sec.checked_sub(1)?, tv_nsec: 1_000_000_000 - tv_nsec }),
        false => Some(Timespec { tv_sec, tv_nsec }),
    }
}

impl Unpacker {
    /// Unpack into `dir`; see [`agent::message::Unpack`].
    ///
    /// # Errors
    /// If the directory is none, or the new name no name.
    pub fn new(dir: &Path, rename: Option<&str>, owner: Option<(u32, u32)>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty())?;
        let rename = rename.map(|name| match names(Path::new(name))?.as_slice() {
            [name] => Ok(name.clone()),
            _ => Err(io::Error::other(format!("'{name}' is no name of a file"))),
        });
        Ok(Self { root, rename: rename.transpose()?, owner, dirs: Vec::new(), last: None })
    }

    /// Take a whole archive.
    pub fn unpack(mut self, from: &mut impl Read) -> io::Result<()> {
        let left = Rc::new(Cell::new(MAX_HEADERS));
        let mut archive = Archive::new(Bounded { from, left: Rc::clone(&left) });
        let mut entries = archive.entries()?;
        for count in 0usize.. {
            if count > MAX_ENTRIES {
                return Err(io::Error::other("the archive has too many entries: copy it in parts"));
            }
            left.set(MAX_HEADERS);
            let Some(entry) = entries.next() else { break };
            left.set(u64::MAX);
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            self.entry(&mut entry, &path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        }
        self.finish_dirs();
        Ok(())
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let names = self.renamed(path)?;
        // The directory itself: its mode is not the archive's to change.
        let Some((name, parents)) = names.split_last() else { return Ok(()) };
        let facts = self.facts(entry)?;
        let parent = self.parent(parents)?;
        let made = match kind {
            EntryType::Directory => {
                make_dir(&parent, name)?;
                self.dirs.push((names.clone(), facts));
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                clear(&parent, name).and_then(|()| file(&parent, name, entry, &facts))
            }
            EntryType::Symlink => {
                let target = target(entry)?;
                clear(&parent, name)?;
                symlinkat(&target, &parent, name)?;
                finish_link(&parent, name, &facts)
            }
            EntryType::Link => self.hard_link(&parent, name, &target(entry)?),
            EntryType::Fifo => {
                clear(&parent, name)?;
                mknodat(&parent, name, FileType::Fifo, facts.mode, 0)?;
                finish(&parent, name, &facts, OFlags::empty())
            }
            EntryType::Char | EntryType::Block => Err(io::Error::other("a device node is not copied")),
            _ => Err(io::Error::other("the archive has an entry of an unknown kind")),
        };
        self.last = Some((parents.to_vec(), parent));
        made
    }

    fn facts(&self, entry: &mut Entry<'_, impl Read>) -> io::Result<Facts> {
        let extended = Extended::of(entry, self.owner.is_none())?;
        let header = entry.header();
        let id = |id: io::Result<u64>| -> io::Result<u32> { u32::try_from(id?).map_err(io::Error::other) };
        let (uid, gid) = match self.owner {
            Some(owner) => owner,
            None => (id(header.uid())?, id(header.gid())?),
        };
        let none = uid == u32::MAX || gid == u32::MAX;
        let owner = (sys::is_root() && !none).then(|| (Uid::from_raw(uid), Gid::from_raw(gid)));
        let seconds = header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
        Ok(Facts {
            mode: Mode::from_raw_mode(header.mode()? & 0o7777),
            owner,
            times: extended.mtime.or(seconds.map(|tv_sec| Timespec { tv_sec, tv_nsec: 0 })),
            attributes: extended.attributes,
        })
    }

    fn renamed(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = names(path)?;
        if let (Some(first), Some(rename)) = (names.first_mut(), &self.rename) {
            first.clone_from(rename);
        }
        Ok(names)
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &OsString, to: &Path) -> io::Result<()> {
        let to = self.renamed(to)?;
        let Some((to_name, to_parents)) = to.split_last() else {
            return Err(io::Error::other("it is a hard link to the directory"));
        };
        let to_parent = self.parent(to_parents)?;
        clear(parent, name)?;
        Ok(linkat(&to_parent, to_name, parent, name, AtFlags::empty())?)
    }

    /// The directory of these names, made if it is not there.
    fn parent(&mut self, names: &[OsString]) -> io::Result<OwnedFd> {
        match self.last.take() {
            Some((last, fd)) if last == names => return Ok(fd),
            _ => {}
        }
        let mut dir = self.root.try_clone()?;
        for name in names {
            dir = match openat(&dir, name, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    make_dir(&dir, name)?;
                    openat(&dir, name, DIRECTORY, Mode::empty())
                }
                opened => opened,
            }
            .map_err(|error| behind(name, error))?;
        }
        Ok(dir)
    }

    /// Give directories their modes and times, the inner ones first: something has been put in since they were made.
    fn finish_dirs(&mut self) {
        for (names, facts) in std::mem::take(&mut self.dirs).into_iter().rev() {
            let Some((name, parents)) = names.split_last() else { continue };
            // It may have been replaced meanwhile; then it is none of ours any more.
            let Ok(parent) = self.parent(parents) else { continue };
            let _ = finish(&parent, name, &facts, OFlags::DIRECTORY);
            self.last = Some((parents.to_vec(), parent));
        }
    }
}

/// The names of a path, if it leads down and nowhere else.
fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) if !name.as_encoded_bytes().contains(&0) => names.push(name.to_owned()),
            Component::CurDir => {}
            _ => return Err(io::Error::other("it leads out of the directory")),
        }
    }
    Ok(names)
}

fn target(entry: &Entry<'_, impl Read>) -> io::Result<PathBuf> {
    let target = entry.link_name()?.ok_or_else(|| io::Error::other("a link leads nowhere"))?;
    Ok(target.into_owned())
}

fn make_dir(parent: &OwnedFd, name: &OsString) -> io::Result<()> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => {
            openat(parent, name, DIRECTORY, Mode::empty()).map(drop).map_err(|error| behind(name, error))
        }
        made => Ok(made?),
    }
}

fn behind(name: &OsString, error: Errno) -> io::Error {
    match error {
        Errno::LOOP | Errno::NOTDIR => {
            io::Error::other(format!("'{}' is there, and is no directory", name.display()))
        }
        error => error.into(),
    }
}

/// Make room for something that is no directory.
fn clear(parent: &OwnedFd, name: &OsString) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) if is_dir(parent, name) => {
            Err(io::Error::other("a directory is in its place"))
        }
        Err(error) => Err(error.into()),
    }
}

fn is_dir(parent: &OwnedFd, name: &OsString) -> bool {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|found| FileType::from_raw_mode(found.st_mode).is_dir())
}

/// A file with its content. Half of one does not stay.
fn file(
    parent: &OwnedFd,
    name: &OsString,
    entry: &mut Entry<'_, impl Read>,
    facts: &Facts,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(parent, name, flags, Mode::from_raw_mode(0o600))?;
    let mut file = File::from(fd);
    let written = fill(&mut file, entry).and_then(|()| {
        if let Some((uid, gid)) = facts.owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        // After the owner: a new one takes the bits of another user away.
        fchmod(&file, facts.mode)?;
        facts.set_attributes(&file)?;
        Ok(facts.timestamps().map_or(Ok(()), |times| futimens(&file, &times))?)
    });
    if written.is_err() {
        let _ = unlinkat(parent, name, AtFlags::empty());
    }
    written
}

/// Copy the content; zeros stay holes.
fn fill(file: &mut File, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut size = 0u64;
    loop {
        let count = match entry.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let bytes = piece.get(..count).unwrap_or_default();
        if bytes.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(i64::try_from(count).map_err(io::Error::other)?))?;
        } else {
            file.write_all(bytes)?;
        }
        size = size.saturating_add(count as u64);
    }
    if size != entry.size() {
        return Err(io::Error::other("the archive ends within it"));
    }
    file.set_len(size)
}

/// Owner and time of a link, which has no mode.
fn finish_link(parent: &OwnedFd, name: &OsString, facts: &Facts) -> io::Result<()> {
    let itself = AtFlags::SYMLINK_NOFOLLOW;
    if let Some((uid, gid)) = facts.owner {
        chownat(parent, name, Some(uid), Some(gid), itself)?;
    }
    Ok(facts.timestamps().map_or(Ok(()), |times| utimensat(parent, name, &times, itself))?)
}

/// Owner, mode and time of a directory or pipe. By its descriptor: its name may be another thing's by now, if the directory around it is
/// a user's.
fn finish(parent: &OwnedFd, name: &OsString, facts: &Facts, is: OFlags) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | is;
    let fd = openat(parent, name, flags, Mode::empty())?;
    let through = format!("/proc/self/fd/{}", fd.as_raw_fd());
    if let Some((uid, gid)) = facts.owner {
        chownat(&fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    }
    chmod(&*through, facts.mode)?;
    if !facts.attributes.is_empty() {
        // A descriptor of the path alone sets none.
        let opened =
            rustix::fs::open(&*through, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        facts.set_attributes(opened)?;
    }
    Ok(facts.timestamps().map_or(Ok(()), |times| utimensat(CWD, &*through, &times, AtFlags::empty()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_fraction_on_both_sides_of_1970() {
        let read = |text| moment(text).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(read("17"), Some((17, 0)));
        assert_eq!(read("1700000000.25"), Some((1_700_000_000, 250_000_000)));
        assert_eq!(read("1.0000000019"), Some((1, 1)));
        assert_eq!(read("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(read("-0.5"), Some((-1, 500_000_000)));
        for text in ["", "x", "1.x", "1.-5", "99999999999999999999"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
