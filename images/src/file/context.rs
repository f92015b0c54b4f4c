//! [`Context`]: the files that steps copy, all from below one directory.
//!
//! Every file is opened below the directory's descriptor (openat2 with RESOLVE_BENEATH): neither `..` nor a symbolic link leads out of it,
//! whoever changes the directory meanwhile. A tree is read twice, for its digest and when it is copied; the second time is checked
//! against the first.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::parse::{FileError, Wrong};
use super::{Copy, Step, What};
use crate::digest::Digest;

/// The most files and directories of one step.
const MOST: usize = 1_000_000;
/// How deep directories may lie in one another.
const DEEPEST: usize = 200;

/// A file cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The directory itself.
    #[error("the directory {} cannot be opened", path.display())]
    Root {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is nothing of that name.
    #[error("line {line}: there is no {} in {}", path.display(), root.display())]
    Missing {
        /// Of the file that asks for it.
        line: usize,
        /// What was asked for.
        path: PathBuf,
        /// Where.
        root: PathBuf,
    },
    /// A link leads elsewhere.
    #[error("line {line}: {} leads out of {}: only files of that directory are copied", path.display(), root.display())]
    Outside {
        /// Of the file that asks for it.
        line: usize,
        /// What leads there.
        path: PathBuf,
        /// Out of this.
        root: PathBuf,
    },
    /// Neither a file nor a directory nor a link.
    #[error("line {line}: {} is {what}, which cannot be copied: name it in exclude", path.display())]
    Special {
        /// Of the file that asks for it.
        line: usize,
        /// Which.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Too many or too deep.
    #[error("line {line}: {} has {what}: name less, or leave some out by exclude", path.display())]
    TooMuch {
        /// Of the file that asks for it.
        line: usize,
        /// The source.
        path: PathBuf,
        /// Of what it has too much.
        what: String,
    },
    /// It was another when it was read first.
    #[error("line {line}: {} has changed during the build: build again", path.display())]
    Changed {
        /// Of the file that asks for it.
        line: usize,
        /// Which.
        path: PathBuf,
    },
    /// The host fails.
    #[error("line {line}: {} cannot be read", path.display())]
    Read {
        /// Of the file that asks for it.
        line: usize,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever takes it does not.
    #[error("the files cannot be sent to the guest")]
    Send(#[source] io::Error),
}

/// The directory from which files are copied.
#[derive(Debug)]
pub struct Context {
    root: OwnedFd,
    path: PathBuf,
}

/// The files of one step.
#[derive(Debug)]
pub struct Tree {
    line: usize,
    digest: Digest,
    entries: Vec<Entry>,
    bytes: u64,
    single: bool,
}

/// A file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// Below the context.
    from: PathBuf,
    /// Below what it is copied to.
    to: PathBuf,
    kind: Kind,
    mode: u32,
    /// In seconds since 1970.
    modified: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File(u64),
    Link(OsString),
}

impl Tree {
    /// Of all names, modes and contents.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Of all files together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// It is one file, which can be given another name.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.single
    }

    /// How many files, directories and links it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries.len()
    }
}

