//! A disk of layers: the top, which is written, on the frozen files below it.
//!
//! ```text
//! read ──► top's tables ──absent──► slices of the frozen chain ──► pieces: (file, offset, length), zeroes, or packed
//! write ─► top's tables ──placed──► the file, by the engine
//!                       └─no place─► copied here, on the caller's thread
//! ```
//! A stack never changes its files: to freeze the top makes a new stack. Pieces stay right for as long as the stack lives, for no
//! cluster is ever moved, so data is read and written without a lock.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::erase::{Erase, Extent};
use super::layers::{Layers, Place};
use super::member::Member;
use super::qcow2::{Malformed, Mapping, Top};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Stack {
    below: Layers,
    /// `None` if the disk is only read.
    top: Option<Arc<Member>>,
    /// Frozen tops that are perhaps not durable yet.
    frozen: Vec<Arc<Member>>,
    /// The files below are durable. When they are opened that is not known: who wrote one may have died before it was, and what the
    /// guest has read must be there after its next flush.
    settled: AtomicBool,
}

/// What a write meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// This offset of the file of that number.
    Placed { member: usize, offset: u64 },
    /// No place yet.
    Unplaced,
}

impl Stack {
    /// The files of a chain, base first, and the top if it is to be written.
    pub(super) fn new(below: Vec<Arc<Member>>, top: Option<Arc<Member>>) -> Self {
        let settled = AtomicBool::new(below.is_empty());
        Self { below: Layers::new(below), top, frozen: Vec::new(), settled }
    }

    /// The same with the top frozen and `next` above it, and all frozen tops that are not durable yet, the one that was the top last.
    /// No I/O.
    pub(super) fn freeze(&self, next: Arc<Member>) -> Option<(Self, Vec<Arc<Member>>)> {
        let top = Arc::clone(self.top.as_ref()?);
        let mut members = self.below.members().to_vec();
        members.push(Arc::clone(&top));
        let mut frozen: Vec<_> = self.frozen.iter().filter(|old| !is_closed(old)).cloned().collect();
        frozen.push(top);
        let settled = AtomicBool::new(self.settled.load(Ordering::SeqCst));
        let open = frozen.clone();
        Some((Self { below: Layers::new(members), top: Some(next), frozen, settled }, open))
    }

