//! Memory that is saved, put back, merged and saved again, against a plain list of bytes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io, thread};

use arch::memory::SharedRam;
use devices::storage::HostStorage;
use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::memory;
use crate::spec::{Memory, MemorySpec};

const MIB: u64 = 1 << 20;

fn spec(size: u64) -> MemorySpec {
    MemorySpec { size: Memory(size), hugepages: false, overcommit: true }
}

/// A directory with memory files.
struct Lab {
    dir: TempDir,
    made: u32,
}

impl Lab {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), made: 0 }
    }

    fn files(&mut self) -> MemoryLayer {
        self.made += 1;
        let path = |kind: &str| self.dir.path().join(format!("{kind}-{}", self.made));
        MemoryLayer { data: path("memory"), index: path("index") }
    }
}

/// A VM's memory.
struct Guest {
    spec: MemorySpec,
    ram: SharedRam,
    mapped: Arc<Image>,
}

impl Guest {
    fn new(size: u64) -> Self {
        let spec = spec(size);
        Self { spec, ram: memory::reserve(&spec).unwrap(), mapped: Arc::new(Image::zero(spec.size)) }
    }

    fn restored(size: u64, chain: &[MemoryLayer]) -> Self {
        let mapped = Image::open(chain).unwrap();
        let spec = spec(size);
        Self { spec, ram: mapped.map(&spec).unwrap(), mapped: Arc::new(mapped) }
    }

    fn saver(&self, parent: &[MemoryLayer], path: &Path) -> Saver {
        let parent = match parent {
            [] => Image::zero(self.spec.size),
            chain => Image::open(chain).unwrap(),
        };
        Saver::prepare(&self.ram, self.spec.hugepages, &self.mapped, &Arc::new(parent), path).unwrap()
    }

    fn save(&self, parent: &[MemoryLayer], to: &MemoryLayer) -> Saved {
        let saved = self.saver(parent, &to.data).fork().unwrap().finish(&mut |_, _| {}).unwrap();
        saved.index.write(&HostStorage, &to.index).unwrap();
        saved
    }

    fn content(&self) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(self.spec.size.0).unwrap()];
        self.ram.read_slice(&mut all, GuestAddress(0)).unwrap();
        all
    }
}

/// What a guest, its host and its owner do.
#[derive(Clone, Debug)]
enum Step {
    /// Fill pages.
    Write { page: u32, count: u32, value: u8 },
    /// The balloon has pages: what they hold is anyone's guess, and stays that in a snapshot.
    Discard { page: u32, count: u32 },
    /// Pages are given back to the host and are zero.
    Zero { page: u32, count: u32 },
    /// Save, with the last snapshot as the parent.
    Save,
    /// Back to one of the snapshots.
    Restore(usize),
    /// Merge a snapshot of the present chain with the one over it.
    Merge(usize),
}

const PAGES: u32 = 1024;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = || (0..PAGES - 70, prop_oneof![3 => 1..4_u32, 1 => 4..70_u32]);
    let step = prop_oneof![
        6 => (some(), 0..4_u8).prop_map(|((page, count), value)| Step::Write { page, count, value }),
        1 => some().prop_map(|(page, count)| Step::Discard { page, count }),
        1 => some().prop_map(|(page, count)| Step::Zero { page, count }),
        3 => Just(Step::Save),
        1 => any::<usize>().prop_map(Step::Restore),
        1 => any::<usize>().prop_map(Step::Merge),
    ];
    prop::collection::vec(step, 1..40)
}

/// A snapshot: the chain of its files, and what it must show.
#[derive(Clone)]
struct Point {
    chain: Vec<MemoryLayer>,
    content: Vec<u8>,
}

/// Anonymous memory over `pages`, as the balloon maps it where a snapshot is mapped.
fn map_zeros(ram: &arch::memory::GuestRam, pages: std::ops::Range<u32>) {
    let extent = &memory::extents(ram)[0];
    let (start, len) = extent.place(&pages).unwrap();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: a part of this test's guest RAM, which nothing points into.
    let at = unsafe { libc::mmap(start.cast(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
}

fn discard(ram: &arch::memory::GuestRam, pages: std::ops::Range<u32>) {
    let (start, len) = memory::extents(ram)[0].place(&pages).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) }, 0);
}

fn bytes(page: u32, count: u32) -> std::ops::Range<usize> {
    page as usize * PAGE as usize..(page + count) as usize * PAGE as usize
}

/// Play `steps`, with a look at all snapshots after each that changes any.
fn play(steps: Vec<Step>) {
    let size = u64::from(PAGES) * PAGE;
    let mut lab = Lab::new();
    let mut guest = Guest::new(size);
    let mut model = guest.content();
    let (mut points, mut chain): (Vec<Point>, Vec<MemoryLayer>) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Write { page, count, value } => {
                model[bytes(page, count)].fill(value);
                let fill = vec![value; bytes(page, count).len()];
                guest.ram.write_slice(&fill, GuestAddress(u64::from(page) * PAGE)).unwrap();
            }
            Step::Discard { page, count } => {
                discard(&guest.ram, page..page + count);
                model = guest.content();
            }
            Step::Zero { page, count } => {
                map_zeros(&guest.ram, page..page + count);
                model[bytes(page, count)].fill(0);
            }
            Step::Save => {
                let files = lab.files();
                guest.save(&chain, &files);
                verify(&HostStorage, &files, &mut |_, _| {}).unwrap();
                chain.push(files);
                points.push(Point { chain: chain.clone(), content: model.clone() });
            }
            Step::Restore(at) if !points.is_empty() => {
                let point = points[at % points.len()].clone();
                guest = Guest::restored(size, &point.chain);
                (model, chain) = (point.content, point.chain);
                assert!(guest.content() == model);
            }
            Step::Merge(at) if chain.len() > 1 => {
                let at = at % (chain.len() - 1);
                let (base, upper, out) = (chain[at].clone(), chain[at + 1].clone(), lab.files());
                merge(&HostStorage, &base, &upper, &out, &mut |_, _| {}).unwrap();
                verify(&HostStorage, &out, &mut |_, _| {}).unwrap();
                // Those that have both have the merged one now; who is on the base alone keeps it.
                for chain in points.iter_mut().map(|point| &mut point.chain).chain([&mut chain]) {
                    if let Some(at) = chain.windows(2).position(|pair| pair == [base.clone(), upper.clone()])
                    {
                        chain.splice(at..at + 2, [out.clone()]);
                    }
                }
                for point in &points {
                    assert!(Guest::restored(size, &point.chain).content() == point.content);
                }
            }
            Step::Restore(_) | Step::Merge(_) => {}
        }
    }
    for point in &points {
        assert!(Guest::restored(size, &point.chain).content() == point.content);
        let out = lab.files();
        flatten(&HostStorage, &point.chain, &out, &mut |_, _| {}).unwrap();
        assert!(Guest::restored(size, &[out]).content() == point.content);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn every_snapshot_shows_what_memory_was_whatever_is_done_before_and_after(steps in steps()) {
        play(steps);
    }
}
