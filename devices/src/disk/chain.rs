//! Opening a file with all that is below it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::DiskError;
use super::layers::Layers;
use super::lock;
use super::member::{Body, Member};
use super::probe;
use super::qcow2::{Format, Image, Malformed, Top};
use super::stack::Stack;
use crate::storage::{Storage, StoredFile};

/// The most files of a chain.
pub(super) const MAX_DEPTH: usize = 256;

/// How a chain is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// The uppermost file is written; the others never are.
    pub write: bool,
    /// Data goes around the host's page cache.
    pub direct: bool,
}

/// Open the qcow2 image at `path` and everything below it, and lock each: the uppermost for itself if it is written, the others with
/// whoever else reads them.
///
/// # Errors
/// If one of them cannot be used; each names it.
pub(super) fn open(storage: &dyn Storage, path: &Path, access: Access) -> Result<Stack, DiskError> {
    let image = open_image(storage, path, access.write)?;
    let mut next = backing(&image);
    let body = if access.write {
        Body::Top(Box::new(Top::new(image).map_err(malformed(path))?))
    } else {
        Body::Image(Box::new(image))
    };
    let first = finish(body, access.direct)?;
    let mut below = Vec::new();
    let mut seen = vec![path.to_owned()];
    while let Some((path, format)) = next {
        let above = seen.last().cloned().unwrap_or_default();
        if seen.contains(&path) {
            return Err(DiskError::Loop { path: above, below: path });
        }
        if seen.len() >= MAX_DEPTH {
            return Err(DiskError::TooDeep { path: seen.swap_remove(0) });
        }
        let member = open_below(storage, &path, format, access.direct);
        let (member, further) = member.map_err(|source| match source {
            // An empty one in its place would be no fix.
            DiskError::Missing { path: below } => DiskError::NothingBelow { path: above, below },
            source => DiskError::Below { path: above, below: path.clone(), source: Box::new(source) },
        })?;
        below.push(member);
        seen.push(path);
        next = further;
    }
    below.reverse();
    if access.write {
        return Ok(Stack::new(below, Some(first)));
    }
    below.push(first);
    Ok(Stack::new(below, None))
}

/// Open a file, raw or qcow2, with everything below it, to read it.
///
/// # Errors
/// As for [`open`].
pub(super) fn open_readonly(storage: &dyn Storage, path: &Path) -> Result<Layers, DiskError> {
    if sniff(storage, path)? == Format::Raw {
        let (member, _) = open_below(storage, path, Some(Format::Raw), false)?;
        return Ok(Layers::new(vec![member]));
    }
    let stack = open(storage, path, Access { write: false, direct: false })?;
    Ok(Layers::new(stack.members().cloned().collect()))
}

/// An image that lies on nothing, to read it.
pub(super) fn alone(image: Image) -> Layers {
    Layers::new(vec![Arc::new(Member::new(Body::Image(Box::new(image))))])
}

type Backing = Option<(PathBuf, Option<Format>)>;

/// A file that is only read, and what is below it.
fn open_below(
    storage: &dyn Storage,
    path: &Path,
    format: Option<Format>,
    direct: bool,
) -> Result<(Arc<Member>, Backing), DiskError> {
    let format = match format {
        Some(format) => format,
        None => sniff(storage, path)?,
    };
    if format == Format::Qcow2 {
        let image = open_image(storage, path, false)?;
        let next = backing(&image);
        return Ok((finish(Body::Image(Box::new(image)), direct)?, next));
    }
    let file = open_file(storage, path, false)?;
    let size = file.len().map_err(read_failed(path))?;
    if size == 0 {
        return Err(DiskError::Empty { path: path.to_owned() });
    }
    if size % super::SECTOR != 0 {
        return Err(DiskError::Size { path: path.to_owned(), size });
    }
    let body = Body::Raw { file, path: path.to_owned(), size };
    Ok((finish(body, direct)?, None))
}

fn finish(body: Body, direct: bool) -> Result<Arc<Member>, DiskError> {
    let mut member = Member::new(body);
    if direct {
        member.open_direct()?;
    }
    Ok(Arc::new(member))
}

/// An image that is to go on top of a chain: open for writing, locked, and checked.
pub(super) fn open_top(storage: &dyn Storage, path: &Path, direct: bool) -> Result<Arc<Member>, DiskError> {
    let image = open_image(storage, path, true)?;
    finish(Body::Top(Box::new(Top::new(image).map_err(malformed(path))?)), direct)
}

/// Open and lock a qcow2 file, and check its header.
pub(super) fn open_image(storage: &dyn Storage, path: &Path, write: bool) -> Result<Image, DiskError> {
    let file = open_file(storage, path, write)?;
    Image::new(file, path).map_err(malformed(path))
}

fn open_file(storage: &dyn Storage, path: &Path, write: bool) -> Result<Box<dyn StoredFile>, DiskError> {
    let file = storage.open(path, write).map_err(|source| open_failed(path, !write, source))?;
    if let Some(fd) = file.fd() {
        lock::lock(fd, path, !write)?;
    }
    Ok(file)
}

/// The format of a file that does not say it otherwise.
pub(super) fn sniff(storage: &dyn Storage, path: &Path) -> Result<Format, DiskError> {
    let file = storage.open(path, false).map_err(|source| open_failed(path, true, source))?;
    let mut head = [0; super::SECTOR as usize];
    match file.read_exact_at(&mut head, 0) {
        // Shorter than any image: what is wrong with it is found out later.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Format::Raw),
        Err(source) => Err(read_failed(path)(source)),
        Ok(()) => {
            probe::check_known(&head, path)?;
            Ok(Format::probe(&head))
        }
    }
}

/// Where the file below `image` is. A relative name is looked for beside it.
pub(super) fn backing(image: &Image) -> Backing {
    let name = image.header.backing.as_ref()?;
    let dir = image.path.parent().unwrap_or(Path::new(""));
    Some((dir.join(name), image.header.backing_format))
}

/// Whether two paths lead to one file.
pub(super) fn same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    one == other || real(one) == real(other)
}

pub(super) fn malformed(path: &Path) -> impl FnOnce(Malformed) -> DiskError {
    |source| DiskError::Image { path: path.to_owned(), source }
}

pub(super) fn read_failed(path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    |source| DiskError::Read { path: path.to_owned(), source }
}

/// What an error of opening means.
pub(super) fn open_failed(path: &Path, readonly: bool, source: io::Error) -> DiskError {
    let path = path.to_owned();
    match (source.raw_os_error(), source.kind()) {
        (Some(libc::EBUSY), _) => DiskError::HostUses { path },
        (Some(libc::EROFS), _) => DiskError::ReadOnlyFileSystem { path },
        (_, ErrorKind::NotFound) => DiskError::Missing { path },
        (_, ErrorKind::IsADirectory) => DiskError::Directory { path },
        (None, ErrorKind::Unsupported) => DiskError::NotADisk { path },
        (_, ErrorKind::PermissionDenied) => {
            DiskError::Permission { path, need: if readonly { "read" } else { "read and write" } }
        }
        _ => DiskError::Open { path, source },
    }
}
