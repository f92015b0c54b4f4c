//! One request on its way: which system call it needs next. Shared by all engines; makes no call that waits for
//! data itself.
//!
//! ```text
//!            ┌── short, interrupted, next piece or extent ──┐
//!            ▼                                              │
//! new ──► next(None) ──► Read/Write/Sync/Fallocate ──► next(Some(result)) ──► Finished
//! ```

use std::io;

use rustix::fs::FallocateFlags;

use super::super::erase::unsupported;
use super::super::qcow2::MAGIC;
use super::super::{Alignment, Extent};
use super::Io;
use super::files::Files;
use super::layered::Piece;

/// The most that is copied at a time where direct I/O cannot use the guest's own buffers, in bytes. With a full
/// queue of such requests this bounds the host memory that they take.
pub(super) const BOUNCE: u64 = 64 * 1024;

/// How often a call that says `EAGAIN` is repeated before that is taken for an answer.
const MAX_RETRIES: u32 = 64;

/// What to ask of the host.
#[derive(Debug)]
pub(super) enum Step {
    /// `preadv` at this offset of the file of that number into [`Transfer::iovecs`].
    Read { file: usize, offset: u64 },
    /// `pwritev` at this offset of the file of that number from [`Transfer::iovecs`].
    Write { file: usize, offset: u64, durable: bool },
    /// `fdatasync`.
    Sync { file: usize },
    /// `fallocate` of a raw disk; a host that cannot do it is asked otherwise by the next step.
    Fallocate { flags: FallocateFlags, extent: Extent },
    /// Nothing more.
    Finished(io::Result<()>),
}

/// A request and how far it has got.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) io: Io,
    /// Bytes moved, or extents erased; for a flush, 1 when done.
    pub(super) done: u64,
    /// Of a disk of layers: what is being moved.
    pub(super) piece: Piece,
    /// Something was written that is not durable by itself.
    pub(super) copied: bool,
    retries: u32,
    iovecs: Vec<libc::iovec>,
    /// The copy that stands for the guest's buffers, with its aligned start.
    bounce: Option<Bounce>,
}

impl Transfer {
    pub(super) fn new(io: Io) -> Self {
        let piece = Piece::default();
        Self { io, done: 0, piece, copied: false, retries: 0, iovecs: Vec::new(), bounce: None }
    }

    /// Where the current read or write goes. Good until the next call of [`Transfer::next`] and while `self` lives,
    /// wherever it is moved: they point into guest memory, which `self` keeps mapped, or into its bounce buffer.
    pub(super) fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// The next step, given what came of the last one: bytes moved, or an error.
    pub(super) fn next(&mut self, files: &Files, last: Option<io::Result<usize>>) -> Step {
        let advanced = match last {
            None => Ok(()),
            Some(Ok(moved)) => self.advance(moved),
            Some(Err(error)) => self.failed(files, error),
        };
        let step = advanced.and_then(|()| match &files.stack {
            None => self.step(files),
            Some(stack) => self.layered_step(files, stack),
        });
        match step {
            Ok(step) => step,
            Err(error) => Step::Finished(Err(error)),
        }
    }

    fn advance(&mut self, moved: usize) -> io::Result<()> {
        self.retries = 0;
        match &self.io {
            Io::Flush | Io::Erase(_) => self.done += 1,
            // The disk was truncated while it was open.
            Io::Read { .. } | Io::Write { .. } if moved == 0 => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Io::Read { buffers, .. } => {
                if let Some(data) = self.bounce.as_mut().and_then(|bounce| bounce.get(moved)) {
                    buffers.fill(self.done, data)?;
                }
                self.done += moved as u64;
                self.piece.advance(moved as u64);
            }
            Io::Write { .. } => {
                self.done += moved as u64;
                self.piece.advance(moved as u64);
            }
        }
        Ok(())
    }

    fn failed(&mut self, files: &Files, error: io::Error) -> io::Result<()> {
        if error.kind() == io::ErrorKind::Interrupted {
            return Ok(());
        }
        if error.kind() == io::ErrorKind::WouldBlock && self.retries < MAX_RETRIES {
            self.retries += 1;
            return Ok(());
        }
        match &self.io {
            Io::Erase(extents) if unsupported(&error) => {
                let extent = usize::try_from(self.done).ok().and_then(|index| extents.get(index));
                if let Some((extent, raw)) = extent.zip(files.raw()) {
                    raw.erase(*extent)?;
                }
                self.advance(0)
            }
            _ => Err(error),
        }
    }

