//! A disk whose offsets are the file's: read with its holes known, and written with them.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use devices::disk::SECTOR;
use devices::disk::layer::Source;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::MAX_SIZE;
use super::error::Malformed;

/// How much is read and written at a time, in bytes.
const CHUNK: u64 = 1 << 20;
/// What is looked at to tell zeroes, in bytes: a block of most file systems.
const BLOCK: usize = 4096;
/// How often the room that is left is looked at, in bytes that were written.
const LOOK_EVERY: u64 = 64 << 20;
/// What an import leaves free, in bytes, so that a full disk is not what everybody else has of it.
const RESERVE: u64 = 256 << 20;

/// A file, or a part of one, as a disk.
#[derive(Debug)]
pub(super) struct Raw {
    file: File,
    start: u64,
    /// What of the disk is in the file, in bytes; behind it are zeroes.
    there: u64,
    size: u64,
}

impl Raw {
    /// The whole file. A disk ends with a sector: what is missing of the last one is zeroes.
    ///
    /// # Errors
    /// If it is empty or larger than any disk here.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        if len == 0 {
            return Err(Malformed::Outside { what: "its first sector", offset: 0 }.into());
        }
        let size = bounded(len.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX))?;
        Ok(Self { file, start: 0, there: len, size })
    }

    /// `size` bytes from `start` on, all of which must be there.
    ///
    /// # Errors
    /// If they are not.
    pub(super) fn part(file: File, start: u64, size: u64) -> io::Result<Self> {
        let len = file.metadata()?.len();
        if start.checked_add(size).is_none_or(|end| end > len) || size == 0 {
            return Err(Malformed::Outside { what: "the extent", offset: start }.into());
        }
        Ok(Self { file, start, there: size, size: bounded(size)? })
    }
}

/// A disk's size, if it can be imported.
pub(super) fn bounded(size: u64) -> Result<u64, Malformed> {
    if size > MAX_SIZE { Err(Malformed::TooLarge { size, most: MAX_SIZE }) } else { Ok(size) }
}

impl Source for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn extent(&mut self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        if offset >= self.there {
            return Ok((true, len));
        }
        // Both lie in the disk, which is smaller than any offset that a file can have.
        let (at, end) = (self.start + offset, self.start + self.there.min(offset.saturating_add(len)));
        let seek = |to| rustix::fs::seek(&self.file, to);
        match seek(SeekFrom::Data(at)) {
            Ok(data) if data > at => Ok((true, data.min(end) - at)),
            Ok(_) => {
                let hole = seek(SeekFrom::Hole(at)).unwrap_or(end);
                Ok((false, hole.clamp(at + 1, end) - at))
            }
            Err(Errno::NXIO) => Ok((true, end - at)),
            // A file system that does not know of holes.
            Err(_) => Ok((false, end - at)),
        }
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(self.there.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        let (inside, behind) = data.split_at_mut(there);
        behind.fill(0);
        self.file.read_exact_at(inside, self.start + offset)
    }
}

/// Looks now and then whether there is still room where something large is written.
#[derive(Debug)]
pub(super) struct Room<'a> {
    dir: &'a Path,
    looked_at: u64,
}

impl<'a> Room<'a> {
    /// On the file system of `dir`.
    pub(super) fn new(dir: &'a Path) -> Self {
        Self { dir, looked_at: 0 }
    }

    /// `written` bytes are written now.
    ///
    /// # Errors
    /// `StorageFull` if hardly any room is left.
    pub(super) fn check(&mut self, written: u64) -> io::Result<()> {
        if written != 0 && written.saturating_sub(self.looked_at) < LOOK_EVERY {
            return Ok(());
        }
        self.looked_at = written;
        let stat = rustix::fs::statvfs(self.dir)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free >= RESERVE {
            return Ok(());
        }
        let text = format!(
            "{} has {} MiB left, and 256 MiB are kept free: make room, or set XDG_DATA_HOME to a larger place",
            self.dir.display(),
            free >> 20
        );
        Err(io::Error::new(ErrorKind::StorageFull, text))
    }
}

