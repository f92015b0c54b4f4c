//! The guest's RAM as a chain of snapshots has it, and how it becomes the RAM of a VM.
//!
//! ```text
//!   layer 2 (top)   ······┌──┐·········┌────┐····
//!   layer 1         ···┌──────┐··0000··└────┘····   0: zero here, whatever is below
//!   layer 0 (base)  ┌──────────────────┐·········
//!   image           bbb111┴22┴1·bb0000bb2222┴····   ·: zero
//! ```
//! [`Image::map`] lets the kernel put that together: the base's file is mapped privately over all RAM, then what lies over it, and
//! anonymous memory where the image is zero for long. Nothing is read until the guest touches it, and pages that it only reads
//! are the page cache's, one for all VMs. So it takes as long for 4 GiB as for 256 MiB (see [`MOST_MAPPINGS`] for long chains).
//!
//! Who changes or truncates a memory file while a VM has it mapped changes or ends that VM: the guest sees other memory, and a page
//! beyond the file's end is a failed `KVM_RUN` or SIGBUS. Lengths are checked just before; files of snapshots are written once
//! and then only ever removed or renamed, which disturbs no mapping.
//!
//! Measured (Linux 6.18, 2 cores, busy): opened and mapped in 0.1 ms, 256 MiB and 4 GiB alike. Filling in all pages at once
//! (`MAP_POPULATE`, `MADV_POPULATE_READ`) would add 5 ms for 256 MiB that are in the page cache and 70 ms for 4 GiB, so that is
//! left to the kernel's fault-around, which maps 16 pages at a time. Huge pages are not asked for where the image is zero: a clone
//! that touches one page in each of two holes would have 4 MiB of its own.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use arch::memory::{GuestRam, SharedRam};
use devices::storage::HostStorage;

use super::MemoryLayer;
use super::error::MemoryFileError;
use super::index::{Content, Index, PAGE};
use super::pieces::{Piece, inside, overlay, union};
use super::plan::{Part, What, data_of, plan};
use crate::memory::{self, Extent};
use crate::spec::{Memory, MemorySpec};

/// How many mappings an image is put together of, at most; shorter runs beyond are copied.
///
/// Mapped or copied, a run costs about 3 µs. What is mapped stays shared, and makes the next fork 0.5 µs longer. The kernel allows a
/// process 65,530 of them.
const MOST_MAPPINGS: usize = 4000;

/// The memory of a chain of snapshots: all zero if there is none.
#[derive(Debug)]
pub struct Image {
    pages: u32,
    layers: Vec<Layer>,
    /// What has data.
    pieces: Vec<Piece>,
}

/// One of its snapshots.
#[derive(Debug)]
struct Layer {
    path: PathBuf,
    /// `None` for one above the base of which nothing is seen: a long chain must not need as many descriptors.
    file: Option<Arc<File>>,
    /// Device and inode: which file it is, whatever its name.
    identity: (u64, u64),
    index: Index,
}

impl Layer {
    fn open(files: &MemoryLayer) -> Result<Self, MemoryFileError> {
        let index = Index::read(&HostStorage, &files.index)?;
        let file = File::open(&files.data).map_err(MemoryFileError::file("open", &files.data))?;
        let meta = file.metadata().map_err(MemoryFileError::file("look at", &files.data))?;
        let (path, identity) = (files.data.clone(), (meta.dev(), meta.ino()));
        let layer = Self { path, file: Some(Arc::new(file)), identity, index };
        layer.check_len()?;
        Ok(layer)
    }

    fn check_len(&self) -> Result<(), MemoryFileError> {
        let Some(file) = &self.file else { return Ok(()) };
        let meta = file.metadata().map_err(MemoryFileError::file("look at", &self.path))?;
        let (has, needs) = (meta.len(), self.index.size());
        if has < needs {
            return Err(MemoryFileError::Truncated { path: self.path.clone(), has, needs });
        }
        Ok(())
    }