    /// The next step of a request to a raw disk.
    fn step(&mut self, files: &Files) -> io::Result<Step> {
        let file = 0;
        match &self.io {
            Io::Read { offset, buffers } => {
                let offset = *offset + self.done;
                let left = buffers.total().saturating_sub(self.done);
                if left == 0 {
                    return Ok(Step::Finished(Ok(())));
                }
                self.aim(files, offset, left)?;
                Ok(Step::Read { file, offset })
            }
            Io::Write { offset, buffers, durable } => {
                let (offset, durable) = (*offset + self.done, *durable);
                let left = buffers.total().saturating_sub(self.done);
                if left == 0 {
                    return Ok(Step::Finished(Ok(())));
                }
                if offset == 0 {
                    // Copied first, so that the guest cannot change what was looked at.
                    let align = files.direct().map_or(1, |align| align.memory);
                    self.bounce.get_or_insert_with(|| Bounce::new(align as usize));
                }
                self.aim(files, offset, left)?;
                self.fetch_bounce(left)?;
                if offset == 0 {
                    self.refuse_disguise()?;
                }
                Ok(Step::Write { file, offset, durable })
            }
            Io::Flush if self.done == 0 => Ok(Step::Sync { file }),
            Io::Flush => Ok(Step::Finished(Ok(()))),
            Io::Erase(_) => self.erase_step(files),
        }
    }

    /// A raw disk must not become an image of another format: opened the next time by its content, it could name any file of the host as
    /// its backing file, and the guest would read that.
    fn refuse_disguise(&mut self) -> io::Result<()> {
        let head = self.bounce.as_mut().and_then(|bounce| bounce.get(MAGIC.len()));
        if head.is_some_and(|head| *head == MAGIC) {
            let text = "it would make a raw disk look like a qcow2 image";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(())
    }

    /// The next extent. Those that no single call does (a block device's discards) are done here, at once.
    fn erase_step(&mut self, files: &Files) -> io::Result<Step> {
        let (Io::Erase(extents), Some(raw)) = (&self.io, files.raw()) else {
            return Ok(Step::Finished(Ok(())));
        };
        let first = usize::try_from(self.done).unwrap_or(usize::MAX);
        for extent in extents.iter().skip(first) {
            if let Some(flags) = extent.fallocate(raw.backing) {
                return Ok(Step::Fallocate { flags, extent: *extent });
            }
            raw.erase(*extent)?;
            self.done += 1;
        }
        Ok(Step::Finished(Ok(())))
    }

    /// Point `iovecs` at the next `left` bytes to move, which lie at `offset` of a file: the guest's buffers, or where direct I/O cannot use
    /// those a bounce buffer for a part of them.
    pub(super) fn aim(&mut self, files: &Files, offset: u64, left: u64) -> io::Result<()> {
        let (Io::Read { buffers, .. } | Io::Write { buffers, .. }) = &self.io else { return Ok(()) };
        let direct = files.direct();
        if self.bounce.is_none() {
            self.iovecs.clear();
            buffers.point_on(self.done, left, &mut self.iovecs)?;
            let Some(align) = direct else { return Ok(()) };
            if aligned(&self.iovecs, align) {
                return Ok(());
            }
        }
        let align = direct.map_or(1, |align| align.memory);
        if direct.is_some_and(|align| !(offset | left).is_multiple_of(u64::from(align.offset))) {
            // Smaller than what the host can transfer; the guest was told the block size.
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let piece = left.min(BOUNCE) as usize;
        let data = self.bounce.get_or_insert_with(|| Bounce::new(align as usize)).get(piece);
        let data = data.ok_or(io::ErrorKind::OutOfMemory)?;
        self.iovecs.clear();
        self.iovecs.push(libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() });
        Ok(())
    }

    /// Fill the bounce buffer, if there is one, with the next of `left` bytes to write.
    pub(super) fn fetch_bounce(&mut self, left: u64) -> io::Result<()> {
        let Io::Write { buffers, .. } = &self.io else { return Ok(()) };
        match self.bounce.as_mut().and_then(|bounce| bounce.get(left.min(BOUNCE) as usize)) {
            Some(data) => buffers.fetch(self.done, data),
            None => Ok(()),
        }
    }
}

fn aligned(iovecs: &[libc::iovec], align: Alignment) -> bool {
    // Powers of two; u32 fits usize on the 64-bit hosts that KVM is used on.
    let (memory, length) = (align.memory as usize - 1, align.offset as usize - 1);
    iovecs.iter().all(|iovec| iovec.iov_base as usize & memory == 0 && iovec.iov_len & length == 0)
}

/// An aligned buffer of [`BOUNCE`] bytes, on the heap: it stays where it is when this is moved.
#[derive(Debug)]
struct Bounce {
    bytes: Vec<u8>,
    start: usize,
}

impl Bounce {
    fn new(align: usize) -> Self {
        let bytes = vec![0; BOUNCE as usize + align];
        let start = bytes.as_ptr().align_offset(align);
        Self { bytes, start }
    }

    /// The first `len` aligned bytes; `None` beyond [`BOUNCE`].
    fn get(&mut self, len: usize) -> Option<&mut [u8]> {
        self.bytes.get_mut(self.start..self.start.checked_add(len)?)
    }
}

// The raw pointers of `iovecs` keep `Transfer` from being `Send`, which is right: it stays with its engine.
