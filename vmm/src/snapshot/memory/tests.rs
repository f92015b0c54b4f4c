//! Memory that is saved, put back, merged and saved again, against a plain list of bytes.

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arch::memory::SharedRam;
use devices::storage::HostStorage;
use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

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
        let saved = self
            .saver(parent, &to.data)
            .fork()
            .unwrap()
            .finish(&mut |_, _| ControlFlow::Continue(()))
            .unwrap();
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

fn quiet(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn fill(guest: &Guest, from: u64, to: u64, value: u8) {
    for at in (from..to).step_by(MIB as usize) {
        guest.ram.write_slice(&vec![value; MIB.min(to - at) as usize], GuestAddress(at)).unwrap();
    }
}

#[test]
fn little_is_written_of_a_guest_that_has_touched_little_and_nothing_of_one_that_has_not_changed() {
    let mut lab = Lab::new();
    let guest = Guest::new(64 * MIB);
    guest.ram.write_slice(&[1; 5000], GuestAddress(40 * MIB + 100)).unwrap();
    let first = lab.files();
    let saved = guest.save(&[], &first);
    let page = (40 * MIB / PAGE) as u32;
    assert_eq!(saved.index.runs(), [Run { first: page, count: 2, content: Content::Data }]);
    assert_eq!(saved.stored, 2 * PAGE);
    let meta = std::fs::metadata(&first.data).unwrap();
    assert_eq!(meta.len(), 64 * MIB);
    assert!(meta.blocks() * 512 <= 64 << 10, "{}", meta.blocks());

    let second = lab.files();
    assert!(guest.save(std::slice::from_ref(&first), &second).index.runs().is_empty());
    guest.ram.write_slice(&[0; 5000], GuestAddress(40 * MIB + 100)).unwrap();
    let third = lab.files();
    let saved = guest.save(&[first, second], &third);
    assert_eq!(saved.index.runs(), [Run { first: page, count: 2, content: Content::Zero }]);
}

#[test]
fn ram_around_the_hole_is_packed_and_comes_back() {
    let (mut lab, size) = (Lab::new(), 4096 * MIB);
    let guest = Guest::new(size);
    let places = [0, 3072 * MIB - PAGE, 4096 * MIB, 5120 * MIB - PAGE];
    for (value, place) in (1..).zip(places) {
        guest.ram.write_slice(&[value; 16], GuestAddress(place)).unwrap();
    }
    let files = lab.files();
    let saved = guest.save(&[], &files);
    let pages: Vec<_> = saved.index.runs().iter().map(|run| (run.first, run.count)).collect();
    // The last page below the hole and the first above it lie side by side.
    assert_eq!(pages, [(0, 1), (786_431, 2), (1_048_575, 1)]);
    let restored = Guest::restored(size, &[files]);
    for (value, place) in (1_u8..).zip(places) {
        assert_eq!(restored.ram.read_obj::<u8>(GuestAddress(place)).unwrap(), value);
    }
}

#[test]
fn what_is_saved_is_the_instant_whatever_is_written_meanwhile() {
    let (mut lab, size) = (Lab::new(), 64 * MIB);
    for restored in [false, true] {
        let mut guest = Guest::new(size);
        fill(&guest, 0, size, 1);
        let mut chain = Vec::new();
        if restored {
            chain.push(lab.files());
            guest.save(&[], &chain[0]);
            guest = Guest::restored(size, &chain);
            fill(&guest, 0, size / 2, 2);
        }
        let expected = guest.content();
        let files = lab.files();
        let saver = guest.saver(&chain, &files.data);
        let (ram, stop) = (Arc::clone(&guest.ram), Arc::new(AtomicBool::new(false)));
        let saving = saver.fork().unwrap();
        let stopped = Arc::clone(&stop);
        let writer = std::thread::spawn(move || {
            let mut value = 3_u64;
            while !stopped.load(Ordering::Relaxed) {
                for at in (0..size).step_by(PAGE as usize) {
                    ram.write_obj(value, GuestAddress(at)).unwrap();
                }
                value += 1;
            }
        });
        let mut last = (0, 0);
        let saved = saving.finish(&mut |done, total| {
            last = (done, total);
            ControlFlow::Continue(())
        });
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        let saved = saved.unwrap();
        saved.index.write(&HostStorage, &files.index).unwrap();
        assert_eq!((last.0, saved.stored), (last.1, if restored { size / 2 } else { size }));
        chain.push(files);
        assert!(Guest::restored(size, &chain).content() == expected);
        assert!(guest.content() != expected);
    }
}

#[test]
fn a_full_disk_is_told_with_the_step_and_the_file() {
    let mut lab = Lab::new();
    let guest = Guest::new(8 * MIB);
    fill(&guest, 0, 8 * MIB, 7);
    let files = lab.files();
    // Whatever is written to it, the disk is full.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = guest.saver(&[], &files.data).to(full).fork().unwrap().finish(&mut quiet).unwrap_err();
    let MemoryFileError::Save { step: super::Step::Write, path, source } = error else { panic!("{error}") };
    assert_eq!((path, source.raw_os_error()), (files.data, Some(libc::ENOSPC)));
}

#[test]
fn a_saving_process_that_is_killed_is_an_error_and_one_that_is_not_wanted_ends() {
    let mut lab = Lab::new();
    let guest = Guest::new(64 * MIB);
    fill(&guest, 0, 64 * MIB, 7);
    let saving = guest.saver(&[], &lab.files().data).fork().unwrap();
    // SAFETY: the process is this test's own.
    assert_eq!(unsafe { libc::kill(saving.pid(), libc::SIGKILL) }, 0);
    let error = saving.finish(&mut quiet).unwrap_err();
    assert!(matches!(error, MemoryFileError::Killed(libc::SIGKILL)), "{error}");

    let saving = guest.saver(&[], &lab.files().data).fork().unwrap();
    let pid = saving.pid();
    drop(saving);
    // SAFETY: asks whether there is such a process.
    assert_eq!(unsafe { libc::kill(pid, 0) }, -1);
}

#[test]
fn a_saving_process_holds_none_of_the_vms_files() {
    let mut lab = Lab::new();
    let guest = Guest::new(256 * MIB);
    fill(&guest, 0, 256 * MIB, 7);
    let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let saving = guest.saver(&[], &lab.files().data).fork().unwrap();
    let name = format!("/proc/{}/comm", saving.pid());
    // It has let go of the other end as soon as it looks at pages.
    while saving.progress() == (0, 0) {
        std::thread::yield_now();
    }
    assert_eq!(std::fs::read_to_string(name).unwrap(), "snapshot\n");
    drop(there);
    assert_eq!(std::io::Read::read(&mut here, &mut [0]).unwrap(), 0);
    saving.finish(&mut quiet).unwrap();
}

/// The child is stopped, so that it cannot be done before.
#[test]
fn the_end_of_the_thread_that_forked_is_the_end_of_the_saving() {
    let mut lab = Lab::new();
    let guest = Guest::new(256 * MIB);
    fill(&guest, 0, 256 * MIB, 7);
    let saver = guest.saver(&[], &lab.files().data);
    let forked = std::thread::spawn(move || {
        let saving = saver.fork().unwrap();
        while saving.progress() == (0, 0) {
            std::thread::yield_now();
        }
        // SAFETY: the process is this test's own.
        assert_eq!(unsafe { libc::kill(saving.pid(), libc::SIGSTOP) }, 0);
        saving
    });
    let error = forked.join().unwrap().finish(&mut quiet).unwrap_err();
    assert!(matches!(error, MemoryFileError::Killed(libc::SIGKILL)), "{error}");
}

#[test]
fn layers_of_which_nothing_is_seen_are_not_held_open() {
    let (mut lab, size) = (Lab::new(), 4 * MIB);
    let guest = Guest::new(size);
    let mut chain = Vec::new();
    for value in 1..=5 {
        guest.ram.write_slice(&[value; 100], GuestAddress(MIB)).unwrap();
        let files = lab.files();
        guest.save(&chain, &files);
        chain.push(files);
    }
    assert_eq!(Image::open(&chain).unwrap().files().count(), 2);
    let restored = Guest::restored(size, &chain);
    assert!(restored.content() == guest.content());
    // What was saved since differs, open or not.
    let old = Guest::restored(size, &chain[..2]);
    let files = lab.files();
    old.save(&chain, &files);
    chain.push(files);
    assert!(Guest::restored(size, &chain).content() == old.content());
}

#[test]
fn files_that_are_not_right_are_refused() {
    let mut lab = Lab::new();
    let guest = Guest::new(8 * MIB);
    fill(&guest, 0, MIB, 7);
    let good = lab.files();
    guest.save(&[], &good);
    let small = lab.files();
    Guest::new(4 * MIB).save(&[], &small);
    let open = |chain: &[MemoryLayer]| Image::open(chain).unwrap_err().to_string();
    assert!(open(&[good.clone(), small]).contains("is of 4M of memory, and the VM has 8M"));
    let image = Image::open(std::slice::from_ref(&good)).unwrap();
    let error = image.map(&spec(16 * MIB)).unwrap_err().to_string();
    assert!(error.contains("is of 8M of memory, and the VM has 16M"), "{error}");

    // One byte is wrong: only who reads all can tell, and then no merge makes it right.
    let file = std::fs::OpenOptions::new().write(true).open(&good.data).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9], 4097).unwrap();
    let error = verify(&HostStorage, &good, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("is corrupted"), "{error}");
    let out = lab.files();
    let error = flatten(&HostStorage, std::slice::from_ref(&good), &out, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, MemoryFileError::Corrupted { .. }), "{error}");
    assert!(!out.data.exists() && !out.index.exists());

    file.set_len(8 * MIB - 1).unwrap();
    let error = image.map(&spec(8 * MIB)).unwrap_err().to_string();
    assert!(error.contains("is truncated (8388607 of 8388608 bytes are there)"), "{error}");
    assert!(open(std::slice::from_ref(&good)).contains("is truncated"));
    let error = verify(&HostStorage, &good, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, MemoryFileError::Truncated { .. }), "{error}");
    std::fs::remove_file(&good.data).unwrap();
    assert!(open(std::slice::from_ref(&good)).starts_with("cannot open "));
    std::fs::write(&good.index, b"not an index").unwrap();
    assert!(open(&[good]).contains("index"));
}

