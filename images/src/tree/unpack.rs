//! [`unpack`].

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::beneath::{Beneath, Place};
use super::tar::{Entry, Kind, Tar};
use super::{Error, Options, Unpacked, remove, shown};

/// How much is copied at once, in bytes.
const BUFFER: usize = 128 << 10;
/// After how many bytes it is looked again how much room there is.
const LOOK: u64 = 64 << 20;
/// What an entry takes besides its data, at least.
const ENTRY: u64 = 4096;
/// How many bytes of memory directories may take that are kept for the end.
const LATE: usize = 64 << 20;
/// What an allocation takes besides its bytes, about.
const ALLOCATION: usize = 32;
/// What a layer's name begins with if it takes away.
const WHITEOUT: &[u8] = b".wh.";
/// What follows, for all that a directory had.
const OPAQUE: &[u8] = b".wh..opq";

/// Unpacks a tar archive, which is not compressed, below the directory `into`.
///
/// Directories get their modes and times at the end. Missing ones on the way to an entry are made, with mode 0755.
///
/// # Errors
/// [`Error`]; what was unpacked before stays.
pub fn unpack(archive: impl Read, into: impl AsFd, options: &Options) -> Result<Unpacked, Error> {
    let mut tar = Tar::new(archive);
    let mut work = Work::new(into.as_fd(), options);
    while let Some(entry) = tar.next()? {
        work.count()?;
        work.entry(&mut tar, &entry)?;
    }
    tar.finish()?;
    work.finish_directories()?;
    Ok(work.done)
}

struct Work<'a> {
    beneath: Beneath<'a>,
    options: &'a Options,
    done: Unpacked,
    /// Bytes that may be written before it is looked again.
    room: u64,
    /// Directories that are finished at the end, with no more than that takes. Their paths are those of places.
    late: Vec<Entry>,
    /// What they take.
    late_bytes: usize,
    /// Inodes that are of this archive, if it can make a directory opaque.
    made: HashSet<u64>,
    /// The directory whose way is among them.
    remembered: Vec<u8>,
    buffer: Vec<u8>,
}

impl<'a> Work<'a> {
    fn new(into: BorrowedFd<'a>, options: &'a Options) -> Self {
        Self {
            beneath: Beneath::new(into, options.root),
            options,
            done: Unpacked::default(),
            room: 0,
            late: Vec::new(),
            late_bytes: 0,
            made: HashSet::new(),
            remembered: Vec::new(),
            buffer: vec![0; BUFFER],
        }
    }

    fn count(&mut self) -> Result<(), Error> {
        self.done.entries = self.done.entries.saturating_add(1);
        let limit = self.options.limits.entries;
        if self.done.entries > limit {
            return Err(Error::TooMany { limit });
        }
        self.spend(ENTRY)
    }

    /// So much is about to be written.
    fn spend(&mut self, bytes: u64) -> Result<(), Error> {
        if self.room < bytes {
            let leave = self.options.limits.leave;
            let failed = |errno: Errno| Error::Entry {
                doing: "ask for the room at",
                entry: "it".into(),
                source: errno.into(),
            };
            let stat = rustix::fs::fstatvfs(self.beneath.root()).map_err(failed)?;
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let room = free.saturating_sub(leave);
            if room < bytes {
                return Err(Error::NoRoom { free, leave });
            }
            self.room = room.min(LOOK).max(bytes);
        }
        self.room = self.room.saturating_sub(bytes);
        Ok(())
    }

    fn entry<R: Read>(&mut self, tar: &mut Tar<R>, entry: &Entry) -> Result<(), Error> {
        let Some(place) = Place::of(&entry.path, self.options.limits.depth)? else {
            return self.root(entry);
        };
        if self.options.whiteouts && place.name().starts_with(WHITEOUT) {
            return self.whiteout(&place);
        }
        match entry.kind {
            Kind::Device => self.done.devices = self.done.devices.saturating_add(1),
            Kind::Other => self.done.skipped = self.done.skipped.saturating_add(1),
            Kind::File => self.file(tar, entry, &place)?,
            Kind::Directory => self.directory(entry, &place)?,
            Kind::HardLink => self.hard_link(entry, &place)?,
            Kind::Symlink | Kind::Fifo => self.special(entry, &place)?,
        }
        Ok(())
    }