    /// Every file, in the order of their numbers.
    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.below.members().iter().chain(&self.top)
    }

    /// The uppermost file.
    pub(super) fn uppermost(&self) -> Option<&Arc<Member>> {
        self.top.as_ref().or(self.below.members().last())
    }

    /// The files as the kernel has them, in the order of their numbers.
    pub(super) fn fds(&self) -> Vec<RawFd> {
        self.members().map(|member| member.data_fd()).collect()
    }

    /// The number of the file that is written, which is the last one.
    pub(super) fn top_number(&self) -> usize {
        self.below.members().len()
    }

    pub(super) fn top(&self) -> Option<&Top> {
        self.top.as_ref()?.top()
    }

    fn writable(&self) -> io::Result<&Top> {
        self.top().ok_or_else(|| io::Error::from_raw_os_error(libc::EROFS))
    }

    /// The disk's size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.top().map_or_else(|| self.below.size(), Top::size)
    }

    /// Where the disk's byte at `offset` is, and how many of the `len` bytes from there on are one piece with it.
    ///
    /// # Errors
    /// If a table is damaged, or the host fails.
    pub(super) fn locate(&self, offset: u64, len: u64) -> io::Result<(Place, u64)> {
        let (place, mut found) = self.locate_one(offset, len)?;
        while found < len {
            let (next, more) = self.locate_one(offset + found, len - found)?;
            let joins = match (place, next) {
                (Place::Absent | Place::Zero, Place::Absent | Place::Zero) => true,
                (Place::Data { member, offset }, Place::Data { member: other, offset: behind }) => {
                    member == other && offset + found == behind
                }
                _ => false,
            };
            if !joins {
                break;
            }
            found += more;
        }
        Ok((place, found))
    }

    fn locate_one(&self, offset: u64, len: u64) -> io::Result<(Place, u64)> {
        let Some(top) = self.top() else { return self.below.find(offset, len) };
        let within = offset % top.cluster();
        let len = len.min(top.cluster() - within);
        let member = self.top_number();
        match top.lookup(offset / top.cluster())? {
            Mapping::Absent => self.below.find(offset, len),
            Mapping::Zero(_) => Ok((Place::Zero, len)),
            Mapping::Data(place) => Ok((Place::Data { member, offset: place + within }, len)),
            Mapping::Packed(..) => Ok((Place::Packed { member }, len)),
        }
    }

    /// Where a write of `len` bytes at `offset` goes, and how many of them go the same way.
    ///
    /// # Errors
    /// If a table is damaged, or the host fails.
    pub(super) fn target(&self, offset: u64, len: u64) -> io::Result<(Target, u64)> {
        let top = self.writable()?;
        let cluster = top.cluster();
        let (mut found, mut target) = (0, None);
        while found < len {
            let at = offset + found;
            let next = match top.lookup(at / cluster)? {
                Mapping::Data(place) => {
                    Target::Placed { member: self.top_number(), offset: place + at % cluster }
                }
                _ => Target::Unplaced,
            };
            let joins = match (*target.get_or_insert(next), next) {
                (Target::Placed { offset: first, .. }, Target::Placed { offset: behind, .. }) => {
                    first + found == behind
                }
                (first, next) => first == next,
            };
            if !joins {
                break;
            }
            found += (len - found).min(cluster - at % cluster);
        }
        Ok((target.unwrap_or(Target::Unplaced), found))
    }

    /// Fill `data` with the disk's content at `offset`, whatever is there.
    ///
    /// # Errors
    /// If a file is damaged, or the host fails.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (place, len) = self.locate(at, rest.len() as u64)?;
            let (part, after) = rest.split_at_mut(len as usize);
            match place {
                Place::Absent | Place::Zero => part.fill(0),
                Place::Data { member, offset } => self.member(member)?.file().read_exact_at(part, offset)?,
                Place::Packed { member } => self.below.unpack(member, self.member(member)?, at, part)?,
            }
            at += len;
            rest = after;
        }
        Ok(())
    }

    fn member(&self, number: usize) -> io::Result<&Member> {
        let member = self.below.members().get(number).or(self.top.as_ref());
        member.map(|member| &**member).ok_or(io::ErrorKind::InvalidInput.into())
    }

    /// Write `data`, which lies inside the disk, giving it places where it has none.
    ///
    /// # Errors
    /// If the host fails; a part may be written.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writable()?.write(&self.below, offset, data)
    }

    /// Discard or zero an extent that lies inside the disk.
    ///
    /// # Errors
    /// If the host fails; a part may be done.
    pub(super) fn erase(&self, extent: Extent) -> io::Result<()> {
        let range = extent.offset..extent.offset.saturating_add(extent.len);
        self.writable()?.erase(&self.below, range, extent.how == Erase::Discard)
    }

    /// Whether a flush has more to do than to sync the top's file.
    pub(super) fn is_dirty(&self) -> bool {
        let settled = self.settled.load(Ordering::SeqCst) && self.frozen.iter().all(is_closed);
        !settled || self.top().is_some_and(Top::is_dirty)
    }

    /// Make everything durable that was written before, frozen tops first.
    ///
    /// # Errors
    /// If the host fails.
    pub(super) fn flush(&self) -> io::Result<()> {
        if !self.settled.load(Ordering::SeqCst) {
            self.below.members().iter().try_for_each(|member| member.file().sync())?;
            self.settled.store(true, Ordering::SeqCst);
        }
        for old in self.frozen.iter().filter(|old| !is_closed(old)) {
            old.top().map_or(Ok(()), Top::flush)?;
        }
        self.top().map_or(Ok(()), Top::flush)
    }

    /// Make the disk larger.
    ///
    /// # Errors
    /// If it cannot be that large, what is below is longer than the top (and would show), or the host fails.
    pub(super) fn resize(&self, size: u64) -> Result<(), Malformed> {
        let top = self.writable()?;
        if self.below.size() > top.size() {
            return Err(Malformed::Unsupported(
                "a backing file that is longer than itself, so that it cannot grow",
            ));
        }
        top.resize(size)
    }
}

fn is_closed(member: &Arc<Member>) -> bool {
    member.top().is_none_or(Top::is_closed)
}

#[cfg(test)]
#[path = "stack_tests.rs"]
pub(super) mod tests;