    /// Whether both have the same pages. A file that is not held open may be gone, and its number another file's.
    fn same(&self, other: &Self) -> bool {
        self.identity == other.identity && self.index == other.index
    }
}

impl Image {
    /// Of RAM that nobody has written to, of `memory` bytes.
    #[must_use]
    pub fn zero(memory: Memory) -> Self {
        let pages = u32::try_from(memory.0 / PAGE).unwrap_or(u32::MAX);
        Self { pages, layers: Vec::new(), pieces: Vec::new() }
    }

    /// Of a chain of snapshots, the base first. Reads the indexes, and nothing of the memory files.
    ///
    /// # Errors
    /// If a file cannot be read or makes no sense, or they do not belong together.
    pub fn open(chain: &[MemoryLayer]) -> Result<Self, MemoryFileError> {
        let mut layers: Vec<Layer> = Vec::with_capacity(chain.len());
        for files in chain {
            let layer = Layer::open(files)?;
            let needed = layers.first().map_or(layer.index.pages(), |base| base.index.pages());
            if layer.index.pages() != needed {
                return Err(size(&layer.path, layer.index.pages(), needed));
            }
            layers.push(layer);
        }
        let mut pieces = overlay(layers.iter().map(|layer| layer.index.runs()));
        pieces.retain(|piece| piece.content == Content::Data);
        let seen: HashSet<usize> = pieces.iter().map(|piece| piece.layer).collect();
        for (at, layer) in layers.iter_mut().enumerate().skip(1) {
            layer.file = layer.file.take().filter(|_| seen.contains(&at));
        }
        Ok(Self { pages: layers.first().map_or(0, |base| base.index.pages()), layers, pieces })
    }

    /// The RAM's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        u64::from(self.pages) * PAGE
    }

    /// RAM with this content, which is read when it is touched; of huge pages, all of it is copied now.
    ///
    /// # Errors
    /// If the VM has more or less memory, a file has become shorter, or the host refuses.
    pub fn map(&self, memory: &MemorySpec) -> Result<SharedRam, MemoryFileError> {
        self.check_size(memory.size)?;
        let Some(base) = self.layers.first().and_then(|base| base.file.as_ref()) else {
            return Ok(memory::reserve(memory)?);
        };
        for layer in &self.layers {
            layer.check_len()?;
        }
        if memory.hugepages {
            let ram = memory::reserve(memory)?;
            for piece in &self.pieces {
                self.place(&ram, &Part { pages: piece.pages(), what: What::File(piece.layer) }, copy)?;
            }
            return Ok(ram);
        }
        let ram = memory::map_file(memory, base)?;
        let own: Vec<_> =
            self.layers.iter().enumerate().map(|(at, layer)| data_of(layer.index.runs(), at)).collect();
        let own: Vec<_> = own.iter().map(Vec::as_slice).collect();
        let plan = plan(&self.pieces, &own, self.pages, MOST_MAPPINGS);
        for part in &plan.mapped {
            self.place(&ram, part, map)?;
        }
        for part in &plan.copied {
            self.place(&ram, part, copy)?;
        }
        Ok(ram)
    }

    /// Refuse RAM of another size.
    pub(super) fn check_size(&self, memory: Memory) -> Result<(), MemoryFileError> {
        let path = self.layers.first().map(|layer| layer.path.clone()).unwrap_or_default();
        if self.size() == memory.0 {
            return Ok(());
        }
        Err(MemoryFileError::Size { path, has: Memory(self.size()), needs: memory })
    }

    /// Do `how` with `part` of `ram`, which nobody uses yet, in each region that it lies in.
    fn place(&self, ram: &GuestRam, part: &Part, how: How) -> Result<(), MemoryFileError> {
        let layer = match part.what {
            What::Zero => None,
            What::File(layer) => self.layers.get(layer),
        };
        let path = layer.or(self.layers.first()).map(|layer| layer.path.clone()).unwrap_or_default();
        let failed = MemoryFileError::file("map", &path);
        let file = layer.and_then(|layer| layer.file.as_ref()).map(AsRawFd::as_raw_fd);
        if file.is_none() && part.what != What::Zero {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        for extent in memory::extents(ram) {
            let pages = extent.part(&part.pages);
            if !pages.is_empty() {
                how(&extent, &pages, file).map_err(&failed)?;
            }
        }
        Ok(())
    }

    /// The pages whose content may differ between this and `other`: those of the files that not both have.
    pub(super) fn differing(&self, other: &Self) -> Vec<Range<u32>> {
        let pairs = self.layers.iter().zip(&other.layers);
        let same = pairs.take_while(|(one, two)| one.same(two)).count();
        let layers = [self, other].into_iter().flat_map(|image| image.layers.iter().skip(same));
        union(layers.flat_map(|layer| layer.index.runs()).map(|run| run.first..run.end()).collect())
    }

    /// The pages that have data and lie in `pages`.
    pub(super) fn data_in(&self, pages: &Range<u32>) -> impl Iterator<Item = Piece> + use<'_> {
        inside(&self.pieces, pages)
    }

    /// Fill `buffer` with the pages from `first` on of `layer`.
    pub(super) fn read(&self, layer: usize, first: u32, buffer: &mut [u8]) -> io::Result<()> {
        let file = self.layers.get(layer).and_then(|layer| layer.file.as_ref());
        file.ok_or(io::ErrorKind::NotFound)?.read_exact_at(buffer, u64::from(first) * PAGE)
    }

    /// The files that [`Image::read`] reads.
    pub(super) fn files(&self) -> impl Iterator<Item = RawFd> {
        self.layers.iter().filter_map(|layer| layer.file.as_ref()).map(AsRawFd::as_raw_fd)
    }

    /// Where the memory of `layer` is, for messages.
    pub(super) fn path(&self, layer: usize) -> Option<&std::path::Path> {
        self.layers.get(layer).map(|layer| layer.path.as_path())
    }

    /// Whether it has no files.
    pub(super) fn is_zero(&self) -> bool {
        self.layers.is_empty()
    }
}