    /// The directory itself, which is an entry of most archives.
    fn root(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(Error::Outside { entry: shown(&entry.path) });
        }
        if self.options.root {
            self.finish_later(entry, b"")?;
        }
        Ok(())
    }

    fn file<R: Read>(&mut self, tar: &mut Tar<R>, entry: &Entry, place: &Place) -> Result<(), Error> {
        let limit = self.options.limits.bytes;
        self.done.bytes = self
            .done
            .bytes
            .checked_add(entry.stored)
            .filter(|bytes| *bytes <= limit)
            .ok_or(Error::TooLarge { limit })?;
        let parent = self.beneath.parent(place)?;
        self.clear(&parent, place)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, name(place), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed("create", place.path(), errno))?;
        let file = std::fs::File::from(file);
        let whole = [(0, entry.stored)];
        for (offset, length) in entry.map.as_ref().map_or(&whole[..], |map| &map.parts) {
            self.copy(tar, &file, *offset, *length, place)?;
        }
        if entry.map.is_some() {
            file.set_len(entry.size).map_err(|error| host_failed("write", place.path(), error))?;
        }
        self.finish_open(&file, entry)?;
        self.remember(&parent, place);
        Ok(())
    }

    /// Copies a part of a file to its place.
    fn copy<R: Read>(
        &mut self,
        tar: &mut Tar<R>,
        file: &std::fs::File,
        mut offset: u64,
        length: u64,
        place: &Place,
    ) -> Result<(), Error> {
        use std::os::unix::fs::FileExt as _;
        let end = offset.saturating_add(length);
        let mut buffer = std::mem::take(&mut self.buffer);
        while offset < end {
            let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
            let got = tar.data(buffer.get_mut(..length).unwrap_or_default())?;
            if got == 0 {
                break;
            }
            self.spend(got as u64)?;
            file.write_all_at(buffer.get(..got).unwrap_or_default(), offset)
                .map_err(|error| host_failed("write", place.path(), error))?;
            offset = offset.saturating_add(got as u64);
        }
        self.buffer = buffer;
        Ok(())
    }

    fn directory(&mut self, entry: &Entry, place: &Place) -> Result<(), Error> {
        let parent = self.beneath.parent(place)?;
        let make = || rustix::fs::mkdirat(&parent, name(place), Mode::RWXU);
        let made = match make() {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(&parent, name(place), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| failed("look at", place.path(), errno))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    Ok(())
                } else {
                    self.clear(&parent, place)?;
                    make()
                }
            }
            made => made,
        };
        made.map_err(|errno| failed("create the directory", place.path(), errno))?;
        self.remember(&parent, place);
        self.finish_later(entry, place.path())
    }

    fn hard_link(&mut self, entry: &Entry, place: &Place) -> Result<(), Error> {
        let outside = || Error::Outside { entry: shown(&entry.path) };
        let target = Place::of(&entry.link, self.options.limits.depth)?.ok_or_else(outside)?;
        let (from, to) = (self.beneath.existing_parent(&target)?, self.beneath.parent(place)?);
        let link = || rustix::fs::linkat(&from, name(&target), &to, name(place), AtFlags::empty());
        let linked = match link() {
            Err(Errno::EXIST) => {
                let inode = |dir: &OwnedFd, place: &Place| {
                    rustix::fs::statat(dir, name(place), AtFlags::SYMLINK_NOFOLLOW)
                        .map(|stat| (stat.st_dev, stat.st_ino))
                };
                if inode(&from, &target) == inode(&to, place) {
                    return Ok(());
                }
                self.clear(&to, place)?;
                link()
            }
            linked => linked,
        };
        linked.map_err(|errno| failed("link", place.path(), errno))?;
        self.remember(&to, place);
        Ok(())
    }

    /// Links and pipes: what has no data.
    fn special(&mut self, entry: &Entry, place: &Place) -> Result<(), Error> {
        let parent = self.beneath.parent(place)?;
        self.clear(&parent, place)?;
        let made = if entry.kind == Kind::Symlink {
            rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), &parent, name(place))
        } else {
            let mode = Mode::from_raw_mode(entry.mode & 0o777);
            rustix::fs::mknodat(&parent, name(place), FileType::Fifo, mode, 0)
        };
        made.map_err(|errno| failed("create", place.path(), errno))?;
        if self.options.owners {
            let (uid, gid) = owner(entry)?;
            rustix::fs::chownat(&parent, name(place), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| failed("change the owner of", place.path(), errno))?;
        }
        rustix::fs::utimensat(&parent, name(place), &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("set the time of", place.path(), errno))?;
        self.remember(&parent, place);
        Ok(())
    }

    /// Owner before mode, since a change of owner takes privileges away; the time last.
    fn finish_open(&mut self, file: impl AsFd, entry: &Entry) -> Result<(), Error> {
        if self.options.owners {
            let (uid, gid) = owner(entry)?;
            rustix::fs::fchown(&file, Some(uid), Some(gid))
                .map_err(|errno| failed("change the owner of", &entry.path, errno))?;
        }
        let bits = if self.options.privileges { 0o7777 } else { 0o777 };
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode & bits))
            .map_err(|errno| failed("set the mode of", &entry.path, errno))?;
        for (name, value) in &entry.xattrs {
            self.attribute(&file, name, value, entry)?;
        }
        rustix::fs::futimens(&file, &times(entry.mtime))
            .map_err(|errno| failed("set the time of", &entry.path, errno))
    }

    fn attribute(&mut self, file: impl AsFd, name: &[u8], value: &[u8], of: &Entry) -> Result<(), Error> {
        let kept = super::is_kept(name, self.options.privileges);
        let set = || rustix::fs::fsetxattr(file.as_fd(), OsStr::from_bytes(name), value, XattrFlags::empty());
        match if kept { set() } else { Err(Errno::OPNOTSUPP) } {
            Err(Errno::OPNOTSUPP) => self.done.skipped = self.done.skipped.saturating_add(1),
            result => result.map_err(|errno| failed("set an attribute of", &of.path, errno))?,
        }
        Ok(())
    }

    fn finish_later(&mut self, entry: &Entry, path: &[u8]) -> Result<(), Error> {
        let privileges = self.options.privileges;
        let kept = |(name, _): &&(Vec<u8>, Vec<u8>)| super::is_kept(name, privileges);
        let xattrs: Box<[_]> = entry.xattrs.iter().filter(kept).cloned().collect();
        let skipped = entry.xattrs.len().saturating_sub(xattrs.len());
        self.done.skipped = self.done.skipped.saturating_add(skipped as u64);
        let late = Entry {
            path: path.to_vec(),
            kind: entry.kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            link: Vec::new(),
            size: 0,
            stored: 0,
            map: None,
            xattrs: xattrs.into(),
        };
        self.late_bytes = self.late_bytes.saturating_add(memory(&late));
        self.late.push(late);
        // So many are no real tree; then times are as they come.
        if self.late_bytes > LATE { self.finish_directories() } else { Ok(()) }
    }

    /// From the last to the first, so that a directory which may not be entered any more is not on the way to another. Later entries may
    /// have taken some away; of several for one, the last counts.
    fn finish_directories(&mut self) -> Result<(), Error> {
        self.late_bytes = 0;
        let late = std::mem::take(&mut self.late);
        let mut seen: HashSet<&[u8]> = HashSet::new();
        for entry in late.iter().rev() {
            if seen.insert(&entry.path)
                && let Some(dir) = self.beneath.directory(&entry.path)?
            {
                self.finish_open(&dir, entry)?;
            }
        }
        Ok(())
    }

    /// Makes sure that nothing is in an entry's place.
    fn clear(&mut self, parent: &OwnedFd, place: &Place) -> Result<(), Error> {
        if self.options.whiteouts
            && let Ok(stat) = rustix::fs::statat(parent, name(place), AtFlags::SYMLINK_NOFOLLOW)
        {
            self.made.remove(&stat.st_ino);
        }
        match rustix::fs::unlinkat(parent, name(place), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // The second is POSIX's word for it.
            Err(Errno::ISDIR | Errno::PERM) if self.options.root => remove(parent, Path::new(name(place))),
            Err(Errno::ISDIR) => Err(Error::IsDirectory { entry: shown(place.path()) }),
            Err(errno) => Err(failed("replace", place.path(), errno)),
        }
    }

    /// A name that takes something away (OCI image-spec, layer.md, "Whiteouts").
    fn whiteout(&mut self, place: &Place) -> Result<(), Error> {
        let hidden = place.name().get(WHITEOUT.len()..).unwrap_or_default();
        let Some(parent) = self.beneath.directory(place.parent())? else {
            return Ok(());
        };
        self.beneath.forget();
        self.remembered.clear();
        match hidden {
            OPAQUE => super::remove::empty(&parent, &self.made),
            b"" | b"." | b".." => Err(Error::Outside { entry: shown(place.path()) }),
            // Marks of a file system that nobody has any more.
            _ if hidden.starts_with(WHITEOUT) => Ok(()),
            _ => remove(&parent, Path::new(OsStr::from_bytes(hidden))),
        }
    }

    /// This and the directories on the way to it are of this archive: what makes one opaque leaves them.
    fn remember(&mut self, parent: impl AsFd, place: &Place) {
        if !self.options.whiteouts {
            return;
        }
        if let Ok(stat) = rustix::fs::statat(parent, name(place), AtFlags::SYMLINK_NOFOLLOW) {
            self.made.insert(stat.st_ino);
        }
        if self.remembered != place.parent() {
            self.remembered = place.parent().to_vec();
            let mut path = place.parent();
            while !path.is_empty() {
                if let Some(stat) = self.beneath.look(path) {
                    self.made.insert(stat.st_ino);
                }
                let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
                path = path.get(..end).unwrap_or_default();
            }
        }
    }
}

