//! The process that saves: what runs behind the fork, on a copy of the VM's process.
//!
//! It has one thread, and its memory is the VM's as it was at the fork. It may allocate (glibc makes its allocator usable behind a
//! fork) and nothing else that takes a lock: no logging, no standard streams. It ends by `_exit`, and drops nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::dense::{MANY, fill};
use super::error::Step;
use super::image::Image;
use super::index::{Content, PAGE, Run};
use super::message::Message;
use super::pagemap::{self, Kind, Mapping};
use super::pieces::{Runs, union};
use super::progress::Progress;
use crate::memory::Extent;

/// A page that nobody wrote to.
static ZERO: [u8; PAGE as usize] = [0; PAGE as usize];

/// How many pages are looked at in one go, and compared with as many of the parent's: 1 MiB.
const CHUNK: u32 = 256;

/// How much is written at once, in pages, at most: 8 MiB.
const WRITE: u32 = 2048;

/// What there is to save, and where.
pub(super) struct Job {
    pub(super) extents: Vec<Extent>,
    /// What was mapped as RAM.
    pub(super) mapped: Arc<Image>,
    /// What the snapshot is to build on.
    pub(super) parent: Arc<Image>,
    /// Where the two differ.
    pub(super) differing: Vec<Range<u32>>,
    pub(super) data: File,
    pub(super) result: OwnedFd,
    pub(super) progress: Arc<Progress>,
    /// The VM's process.
    pub(super) vm: libc::pid_t,
}

/// What failed, and the layer of the parent's that it was about.
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) layer: Option<usize>,
    pub(super) error: io::Error,
}

impl Step {
    fn failed(self) -> impl Fn(io::Error) -> Failure {
        move |error| Failure { step: self, layer: None, error }
    }
}

/// Save, tell how that went, and end.
pub(super) fn run(job: &Job) -> ! {
    let done = catch_unwind(AssertUnwindSafe(|| {
        let message = save(job).unwrap_or_else(Message::Failed);
        let mut result = File::from(job.result.try_clone()?);
        result.write_all(&message.encode())
    }));
    let code = match done {
        Ok(Ok(())) => 0,
        Ok(Err(_)) => 1,
        Err(_) => 2,
    };
    // SAFETY: ends this process, and runs nothing of what the VM's process would at its end.
    unsafe { libc::_exit(code) }
}

fn save(job: &Job) -> Result<Message, Failure> {
    let mappings = detach(job).map_err(Step::Detach.failed())?;
    let wanted = wanted(job, &mappings).map_err(Step::Scan.failed())?;
    job.progress.set_total(wanted.iter().map(|pages| pages.len() as u64 * PAGE).sum());
    let mut writer = Writer::new(job);
    for extent in &job.extents {
        for pages in &wanted {
            writer.extent(extent, extent.part(pages))?;
        }
    }
    let saved = writer.finish()?;
    job.data.sync_data().map_err(Step::Sync.failed())?;
    Ok(saved)
}

/// Let go of what is the VM's: its end must not wait for this process, and this process must not outlive it.
fn detach(job: &Job) -> io::Result<Vec<Mapping>> {
    // SAFETY: no memory of ours is handed over but a string that is there for ever.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::prctl(libc::PR_SET_NAME, c"snapshot".as_ptr());
        // The VM may have ended before it was asked for the signal.
        if libc::getppid() != job.vm {
            libc::_exit(3);
        }
    }
    let files = job.parent.files();
    close_all_but(files.chain([job.data.as_raw_fd(), job.result.as_raw_fd()]).collect())?;
    // Short of memory, the host had better end this process than the VM. It is no loss if that cannot be said.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let mut mappings = pagemap::mappings()?;
    // A vCPU or a ring that is mapped is in use, whether its descriptor is closed or not.
    for mapping in mappings.iter().filter(|mapping| mapping.kind == Kind::Kernel) {
        // SAFETY: nothing of what runs in this process uses them.
        unsafe { libc::munmap(mapping.addresses.start as *mut libc::c_void, mapping.addresses.len()) };
    }
    mappings.retain(|mapping| mapping.kind == Kind::Anonymous);
    Ok(mappings)
}

/// Close all descriptors but `kept`.
fn close_all_but(mut kept: Vec<RawFd>) -> io::Result<()> {
    kept.sort_unstable();
    let mut first: libc::c_uint = 0;
    for fd in kept.into_iter().filter_map(|fd| libc::c_uint::try_from(fd).ok()) {
        if let Some(last) = fd.checked_sub(1).filter(|last| first <= *last) {
            close(first, last)?;
        }
        first = fd.saturating_add(1);
    }
    close(first, libc::c_uint::MAX)
}

fn close(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: nothing in this process uses them any more, and it never drops their owners.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // Before Linux 5.9.
        error if error.raw_os_error() == Some(libc::ENOSYS) => {
            for entry in fs::read_dir("/proc/self/fd")?.collect::<Vec<_>>() {
                let fd = entry?.file_name().to_str().and_then(|name| name.parse::<libc::c_uint>().ok());
                if let Some(fd) = fd.filter(|fd| (first..=last).contains(fd)) {
                    // SAFETY: as above.
                    unsafe { libc::close(fd as RawFd) };
                }
            }
            Ok(())
        }
        error => Err(error),
    }
}

/// The pages that may not be as the parent has them: those that the guest has of its own, those that what was mapped has
/// otherwise, and those where something else was mapped since (pages given back to the host are zero).
fn wanted(job: &Job, anonymous: &[Mapping]) -> io::Result<Vec<Range<u32>>> {
    let mut wanted = job.differing.clone();
    for extent in &job.extents {
        pagemap::private(extent, &mut wanted)?;
        if !job.mapped.is_zero() {
            for mapping in anonymous {
                let pages = extent.pages_at(&mapping.addresses);
                wanted.extend(job.mapped.data_in(&pages).map(|piece| piece.pages()));
            }
        }
    }
    Ok(union(wanted))
}