fn size(path: &std::path::Path, has: u32, needs: u32) -> MemoryFileError {
    let memory = |pages: u32| Memory(u64::from(pages) * PAGE);
    MemoryFileError::Size { path: path.to_owned(), has: memory(has), needs: memory(needs) }
}

/// Put a file's pages, or zeros, at their place in an extent of RAM.
type How = fn(&Extent, &Range<u32>, Option<RawFd>) -> io::Result<()>;

fn map(extent: &Extent, pages: &Range<u32>, file: Option<RawFd>) -> io::Result<()> {
    let (at, len) = extent.place(pages).ok_or(io::ErrorKind::InvalidInput)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let flags = if file.is_some() { flags } else { flags | libc::MAP_ANONYMOUS };
    let offset = if file.is_some() { offset(pages)? } else { 0 };
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: `place` gives a part of a mapping of guest RAM that was made for this image; nobody points into it yet, and
    // it is unmapped with the rest.
    let mapped = unsafe { libc::mmap(at.cast(), len, prot, flags, file.unwrap_or(-1), offset) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn copy(extent: &Extent, pages: &Range<u32>, file: Option<RawFd>) -> io::Result<()> {
    let (at, len) = extent.place(pages).ok_or(io::ErrorKind::InvalidInput)?;
    let Some(file) = file else {
        // SAFETY: as in `map`; the bytes are the guest's, which does not run yet.
        unsafe { at.write_bytes(0, len) };
        return Ok(());
    };
    let mut done = 0;
    while done < len {
        let offset = offset(pages)?.checked_add_unsigned(done as u64).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: as above; `done` is less than `len`.
        let read = unsafe { libc::pread(file, at.add(done).cast(), len - done, offset) };
        match read {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read if read > 0 => done += read as usize,
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Where the pages are in a memory file.
fn offset(pages: &Range<u32>) -> io::Result<i64> {
    i64::try_from(u64::from(pages.start) * PAGE).map_err(io::Error::other)
}