fn name(place: &Place) -> &OsStr {
    OsStr::from_bytes(place.name())
}

/// What a directory takes that is kept for the end, in bytes: an archive says little of it with much, such as thousands of attributes
/// without values.
fn memory(late: &Entry) -> usize {
    let attributes = late.xattrs.iter().map(|(name, value)| {
        (size_of::<(Vec<u8>, Vec<u8>)>() + 2 * ALLOCATION)
            .saturating_add(name.len())
            .saturating_add(value.len())
    });
    let own = (size_of::<Entry>() + ALLOCATION).saturating_add(late.path.len());
    attributes.fold(own, usize::saturating_add)
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), Error> {
    // The highest number means "leave it" to chown.
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err(failed("change the owner of", &entry.path, Errno::INVAL));
    }
    Ok((Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)))
}

fn times((tv_sec, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn failed(doing: &'static str, entry: &[u8], errno: Errno) -> Error {
    host_failed(doing, entry, errno.into())
}

fn host_failed(doing: &'static str, entry: &[u8], source: io::Error) -> Error {
    let entry = if entry.is_empty() { b"." } else { entry };
    Error::Entry { doing, entry: shown(entry), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
        Entry {
            path: b"a/".to_vec(),
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (1, 0),
            link: vec![b'l'; 1 << 20],
            size: 0,
            stored: 0,
            map: None,
            xattrs,
        }
    }

    /// The same directory so often, and what is kept of it each time.
    fn queue(times: usize, entry: &Entry, mut check: impl FnMut(&Work<'_>)) -> Unpacked {
        let dir = tempfile::tempdir().unwrap();
        let into = std::fs::File::open(dir.path()).unwrap();
        let options = Options { owners: false, ..Options::image() };
        let mut work = Work::new(into.as_fd(), &options);
        for _ in 0..times {
            work.finish_later(entry, b"a").unwrap();
            check(&work);
        }
        work.done
    }

    #[test]
    fn the_same_directory_again_and_again_takes_no_more_than_its_share_of_memory() {
        let entry = Entry { link: Vec::new(), ..directory(Vec::new()) };
        let mut most = 0;
        queue(LATE / size_of::<Entry>() + 1, &entry, |work| most = most.max(work.late.len()));
        assert!(most * size_of::<Entry>() <= LATE, "{most} directories");
    }

    #[test]
    fn attributes_without_values_count_for_what_they_take() {
        let attributes = 5000;
        let of_one = attributes * size_of::<(Vec<u8>, Vec<u8>)>();
        let entry = directory(vec![(b"user.".to_vec(), Vec::new()); attributes]);
        let mut most = 0;
        queue(LATE / of_one + 1, &entry, |work| most = most.max(work.late.len()));
        assert!(most * of_one <= LATE, "{most} directories");
    }

    #[test]
    fn only_what_a_directory_needs_at_the_end_is_kept() {
        let name = |name: &str| (name.as_bytes().to_vec(), b"value".to_vec());
        let entry = directory(vec![name("user.mine"), name("trusted.other"), name("security.selinux")]);
        let done = queue(1, &entry, |work| {
            assert_eq!(work.late[0].xattrs, [name("user.mine")]);
            assert_eq!((&work.late[0].path[..], &work.late[0].link[..]), (&b"a"[..], &b""[..]));
        });
        assert_eq!(done.skipped, 2);
    }
}
