//! [`archive`]: the root file system of an image's disk as a tar archive, which [`export_files`] makes a file of.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use devices::disk::layer::{Content, Source};
use devices::storage::HostStorage;

use super::DiskError;
use super::bytes::Stored;
use super::error::{copy_failed, read_failed, write_failed};
use super::export::Aside;
use super::filesystem::FileSystem;
use super::raw::{self, Raw, Room};
use super::system::{self, Volume, ext4_failed};
use crate::ext4::{self, ArchiveError, reader::Reader};
use crate::progress::Progress;
use crate::tree::{Limits, Packed};

/// How much is written at once, in bytes.
const BUFFER: usize = 256 << 10;
/// What `root=` stands before on a kernel's command line.
const ROOT: &str = "root=";

/// Writes the files of the root file system of the disk whose top layer is at `top`, a file of skiff's own, to a tar archive. Which of its file systems
/// that is says `cmdline`, its kernel's command line. What is mounted below it from other partitions is not in it. `work` is a private
/// directory, for a copy of a file system that was in use when it was last written.
///
/// # Errors
/// If it is none that can be read here, is damaged, or the host fails.
pub fn archive(
    top: &Path,
    cmdline: &str,
    work: &Path,
    into: &mut dyn Write,
    progress: &mut dyn Progress,
) -> Result<Packed, DiskError> {
    let mut content = Content::open(&HostStorage, top)?;
    let volume = root(&mut content, cmdline, top)?;
    progress.step("packing the root file system");
    let limits = Limits::default();
    let (what, unclean) =
        (format!("the root file system of {} cannot be packed", top.display()), volume.kind);
    let failed = |source: ArchiveError| DiskError::Other { what, source: Box::new(source) };
    let pack = |disk: &mut dyn Source, start| {
        let mut reader = Reader::open(disk, start)?;
        ext4::archive(&mut reader, into, &limits, progress)
    };
    if unclean == (FileSystem::Ext { unclean: true }) {
        let mut replayed = replayed(&mut content, &volume, work, top)?;
        return pack(&mut replayed, 0).map_err(failed);
    }
    pack(&mut content, volume.start).map_err(failed)
}

/// The same as a file at `to`. What was there is replaced at once.
///
/// # Errors
/// As [`archive`]; then `to` is what it was.
pub fn export_files(
    top: &Path,
    cmdline: &str,
    to: &Path,
    progress: &mut dyn Progress,
) -> Result<Packed, DiskError> {
    let aside = Aside::of(to)?;
    let file = File::create_new(aside.path()).map_err(write_failed(to))?;
    let mut into = Roomy { file, room: Room::new(aside.dir()), written: 0 };
    let packed =
        archive(top, cmdline, aside.dir(), &mut BufWriter::with_capacity(BUFFER, &mut into), progress)?;
    aside.publish(to)?;
    Ok(packed)
}

/// A file that leaves room to others.
struct Roomy<'a> {
    file: File,
    room: Room<'a>,
    written: u64,
}

impl Write for Roomy<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.room.check(self.written)?;
        let written = self.file.write(bytes)?;
        self.written = self.written.saturating_add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The file system that the kernel takes for its root.
fn root(content: &mut Content, cmdline: &str, top: &Path) -> Result<Volume, DiskError> {
    let none = |reason: String| DiskError::System { path: top.to_owned(), reason };
    let wanted = cmdline.split_whitespace().rev().find_map(|word| word.strip_prefix(ROOT));
    let wanted = wanted.ok_or_else(|| none("its kernel's command line has no root=".to_owned()))?;
    let volumes = system::volumes(&Shared(RefCell::new(content)), top)?;
    let volume = volumes.into_iter().find(|volume| volume.root().eq_ignore_ascii_case(wanted));
    let volume = volume.ok_or_else(|| none(format!("it has no {ROOT}{wanted}")))?;
    match volume.kind {
        FileSystem::Ext { .. } => Ok(volume),
        other => Err(none(format!(
            "its root is {}, and only files of ext4 can be taken out: export the disk, as qcow2 or raw",
            other.name()
        ))),
    }
}

/// A copy of a file system whose journal has been replayed, as its guest would at its next start.
fn replayed(content: &mut Content, volume: &Volume, work: &Path, top: &Path) -> Result<Raw, DiskError> {
    let path = work.join("root");
    let len = volume.partition.as_ref().map_or(content.size(), |partition| partition.len);
    let mut part = Part { content, start: volume.start, len };
    raw::write(&mut part, &path, &mut |_, _| ()).map_err(copy_failed(top, &path))?;
    ext4::replay(&path).map_err(ext4_failed("replaying the journal of the root file system"))?;
    File::open(&path).and_then(Raw::new).map_err(read_failed(&path))
}

/// A part of a disk.
struct Part<'a> {
    content: &'a mut Content,
    start: u64,
    len: u64,
}

impl Source for Part<'_> {
    fn size(&self) -> u64 {
        self.len
    }

    fn extent(&mut self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        self.content.extent(self.start.saturating_add(offset), len)
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.content.read(self.start.saturating_add(offset), data)
    }
}

/// A disk that is read like a file.
struct Shared<'a>(RefCell<&'a mut Content>);

impl Stored for Shared<'_> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.borrow().size())
    }

    fn fill(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.borrow_mut().read(offset, data)
    }
}
