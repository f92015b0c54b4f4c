//! [`archive`]: all files of a file system as a tar archive.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufReader, Write};
use std::rc::Rc;

use rustix::fs::FileType;

use super::reader::{Inode, Name, ROOT, ReadError, Reader};
use crate::progress::Progress;
use crate::tree::{self, Entry, Kind, Limits, Packed, Writer};

/// Where file systems keep what fsck finds, at their top.
const FOUND: &[u8] = b"lost+found";
/// The longest path, in bytes: Linux's.
const PATH: usize = 4096;
/// How much of a file is read at once, in bytes.
const CHUNK: usize = 256 << 10;

/// A file system was not made an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It cannot be read, as far as a file is to blame.
    #[error("{path} cannot be read")]
    File {
        /// The file's path.
        path: String,
        /// Why not.
        #[source]
        source: ReadError,
    },
    /// It cannot be read at all.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is more than was expected, or the archive cannot be written.
    #[error(transparent)]
    Tree(#[from] tree::Error),
}

/// Writes all of a file system's files to a tar archive, in the order of names, with owners, modes, times, hard links, and the attributes that
/// [`crate::tree::unpack`] takes. Device nodes and sockets are left out: a guest's kernel makes its own. `limits` count holes as data, since
/// archives have none.
///
/// # Errors
/// [`ArchiveError`].
pub fn archive(
    from: &mut Reader<'_>,
    into: impl Write,
    limits: &Limits,
    progress: &mut dyn Progress,
) -> Result<Packed, ArchiveError> {
    let total = from.used();
    let work = Work {
        from,
        tar: Writer::new(into),
        limits,
        done: Packed::default(),
        links: HashMap::new(),
        directories: HashSet::from([ROOT]),
    };
    work.all(total, progress)
}

struct Work<'w, 'a, W> {
    from: &'w mut Reader<'a>,
    tar: Writer<W>,
    limits: &'w Limits,
    done: Packed,
    /// Files that have several names, and the first of these.
    links: HashMap<u32, (Rc<[u8]>, Vec<u8>)>,
    /// Directories that have been seen: each has one name.
    directories: HashSet<u32>,
}

/// A directory on the way down.
struct Level {
    path: Rc<[u8]>,
    /// What is still to be written of it, from the last name to the first.
    names: Vec<Name>,
}

impl<W: Write> Work<'_, '_, W> {
    fn all(mut self, total: u64, progress: &mut dyn Progress) -> Result<Packed, ArchiveError> {
        let root = self.from.inode(ROOT)?;
        let mut levels = vec![self.directory(&root, b"."[..].into())?];
        while let Some(level) = levels.last_mut() {
            let Some(Name { name, inode: number }) = level.names.pop() else {
                levels.pop();
                continue;
            };
            let parent = Rc::clone(&level.path);
            let top = parent.as_ref() == b".";
            if top && name == FOUND {
                continue;
            }
            let path = if top { name.clone() } else { [&parent, &b"/"[..], &name].concat() };
            if levels.len() > self.limits.depth || path.len() > PATH {
                let entry = tree::shown(&path);
                return Err(tree::Error::TooDeep { entry, limit: self.limits.depth }.into());
            }
            let failed = |source| ArchiveError::File { path: tree::shown(&path), source };
            let inode = self.from.inode(number).map_err(failed)?;
            if inode.kind != FileType::Directory {
                self.file(&inode, (number, parent, name), path)?;
            } else if self.directories.insert(number) {
                levels.push(self.directory(&inode, path.into())?);
            } else {
                return Err(failed(ReadError::Damaged { what: "a directory with two names" }));
            }
            progress.advance(self.done.bytes.min(total), Some(total));
        }
        self.tar.finish().map_err(tree::Error::Write)?;
        Ok(self.done)
    }

    /// Writes a directory's own entry, and reads its names.
    fn directory(&mut self, inode: &Inode, path: Rc<[u8]>) -> Result<Level, ArchiveError> {
        let failed = |source| ArchiveError::File { path: tree::shown(&path), source };
        let mut names = self.from.names(inode).map_err(failed)?;
        names.reverse();
        let entry = self.entry(inode, Kind::Directory, [&path, &b"/"[..]].concat()).map_err(failed)?;
        self.put(&entry, &mut io::empty())?;
        Ok(Level { path, names })
    }

    /// Writes what is no directory.
    fn file(
        &mut self,
        inode: &Inode,
        (number, parent, name): (u32, Rc<[u8]>, Vec<u8>),
        path: Vec<u8>,
    ) -> Result<(), ArchiveError> {
        let shown = tree::shown(&path);
        let failed = |source| ArchiveError::File { path: shown.clone(), source };
        let kind = match inode.kind {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            _ => {
                self.done.skipped = self.done.skipped.saturating_add(1);
                return Ok(());
            }
        };
        if inode.links > 1 {
            if let Some((parent, name)) = self.links.get(&number) {
                let top = parent.as_ref() == b".";
                let link = if top { name.clone() } else { [parent, &b"/"[..], name].concat() };
                let entry = Entry {
                    link,
                    xattrs: Vec::new(),
                    ..self.entry(inode, Kind::HardLink, path).map_err(failed)?
                };
                return self.put(&entry, &mut io::empty());
            }
            self.links.insert(number, (parent, name));
        }
        let mut entry = self.entry(inode, kind, path).map_err(failed)?;
        match kind {
            Kind::File => {
                let (size, limit) = (inode.size, self.limits.bytes);
                if size > limit.saturating_sub(self.done.bytes) {
                    return Err(tree::Error::TooLarge { limit }.into());
                }
                self.done.bytes = self.done.bytes.saturating_add(size);
                (entry.size, entry.stored) = (size, size);
                self.count()?;
                let content = self.from.content(inode).map_err(failed)?;
                let mut content = BufReader::with_capacity(CHUNK, content);
                self.tar.entry(&entry, &mut content).map_err(|error| match error.downcast::<ReadError>() {
                    Ok(source) => failed(source),
                    Err(error) => tree::Error::Write(error).into(),
                })
            }
            Kind::Symlink => {
                entry.link = self.from.target(inode).map_err(failed)?;
                self.put(&entry, &mut io::empty())
            }
            _ => self.put(&entry, &mut io::empty()),
        }
    }

    fn put(&mut self, entry: &Entry, data: &mut dyn io::Read) -> Result<(), ArchiveError> {
        self.count()?;
        Ok(self.tar.entry(entry, data).map_err(tree::Error::Write)?)
    }

    fn count(&mut self) -> Result<(), ArchiveError> {
        self.done.entries = self.done.entries.saturating_add(1);
        let limit = self.limits.entries;
        if self.done.entries > limit { Err(tree::Error::TooMany { limit }.into()) } else { Ok(()) }
    }

    /// What stands before a file.
    fn entry(&mut self, inode: &Inode, kind: Kind, path: Vec<u8>) -> Result<Entry, ReadError> {
        Ok(Entry {
            path,
            kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            link: Vec::new(),
            size: 0,
            stored: 0,
            map: None,
            xattrs: self.from.attributes(inode)?,
        })
    }
}
