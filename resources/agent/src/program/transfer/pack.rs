//! A file or a tree into a tar archive: files, directories, links, hard links and pipes, with modes, owners and times. Sockets and
//! devices are left out. What changes or goes away meanwhile does so in the archive, too, which stays whole.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::MAX_ENTRIES;

/// What is read at most of a file that claims to be empty, as those in /proc do.
const MAX_UNSIZED: u64 = 1 << 20;
/// What the root directory is called in an archive: it has no name of its own.
const ROOT: &str = "rootfs";

struct Packer<W: Write> {
    archive: Builder<W>,
    /// Files with several names, by device and number: the first name.
    linked: HashMap<(u64, u64), PathBuf>,
    entries: usize,
}

/// Pack what is at `path`, as `called` or by its own name.
pub fn pack(
    path: &Path,
    metadata: &Metadata,
    follow: bool,
    called: Option<&Path>,
    to: &mut impl Write,
) -> io::Result<()> {
    let mut packer = Packer { archive: Builder::new(to), linked: HashMap::new(), entries: 0 };
    let canonical = path.canonicalize().unwrap_or_default();
    let own = || path.file_name().or_else(|| canonical.file_name()).unwrap_or(OsStr::new(ROOT));
    let name = called.unwrap_or_else(|| Path::new(own()));
    packer.tree(path.to_owned(), PathBuf::from(name), metadata, follow)?;
    packer.archive.into_inner()?.flush()
}

impl<W: Write> Packer<W> {
    fn tree(&mut self, path: PathBuf, name: PathBuf, metadata: &Metadata, follow: bool) -> io::Result<()> {
        self.entry(&path, &name, metadata, follow)?;
        let mut left = if metadata.is_dir() { children(&path, &name)? } else { Vec::new() };
        while let Some((path, name)) = left.pop() {
            let Some(metadata) = there(fs::symlink_metadata(&path)).map_err(of(&path))? else { continue };
            self.entry(&path, &name, &metadata, false)?;
            if metadata.is_dir() {
                left.extend(children(&path, &name)?);
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path, metadata: &Metadata, follow: bool) -> io::Result<()> {
        self.entries = self.entries.saturating_add(1);
        if self.entries > MAX_ENTRIES {
            return Err(io::Error::other("the tree has too many files: copy it in parts"));
        }
        let kind = metadata.file_type();
        let mut header = Header::new_gnu();
        header.set_metadata(metadata);
        if kind.is_dir() {
            header.set_size(0);
            self.archive.append_data(&mut header, name, io::empty())
        } else if kind.is_symlink() {
            let Some(target) = there(fs::read_link(path)).map_err(of(path))? else { return Ok(()) };
            header.set_size(0);
            self.archive.append_link(&mut header, name, target)
        } else if kind.is_fifo() {
            header.set_size(0);
            self.archive.append_data(&mut header, name, io::empty())
        } else if kind.is_file() {
            self.file(path, name, header, metadata, follow)
        } else {
            Ok(())
        }
    }

    fn file(
        &mut self,
        path: &Path,
        name: &Path,
        mut header: Header,
        metadata: &Metadata,
        follow: bool,
    ) -> io::Result<()> {
        let key = (metadata.dev(), metadata.ino());
        if let Some(first) = self.linked.get(&key) {
            header.set_entry_type(EntryType::Link);
            header.set_size(0);
            return self.archive.append_link(&mut header, name, first);
        }
        let flags = libc::O_NONBLOCK | if follow { 0 } else { libc::O_NOFOLLOW };
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let Some(mut file) = there(opened).map_err(of(path))? else { return Ok(()) };
        let now = file.metadata()?;
        if !now.is_file() {
            return Ok(());
        }
        header.set_metadata(&now);
        if now.len() == 0 {
            let mut bytes = Vec::new();
            (&mut file).take(MAX_UNSIZED).read_to_end(&mut bytes).map_err(of(path))?;
            header.set_size(bytes.len() as u64);
            self.archive.append_data(&mut header, name, &*bytes)?;
        } else {
            header.set_size(now.len());
            let content = Exactly { file, left: now.len() };
            self.archive.append_data(&mut header, name, content).map_err(of(path))?;
        }
        if metadata.nlink() > 1 {
            self.linked.insert(key, name.to_owned());
        }
        Ok(())
    }
}

/// What is in a directory, the last first.
fn children(path: &Path, name: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let Some(entries) = there(fs::read_dir(path)).map_err(of(path))? else { return Ok(Vec::new()) };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names.into_iter().map(|child| (path.join(&child), name.join(&child))).collect())
}

/// `None` for what has gone.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// An error of `path`.
fn of(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// As many bytes as the archive says that the file has: zeros stand for what is gone.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let Some(into) = into.get_mut(..room).filter(|into| !into.is_empty()) else { return Ok(0) };
        let count = match self.file.read(into)? {
            0 => {
                into.fill(0);
                into.len()
            }
            count => count,
        };
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}