#[test]
fn a_chain_of_more_runs_than_are_mapped_comes_back_too() {
    let (mut lab, size) = (Lab::new(), 128 * MIB);
    let guest = Guest::new(size);
    fill(&guest, 0, size, 1);
    let mut chain = vec![lab.files()];
    guest.save(&[], &chain[0]);
    for (skip, value) in [(0, 2), (1, 0)] {
        for at in (skip * PAGE..size).step_by(6 * PAGE as usize) {
            guest.ram.write_slice(&[value; PAGE as usize], GuestAddress(at)).unwrap();
        }
        let files = lab.files();
        guest.save(&chain, &files);
        chain.push(files);
    }
    let restored = Guest::restored(size, &chain);
    assert!(restored.content() == guest.content());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ours = memory::extents(&restored.ram)[0].addresses();
    let mappings = maps.lines().filter_map(memory::mapping);
    let mappings = mappings.filter(|range| ours.contains(&(range.start as usize))).count();
    assert!((4000..=8001).contains(&mappings), "{mappings}");
}

#[test]
fn what_was_changed_all_over_is_saved_in_few_runs_with_what_lies_between() {
    let (mut lab, size) = (Lab::new(), 64 * MIB);
    let guest = Guest::new(size);
    fill(&guest, 0, size / 2, 1);
    let mut chain = vec![lab.files()];
    guest.save(&[], &chain[0]);
    // Every other page, where there was something and where there was nothing.
    for at in (0..size - MIB).step_by(2 * PAGE as usize) {
        guest.ram.write_slice(&[2; 100], GuestAddress(at)).unwrap();
    }
    let files = lab.files();
    let saved = guest.save(&chain, &files);
    assert!(saved.index.runs().len() <= 1001, "{}", saved.index.runs().len());
    verify(&HostStorage, &files, &mut |_, _| {}).unwrap();
    // Zeros take no room.
    let blocks = std::fs::metadata(&files.data).unwrap().blocks() * 512;
    assert!(blocks < size * 7 / 8, "{blocks}");
    chain.push(files);
    assert!(Guest::restored(size, &chain).content() == guest.content());
}