/// Compares and writes, pages in rising order.
struct Writer<'a> {
    job: &'a Job,
    /// Pages to be written, side by side.
    pending: Range<u32>,
    /// The parent's pages.
    buffer: Vec<u8>,
    runs: Runs,
    crc: crc32fast::Hasher,
}

impl<'a> Writer<'a> {
    fn new(job: &'a Job) -> Self {
        let buffer = vec![0; CHUNK as usize * PAGE as usize];
        Self { job, pending: 0..0, buffer, runs: Runs::default(), crc: crc32fast::Hasher::new() }
    }

    /// Save `pages`, all of `extent`.
    fn extent(&mut self, extent: &Extent, pages: Range<u32>) -> Result<(), Failure> {
        let mut first = pages.start;
        while first < pages.end {
            let chunk = first..pages.end.min(first.saturating_add(CHUNK));
            first = chunk.end;
            self.chunk(extent, &chunk)?;
            self.job.progress.add(chunk.len() as u64 * PAGE);
        }
        self.flush(extent)
    }

    fn chunk(&mut self, extent: &Extent, chunk: &Range<u32>) -> Result<(), Failure> {
        let job = self.job;
        let mut at = chunk.start;
        for piece in job.parent.data_in(chunk) {
            self.compare(extent, at..piece.first, None)?;
            let mut buffer = std::mem::take(&mut self.buffer);
            let len = piece.count() as usize * PAGE as usize;
            let theirs = buffer.get_mut(..len).unwrap_or_default();
            let failed = |error| Failure { step: Step::Compare, layer: Some(piece.layer), error };
            job.parent.read(piece.layer, piece.first, theirs).map_err(failed)?;
            self.compare(extent, piece.pages(), Some(theirs))?;
            self.buffer = buffer;
            at = piece.end;
        }
        self.compare(extent, at..chunk.end, None)
    }

    /// Take those of `pages` that are not as `theirs`, or not zero.
    fn compare(&mut self, extent: &Extent, pages: Range<u32>, theirs: Option<&[u8]>) -> Result<(), Failure> {
        let ours = memory(extent, &pages).as_chunks::<{ PAGE as usize }>().0;
        match theirs {
            None => {
                for (page, ours) in pages.zip(ours) {
                    if *ours != ZERO {
                        self.data(extent, page)?;
                    }
                }
            }
            Some(theirs) => {
                for ((page, ours), theirs) in pages.zip(ours).zip(theirs.as_chunks().0) {
                    if ours == theirs {
                        continue;
                    }
                    if *ours == ZERO {
                        self.runs.add(page, 1, Content::Zero);
                    } else {
                        self.data(extent, page)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn data(&mut self, extent: &Extent, page: u32) -> Result<(), Failure> {
        self.runs.add(page, 1, Content::Data);
        if self.pending.end != page || self.pending.len() >= WRITE as usize {
            self.flush(extent)?;
            self.pending = page..page;
        }
        self.pending.end = page.saturating_add(1);
        Ok(())
    }

    /// Write unchanged pages too where there would be too many runs otherwise. A first snapshot is never mapped run by run.
    fn finish(mut self) -> Result<Message, Failure> {
        let job = self.job;
        let (runs, crc32) = (std::mem::take(&mut self.runs).into_vec(), self.crc.clone().finalize());
        let gaps = if job.parent.is_zero() { Vec::new() } else { fill(&runs, MANY) };
        if gaps.is_empty() {
            return Ok(Message::Saved { crc32, runs });
        }
        for extent in &job.extents {
            for gap in &gaps {
                // As if the parent had nothing there: zeros are left out, and read as zeros.
                self.compare(extent, extent.part(gap), None)?;
            }
            self.flush(extent)?;
        }
        let gaps = gaps.into_iter().map(|gap| Run {
            first: gap.start,
            count: gap.end.saturating_sub(gap.start),
            content: Content::Data,
        });
        let mut all: Vec<Run> = runs.into_iter().chain(gaps).collect();
        all.sort_unstable_by_key(|run| run.first);
        let mut runs = Runs::default();
        for run in all {
            runs.add(run.first, run.count, run.content);
        }
        let runs = runs.into_vec();
        Ok(Message::Saved { crc32: sum(&job.extents, &runs), runs })
    }

    /// Write what is pending.
    fn flush(&mut self, extent: &Extent) -> Result<(), Failure> {
        let pages = std::mem::take(&mut self.pending);
        if pages.is_empty() {
            return Ok(());
        }
        let bytes = memory(extent, &pages);
        self.crc.update(bytes);
        let at = u64::from(pages.start) * PAGE;
        self.job.data.write_all_at(bytes, at).map_err(Step::Write.failed())
    }
}

/// The CRC-32 of the data of `runs`, in their order.
fn sum(extents: &[Extent], runs: &[Run]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for run in runs.iter().filter(|run| run.content == Content::Data) {
        for extent in extents {
            crc.update(memory(extent, &extent.part(&(run.first..run.end()))));
        }
    }
    crc.finalize()
}

/// What is in `pages`; nothing if they are not in `extent`.
fn memory<'a>(extent: &Extent, pages: &Range<u32>) -> &'a [u8] {
    let Some((start, len)) = extent.place(pages) else { return &[] };
    // SAFETY: these are pages of guest RAM, which is mapped and can be read; in this process nothing ever writes to them or unmaps them,
    // and what other processes write goes to copies. Files that are mapped there are never written again.
    unsafe { std::slice::from_raw_parts(start, len) }
}