/// Make a raw file at `out` of what `source` holds, for its owner only; zeroes are holes. `progress` as for
/// [`pack`](devices::disk::layer::pack).
///
/// # Errors
/// If there is such a file, the source cannot be read, or the host fails; then no file stays.
pub(super) fn write(
    source: &mut dyn Source,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(out)?;
    let written = file.set_len(source.size()).and_then(|()| {
        let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        copy(source, &file, 0, &mut Room::new(dir), progress)?;
        file.sync_all()
    });
    match written {
        Ok(()) => Ok(file),
        Err(error) => {
            // The first error is the one that matters.
            let _ = std::fs::remove_file(out);
            Err(error)
        }
    }
}

/// Copy what is not zeroes of `source` to `start` bytes into `file` and on, where only zeroes are.
fn copy(
    source: &mut dyn Source,
    file: &File,
    start: u64,
    room: &mut Room<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<()> {
    let (size, mut at, mut written) = (source.size(), 0, 0_u64);
    let mut buffer = vec![0; CHUNK as usize];
    room.check(0)?;
    while at < size {
        let (zero, found) = source.extent(at, size - at)?;
        if zero {
            at += found;
        } else {
            // Up to the next multiple of a chunk, so that blocks are whole.
            let len = found.min(CHUNK - at % CHUNK);
            let data = buffer.get_mut(..len as usize).unwrap_or_default();
            source.read(at, data)?;
            written = written.saturating_add(write_blocks(file, data, start + at)?);
            room.check(written)?;
            at += len;
        }
        progress(at, size);
    }
    Ok(())
}

/// Let what is `start` bytes into `file` be what `source` holds.
///
/// # Errors
/// If the source cannot be read, or the host fails; a part may be done.
pub(super) fn replace(source: &mut dyn Source, file: &File, start: u64, dir: &Path) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, start, source.size())?;
    copy(source, file, start, &mut Room::new(dir), &mut |_, _| ())
}

/// Write what `from` holds to a file at `out`, for its owner only; zeroes are holes. `progress` is called now and then.
///
/// # Errors
/// If it holds more than any disk, there is such a file, or the host fails; then no file stays.
pub(super) fn unpack(mut from: impl Read, out: &Path, progress: &mut dyn FnMut()) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(out)?;
    let mut unpacked = || {
        let mut room = Room::new(out.parent().unwrap_or(Path::new(".")));
        let mut buffer = vec![0; CHUNK as usize];
        let (mut at, mut written) = (0_u64, 0_u64);
        room.check(0)?;
        loop {
            let len = fill(&mut from, &mut buffer)?;
            if len == 0 {
                return file.set_len(at);
            }
            written = written.saturating_add(write_blocks(&file, buffer.get(..len).unwrap_or_default(), at)?);
            at = bounded(at.saturating_add(len as u64))?;
            room.check(written)?;
            progress();
        }
    };
    match unpacked() {
        Ok(()) => Ok(file),
        Err(error) => {
            // The first error is the one that matters.
            let _ = std::fs::remove_file(out);
            Err(error)
        }
    }
}

/// Read until `buffer` is full or there is nothing more.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Write what of `data` is not zeroes. Returns how much that was.
fn write_blocks(file: &File, data: &[u8], offset: u64) -> io::Result<u64> {
    let (mut at, mut written) = (0, 0);
    while at < data.len() {
        let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        let rest = data.get(at..).unwrap_or_default();
        let zeroes: usize = rest.chunks(BLOCK).take_while(|block| is_zero(block)).map(<[u8]>::len).sum();
        let rest = rest.get(zeroes..).unwrap_or_default();
        let run: usize = rest.chunks(BLOCK).take_while(|block| !is_zero(block)).map(<[u8]>::len).sum();
        let run_data = rest.get(..run).unwrap_or_default();
        file.write_all_at(run_data, offset + (at + zeroes) as u64)?;
        written += run as u64;
        at += zeroes + run;
    }
    Ok(written)
}
