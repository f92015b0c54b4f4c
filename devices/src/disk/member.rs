//! One file of a chain: the raw base, an image, or the top.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::DiskError;
use super::lock;
use super::qcow2::{Image, Malformed, Mapping, Top};
use crate::storage::StoredFile;

/// What a file of a chain is.
#[derive(Debug)]
pub(super) enum Body {
    /// A disk's offset is the file's.
    Raw {
        file: Box<dyn StoredFile>,
        path: PathBuf,
        /// In bytes, when it was opened.
        size: u64,
    },
    /// Only read.
    Image(Box<Image>),
    /// Written, or frozen and not yet closed.
    Top(Box<Top>),
}

/// An open, locked file of a chain. Shared by every [`Stack`](super::stack::Stack) that it is in.
#[derive(Debug)]
pub(super) struct Member {
    pub body: Body,
    /// The same file, opened for direct I/O of data.
    pub direct: Option<File>,
}

impl Member {
    pub(super) fn new(body: Body) -> Self {
        Self { body, direct: None }
    }

    /// Open the file a second time, for direct I/O.
    ///
    /// # Errors
    /// If its file system has none, or the host fails.
    pub(super) fn open_direct(&mut self) -> Result<(), DiskError> {
        let Some(fd) = self.file().fd() else { return Ok(()) };
        let write = matches!(self.body, Body::Top(_));
        // By its descriptor: the name may mean another file by now.
        let again = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let opened = OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
            .open(again);
        let path = || self.path().to_owned();
        self.direct = Some(opened.map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) => DiskError::NoDirect { path: path() },
            _ => DiskError::Open { path: path(), source },
        })?);
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        match &self.body {
            Body::Raw { path, .. } => path,
            Body::Image(image) => &image.path,
            Body::Top(top) => &top.image.path,
        }
    }

    pub(super) fn file(&self) -> &dyn StoredFile {
        match &self.body {
            Body::Raw { file, .. } => &**file,
            Body::Image(image) => &*image.file,
            Body::Top(top) => &*top.image.file,
        }
    }

    /// Where data is read and written by the kernel alone; -1 for a file that the kernel does not have.
    pub(super) fn data_fd(&self) -> RawFd {
        let plain = || self.file().fd().map_or(-1, |fd| fd.as_raw_fd());
        self.direct.as_ref().map_or_else(plain, AsRawFd::as_raw_fd)
    }

    /// Of the disk as this file has it, in bytes.
    pub(super) fn size(&self) -> u64 {
        match &self.body {
            Body::Raw { size, .. } => *size,
            Body::Image(image) => image.header.size,
            Body::Top(top) => top.size(),
        }
    }

    /// The image; `None` if it is raw.
    pub(super) fn image(&self) -> Option<&Image> {
        match &self.body {
            Body::Raw { .. } => None,
            Body::Image(image) => Some(image),
            Body::Top(top) => Some(&top.image),
        }
    }

    pub(super) fn top(&self) -> Option<&Top> {
        match &self.body {
            Body::Top(top) => Some(top),
            _ => None,
        }
    }

    /// Up to where the file has content: of one that is written it changes, and its tables were made here.
    pub(super) fn content_end(&self) -> u64 {
        match &self.body {
            Body::Image(image) => image.len,
            _ => u64::MAX,
        }
    }

    /// The L2 entries of the clusters from `first` on. None of a raw file.
    ///
    /// # Errors
    /// If the tables are damaged, or the host fails.
    pub(super) fn entries(&self, first: u64, entries: &mut [u64]) -> Result<(), Malformed> {
        match &self.body {
            Body::Raw { .. } => Ok(()),
            Body::Image(image) => image.entries(first, entries),
            Body::Top(top) => Ok(top.entries(first, entries)?),
        }
    }

    /// Fill `data`, which lies in one cluster, with what this file alone has there.
    ///
    /// # Errors
    /// If the file is damaged, or the host fails.
    pub(super) fn read_cluster(&self, cluster: u64, whole: &mut [u8]) -> io::Result<()> {
        let Some(image) = self.image() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut entry = [0];
        self.entries(cluster, &mut entry)?;
        match image.mapping(entry[0], self.content_end())? {
            Mapping::Absent | Mapping::Zero(_) => whole.fill(0),
            Mapping::Data(place) => self.file().read_exact_at(whole, place)?,
            Mapping::Packed(place, len) => image.unpack(place, len, whole)?,
        }
        Ok(())
    }

    /// Nothing writes it any more: make it durable, and let others read it.
    ///
    /// # Errors
    /// If the host fails; it may be tried again.
    pub(super) fn close(&self) -> io::Result<()> {
        let Some(top) = self.top() else { return Ok(()) };
        top.close()?;
        if let Some(fd) = self.file().fd() {
            lock::share(fd);
        }
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::error!("{}: its tables cannot be written: {error}", self.path().display());
        }
        if let Some(fd) = self.file().fd() {
            lock::unlock(fd);
        }
    }
}