impl Context {
    /// The directory at `path`.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, ContextError> {
        let root = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root =
            root.map_err(|error| ContextError::Root { path: path.to_owned(), source: error.into() })?;
        Ok(Self { root, path: path.to_owned() })
    }

    /// Look whether all is there that `steps` copy, before anything takes time.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self, steps: &[Step]) -> Result<(), FileError> {
        for step in steps {
            let What::Copy(copy) = &step.what else { continue };
            for source in &copy.sources {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let found =
                    rustix::fs::openat2(&self.root, source, flags, Mode::empty(), ResolveFlags::BENEATH);
                if matches!(found, Err(Errno::NOENT)) {
                    let wrong = format!("there is no {source} in {}", self.path.display());
                    return Err(FileError { line: step.line, wrong: Wrong::Other(wrong) });
                }
            }
        }
        Ok(())
    }

    /// All that `copy`, which stands on this line, names.
    ///
    /// # Errors
    /// If something is not there or cannot be copied.
    pub fn find(&self, copy: &Copy, line: usize, read: &mut dyn FnMut(u64)) -> Result<Tree, ContextError> {
        let mut walk = Walk { context: self, copy, line, entries: Vec::new() };
        let mut single = copy.sources.len() == 1;
        for source in &copy.sources {
            single &= walk.source(Path::new(source))?;
        }
        let entries = walk.entries;
        let bytes = entries.iter().map(Entry::len).fold(0, u64::saturating_add);
        let mut done = 0_u64;
        let digest = self.digest(&entries, line, &mut |more| {
            done = done.saturating_add(more);
            read(done);
        })?;
        Ok(Tree { line, digest, entries, bytes, single })
    }

    fn digest(
        &self,
        entries: &[Entry],
        line: usize,
        read: &mut dyn FnMut(u64),
    ) -> Result<Digest, ContextError> {
        let mut sum = Sum(Sha256::new());
        for entry in entries {
            sum.entry(entry);
            if let Kind::File(len) = entry.kind {
                let mut content =
                    Content { file: self.file(&entry.from, line)?.take(len), sha: Sha256::new(), len: 0 };
                let copied = io::copy(&mut content, &mut Counted(read));
                copied.map_err(|source| ContextError::Read { line, path: entry.from.clone(), source })?;
                sum.content(content, len)
                    .ok_or_else(|| ContextError::Changed { line, path: entry.from.clone() })?;
            }
        }
        Ok(Digest::from_hasher(sum.0))
    }

    /// Write `tree` as a tar archive: its names are relative to what it is copied to, and all belongs to root. One that [is a single
    /// file](Tree::is_single) is called `name`, if that is given.
    ///
    /// # Errors
    /// If a file has changed since the tree was found, cannot be read, or `out` fails.
    pub fn pack(
        &self,
        tree: &Tree,
        name: Option<&str>,
        mode: Option<u32>,
        out: &mut dyn Write,
    ) -> Result<(), ContextError> {
        let (line, mut sum) = (tree.line, Sum(Sha256::new()));
        let mut archive = tar::Builder::new(out);
        for entry in &tree.entries {
            sum.entry(entry);
            let mut header = tar::Header::new_gnu();
            header.set_mode(entry.mode_with(mode));
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(entry.modified);
            header.set_size(0);
            let to = name.filter(|_| tree.single).map_or(entry.to.as_path(), Path::new);
            match &entry.kind {
                Kind::Directory => {
                    header.set_entry_type(tar::EntryType::Directory);
                    archive.append_data(&mut header, to, io::empty()).map_err(ContextError::Send)?;
                }
                Kind::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    archive.append_link(&mut header, to, target).map_err(ContextError::Send)?;
                }
                Kind::File(len) => {
                    header.set_size(*len);
                    let changed = || ContextError::Changed { line, path: entry.from.clone() };
                    let mut content = Content {
                        file: self.file(&entry.from, line)?.take(*len),
                        sha: Sha256::new(),
                        len: 0,
                    };
                    archive.append_data(&mut header, to, &mut content).map_err(ContextError::Send)?;
                    sum.content(content, *len).ok_or_else(changed)?;
                }
            }
        }
        if Digest::from_hasher(sum.0) != tree.digest {
            let path = tree.entries.first().map(|entry| entry.from.clone()).unwrap_or_default();
            return Err(ContextError::Changed { line, path });
        }
        archive.finish().map_err(ContextError::Send)
    }

    fn file(&self, path: &Path, line: usize) -> Result<File, ContextError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        Ok(self.open_below(path, flags, line)?.into())
    }

    fn open_below(&self, path: &Path, flags: OFlags, line: usize) -> Result<OwnedFd, ContextError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let opened = rustix::io::retry_on_intr(|| {
            rustix::fs::openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
        });
        let (path, root) = (path.to_owned(), self.path.clone());
        opened.map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR => ContextError::Missing { line, path, root },
            Errno::XDEV => ContextError::Outside { line, path, root },
            other => ContextError::Read { line, path, source: other.into() },
        })
    }
}

/// Looks for files.
struct Walk<'a> {
    context: &'a Context,
    copy: &'a Copy,
    line: usize,
    entries: Vec<Entry>,
}

