//! What an engine reads and writes: one raw file, or the files of a chain.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::super::erase::RawFile;
use super::super::stack::Stack;
use super::super::{Alignment, Content, Disk};

/// A disk's files, as they are while its device runs.
#[derive(Debug)]
pub(super) struct Files {
    pub disk: Arc<Disk>,
    pub stack: Option<Arc<Stack>>,
    fds: Vec<RawFd>,
}

impl Files {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        let stack = disk.stack();
        let fds = match &disk.content {
            Content::Raw { file, .. } => vec![file.as_raw_fd()],
            Content::Layers(_) => stack.as_ref().map(|stack| stack.fds()).unwrap_or_default(),
        };
        Self { disk, stack, fds }
    }

    /// The file of a raw disk.
    pub(super) fn raw(&self) -> Option<RawFile<'_>> {
        match &self.disk.content {
            Content::Raw { file, backing } => Some(RawFile { file, backing: *backing }),
            Content::Layers(_) => None,
        }
    }

    pub(super) fn direct(&self) -> Option<Alignment> {
        self.disk.direct()
    }

    /// All of them, in the order of their numbers. Open for as long as `self` is.
    pub(super) fn fds(&self) -> &[RawFd] {
        &self.fds
    }

    /// The file of that number; -1, which no call takes, if there is none.
    pub(super) fn fd(&self, number: usize) -> RawFd {
        self.fds.get(number).copied().unwrap_or(-1)
    }
}