/// Where the host has some; it cannot be made to.
#[test]
fn huge_pages_are_saved_and_a_lack_of_them_for_copies_is_told() {
    let (mut lab, size) = (Lab::new(), 32 * MIB);
    let spec = MemorySpec { hugepages: true, ..spec(size) };
    let ram = match memory::reserve(&spec) {
        Ok(ram) => ram,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let guest = Guest { spec, ram, mapped: Arc::new(Image::zero(spec.size)) };
    fill(&guest, 4 * MIB, 20 * MIB, 7);
    let files = lab.files();
    assert_eq!(guest.save(&[], &files).stored, 16 * MIB);
    let image = Image::open(std::slice::from_ref(&files)).unwrap();
    let mut taken = Vec::new();
    match image.map(&spec) {
        Ok(ram) => {
            let restored = Guest { spec, ram, mapped: Arc::new(image) };
            assert!(restored.content() == guest.content());
        }
        Err(error) => eprintln!("skipped: {error}"),
    }
    // All others are taken: the guest's writes go on, and the process that saves loses its pages.
    let few = MemorySpec { size: Memory(2 * MIB), ..spec };
    while let Ok(ram) = memory::reserve(&few) {
        taken.push(ram);
    }
    let saver = guest.saver(&[], &lab.files().data);
    let saving = saver.fork().unwrap();
    fill(&guest, 0, size, 9);
    match saving.finish(&mut quiet) {
        Err(MemoryFileError::HugePages) => {}
        // It was quick.
        result => assert_eq!(result.unwrap().stored, 16 * MIB),
    }
    assert!(guest.content().iter().all(|byte| *byte == 9));
}