impl Walk<'_> {
    /// A source: what is in it if it is a directory, or leads to one. Says whether it is a single file.
    fn source(&mut self, source: &Path) -> Result<bool, ContextError> {
        let opened = self.context.open_below(source, OFlags::PATH, self.line)?;
        let stat = self.stat(source, rustix::fs::fstat(&opened))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            self.directory(source, Path::new(""), 0)?;
            return Ok(false);
        }
        // A link was followed, so what it leads to has to be named by what it is.
        let real = self.inside(source, &opened)?;
        let name = source.file_name().unwrap_or(OsStr::new("file"));
        self.entry(real, PathBuf::from(name), &stat, None)?;
        Ok(true)
    }

    /// Where in the context the file is that `source` leads to.
    fn inside(&self, source: &Path, opened: &OwnedFd) -> Result<PathBuf, ContextError> {
        use std::os::fd::AsRawFd as _;
        let real = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let (line, path) = (self.line, source.to_owned());
        let failed = |source| ContextError::Read { line, path: path.clone(), source };
        let (root, file) = (real(&self.context.root).map_err(failed)?, real(opened).map_err(failed)?);
        let below = file.strip_prefix(&root).map(Path::to_owned);
        below.map_err(|_| ContextError::Outside { line, path: path.clone(), root })
    }

    fn directory(&mut self, from: &Path, to: &Path, depth: usize) -> Result<(), ContextError> {
        if depth > DEEPEST {
            return Err(self.too_much(from, format!("more than {DEEPEST} directories in one another")));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = self.context.open_below(from, flags, self.line)?;
        let failed = |error: Errno| ContextError::Read {
            line: self.line,
            path: from.to_owned(),
            source: error.into(),
        };
        // Sorted, so that the same tree has the same digest wherever it is.
        let mut names = BTreeMap::new();
        for entry in Dir::read_from(&opened).map_err(failed)? {
            let name = OsString::from_vec(entry.map_err(failed)?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." && !self.is_excluded(&name, &to.join(&name)) {
                let stat = rustix::fs::statat(&opened, &name, AtFlags::SYMLINK_NOFOLLOW);
                let stat = self.stat(&from.join(&name), stat)?;
                let link = (FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
                    .then(|| rustix::fs::readlinkat(&opened, &name, Vec::new()));
                let link = link.transpose().map_err(failed)?;
                names.insert(name, (stat, link.map(|link| OsString::from_vec(link.into_bytes()))));
            }
            if self.entries.len().saturating_add(names.len()) > MOST {
                return Err(self.too_much(from, format!("more than {MOST} files")));
            }
        }
        for (name, (stat, link)) in names {
            let (from, to) = (from.join(&name), to.join(&name));
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            self.entry(from.clone(), to.clone(), &stat, link)?;
            if is_directory {
                self.directory(&from, &to, depth.saturating_add(1))?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: PathBuf,
        to: PathBuf,
        stat: &Stat,
        link: Option<OsString>,
    ) -> Result<(), ContextError> {
        let kind = match (FileType::from_raw_mode(stat.st_mode), link) {
            (_, Some(target)) => Kind::Link(target),
            (FileType::RegularFile, None) => Kind::File(u64::try_from(stat.st_size).unwrap_or(0)),
            (FileType::Directory, None) => Kind::Directory,
            (other, None) => {
                return Err(ContextError::Special { line: self.line, path: from, what: special(other) });
            }
        };
        let modified = u64::try_from(stat.st_mtime).unwrap_or(0);
        self.entries.push(Entry { from, to, kind, mode: stat.st_mode & 0o7777, modified });
        Ok(())
    }

    fn stat(&self, path: &Path, stat: Result<Stat, Errno>) -> Result<Stat, ContextError> {
        stat.map_err(|error| ContextError::Read {
            line: self.line,
            path: path.to_owned(),
            source: error.into(),
        })
    }

    fn too_much(&self, path: &Path, what: String) -> ContextError {
        ContextError::TooMuch { line: self.line, path: path.to_owned(), what }
    }

    /// By its name, or by its path if the pattern has a slash.
    fn is_excluded(&self, name: &OsStr, path: &Path) -> bool {
        self.copy.exclude.iter().any(|pattern| {
            let pattern = pattern.trim_end_matches('/');
            let subject = if pattern.contains('/') { path.as_os_str() } else { name };
            matches(pattern.trim_start_matches('/').as_bytes(), subject.as_bytes())
        })
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any bytes but a slash, and `?` for one.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on if what follows the last star does not fit: the star takes one more.
    let (mut p, mut t, mut star) = (0, 0, None);
    while let Some(byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') if *byte != b'/' => (p, t) = (p + 1, t + 1),
            Some(wanted) if wanted == byte => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, taken)) if text.get(taken) != Some(&b'/') => {
                    star = Some((at, taken + 1));
                    (p, t) = (at + 1, taken + 1);
                }
                _ => return false,
            },
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

fn special(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else than a file",
    }
}

impl Entry {
    fn len(&self) -> u64 {
        match self.kind {
            Kind::File(len) => len,
            Kind::Directory | Kind::Link(_) => 0,
        }
    }

    /// Its mode if files have `mode`: a directory can then be entered by whoever can read it.
    fn mode_with(&self, mode: Option<u32>) -> u32 {
        match (&self.kind, mode) {
            (Kind::Link(_), _) => 0o777,
            (Kind::Directory, Some(mode)) => mode & 0o777 | (mode & 0o444) >> 2,
            (Kind::File(_), Some(mode)) => mode,
            (_, None) => self.mode,
        }
    }
}

/// The sum of a tree. Every part has its length before it, so that two trees are never the same bytes.
struct Sum(Sha256);

impl Sum {
    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn entry(&mut self, entry: &Entry) {
        self.part(entry.to.as_os_str().as_bytes());
        self.part(&entry.mode.to_le_bytes());
        match &entry.kind {
            Kind::Directory => self.part(b"directory"),
            Kind::File(_) => self.part(b"file"),
            Kind::Link(target) => {
                self.part(b"link");
                self.part(target.as_bytes());
            }
        }
    }

    /// `None` if it is not `len` bytes.
    fn content(&mut self, content: Content, len: u64) -> Option<()> {
        (content.len == len).then(|| self.part(&content.sha.finalize()))
    }
}

/// A file that is summed up as it is read.
struct Content {
    file: io::Take<File>,
    sha: Sha256,
    len: u64,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buffer)?;
        self.sha.update(buffer.get(..got).unwrap_or_default());
        self.len = self.len.saturating_add(got as u64);
        Ok(got)
    }
}

/// Tells how much went by.
struct Counted<'a>(&'a mut dyn FnMut(u64));

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
