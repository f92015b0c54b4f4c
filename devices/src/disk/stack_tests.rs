//! A disk of layers against a model, with freezes, crashes and a host that fails.

use super::*;

use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::super::chain::{self, Access};
use super::super::qcow2::{self, Format};
use crate::storage::faulty::{Fault, FaultyStorage};
use crate::storage::{HostStorage, Storage};

const WRITE: Access = Access { write: true, direct: false };
const SECTOR: u64 = 512;
/// Not a whole number of clusters.
const SECTORS: u64 = 700;
const BASE_SECTORS: u64 = 500;

/// What a program does to its disk. Offsets and lengths are sectors.
#[derive(Clone, Copy, Debug)]
enum Op {
    Write(u64, u64),
    Zero(u64, u64),
    Discard(u64, u64),
    Flush,
    Freeze,
    Finish,
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let range = (0..SECTORS, prop_oneof![4 => 1..9_u64, 1 => 1..400_u64]);
    let op = prop_oneof![
        8 => range.clone().prop_map(|(at, len)| Op::Write(at, len.min(SECTORS - at))),
        2 => range.clone().prop_map(|(at, len)| Op::Zero(at, len.min(SECTORS - at))),
        1 => range.prop_map(|(at, len)| Op::Discard(at, len.min(SECTORS - at))),
        3 => Just(Op::Flush),
        2 => Just(Op::Freeze),
        2 => Just(Op::Finish),
        1 => Just(Op::Reopen),
    ];
    proptest::collection::vec(op, 1..40)
}

/// What may be read: of each sector the numbers that it may hold, by which 0 is zeroes.
#[derive(Clone, Debug)]
struct Model {
    /// Now. More than one after a write that failed, or a discard.
    seen: Vec<Vec<u32>>,
    /// After a power cut.
    durable: Vec<Vec<u32>>,
}

impl Model {
    fn put(&mut self, at: u64, len: u64, number: u32, sure: bool) {
        for sector in at..at + len {
            let sector = sector as usize;
            if sure {
                self.seen[sector].clear();
            }
            self.seen[sector].push(number);
            self.durable[sector].push(number);
        }
    }
}

/// A sector's content by its number.
fn content(number: u32) -> Vec<u8> {
    if number == 0 { vec![0; SECTOR as usize] } else { number.to_le_bytes().repeat(SECTOR as usize / 4) }
}

struct World {
    storage: FaultyStorage,
    stack: Stack,
    model: Model,
    /// The top's number, and the layers' cluster size.
    top: u32,
    bits: u32,
    next: u32,
    unfinished: Vec<Arc<Member>>,
}

fn layer(number: u32) -> PathBuf {
    format!("/layers/{number}").into()
}

impl World {
    fn new(bits: u32) -> Self {
        let storage = FaultyStorage::new();
        storage.create_dir(Path::new("/layers")).unwrap();
        let base = storage.create(Path::new("/base")).unwrap();
        let mut model = Model { seen: vec![vec![0]; SECTORS as usize], durable: Vec::new() };
        for sector in 0..BASE_SECTORS {
            let number = 1_000_000 + sector as u32;
            base.write_all_at(&content(number), sector * SECTOR).unwrap();
            model.seen[sector as usize] = vec![number];
        }
        model.durable = model.seen.clone();
        base.sync().unwrap();
        make(&storage, 0, "../base", Format::Raw, bits).unwrap();
        for dir in ["/", "/layers"] {
            storage.sync_dir(Path::new(dir)).unwrap();
        }
        let stack = chain::open(&storage, &layer(0), WRITE).unwrap();
        Self { storage, stack, model, top: 0, bits, next: 1, unfinished: Vec::new() }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Do it; whether the host did not fail.
    fn run(&mut self, op: Op) -> bool {
        match op {
            Op::Write(at, len) => {
                let number = self.number();
                let data = content(number).repeat(len as usize);
                let done = self.stack.write_any(at * SECTOR, &data).is_ok();
                self.model.put(at, len, number, done);
                done
            }
            Op::Zero(at, len) => {
                let done = self.erase(at, len, Erase::Unmap);
                self.model.put(at, len, 0, done);
                done
            }
            Op::Discard(at, len) => {
                let done = self.erase(at, len, Erase::Discard);
                self.model.put(at, len, 0, false);
                done
            }
            Op::Flush => {
                let done = self.stack.flush().is_ok();
                if done {
                    self.model.durable = self.model.seen.clone();
                }
                done
            }
            Op::Freeze => self.freeze(),
            Op::Finish => {
                let finished = self.unfinished.iter().all(|old| old.close().is_ok());
                if finished {
                    self.unfinished.clear();
                }
                finished
            }
            Op::Reopen => {
                self.unfinished.clear();
                self.stack = Stack::new(Vec::new(), None);
                self.reopen()
            }
        }
    }

    fn erase(&self, at: u64, len: u64, how: Erase) -> bool {
        self.stack.erase(Extent { offset: at * SECTOR, len: len * SECTOR, how }).is_ok()
    }

    fn freeze(&mut self) -> bool {
        let number = self.number();
        let prepared = make(&self.storage, number, &self.top.to_string(), Format::Qcow2, self.bits)
            .and_then(|()| Ok(self.storage.sync_dir(Path::new("/layers"))?))
            .map_err(chain::malformed(Path::new("")))
            .and_then(|()| chain::open_top(&self.storage, &layer(number), false));
        let Ok(next) = prepared else { return false };
        let (stack, open) = self.stack.freeze(next).unwrap();
        self.stack = stack;
        self.unfinished.extend(open.last().cloned());
        self.top = number;
        true
    }

    fn reopen(&mut self) -> bool {
        match chain::open(&self.storage, &layer(self.top), WRITE) {
            Ok(stack) => {
                self.stack = stack;
                true
            }
            Err(error) => {
                assert!(self.storage.is_off() || format!("{error:?}").contains("Os {"), "{error:?}");
                false
            }
        }
    }

    /// Read all of it: of each sector one of `allowed` is there, and is what is there from now on.
    fn check(&mut self, after_crash: bool) {
        let mut data = vec![0; (SECTORS * SECTOR) as usize];
        self.stack.read(0, &mut data).unwrap();
        let allowed = if after_crash { &self.model.durable } else { &self.model.seen };
        let mut found = Vec::new();
        for (sector, (bytes, allowed)) in data.chunks(SECTOR as usize).zip(allowed).enumerate() {
            let number = allowed.iter().find(|number| bytes == content(**number));
            let there = u32::from_le_bytes(bytes[..4].try_into().unwrap());
            found.push(vec![
                *number.unwrap_or_else(|| panic!("sector {sector}: {there}, not one of {allowed:?}")),
            ]);
        }
        self.model = Model { seen: found.clone(), durable: found };
    }

    /// Nothing is used in any file of the chain that is not counted.
    fn has_leaks_at_most(&self) {
        let copy = self.storage.after_kill();
        let layers = chain::open_readonly(&copy, &layer(self.top)).unwrap();
        let paths = layers.members().iter().map(|member| member.path());
        for path in paths.skip(1) {
            let image = chain::open_image(&copy, path, true).unwrap();
            assert_eq!(qcow2::problems(&image).unwrap().1, 0, "{}", path.display());
        }
    }

    /// The machine starts again on what a crash has left, and goes on.
    fn crash(&mut self, power: bool, seed: u64) {
        let storage = if power { self.storage.after_power_cut(seed) } else { self.storage.after_kill() };
        let old = std::mem::replace(&mut self.storage, storage);
        self.unfinished.clear();
        self.stack = Stack::new(Vec::new(), None);
        drop(old);
        self.has_leaks_at_most();
        assert!(self.reopen());
        self.check(true);
        for op in [Op::Write(3, 200), Op::Flush, Op::Freeze, Op::Write(100, 500), Op::Finish] {
            assert!(self.run(op));
        }
        self.check(false);
    }

    /// What was frozen before a crash and not finished may have leaks, for nobody writes it any more.
    fn repair_frozen(&mut self) {
        let paths: Vec<_> = self.stack.members().map(|member| member.path().to_owned()).collect();
        self.stack = Stack::new(Vec::new(), None);
        for path in &paths[1..] {
            drop(chain::open_top(&self.storage, path, false).unwrap());
        }
    }

    /// Close it: no file has anything left to repair, by our eyes and, for every file, by those of `qemu-img`.
    fn close(mut self, qemu: bool) {
        self.unfinished.clear();
        self.stack = Stack::new(Vec::new(), None);
        let dir = tempfile::tempdir().unwrap();
        self.storage.export(dir.path()).unwrap();
        let top = dir.path().join(format!("layers/{}", self.top));
        let stack = chain::open(&HostStorage, &top, Access { write: false, direct: false }).unwrap();
        let images: Vec<_> = stack
            .members()
            .filter(|member| member.image().is_some())
            .map(|member| member.path().to_owned())
            .collect();
        drop(stack);
        for path in &images {
            let image = chain::open_image(&HostStorage, path, true).unwrap();
            assert_eq!(qcow2::problems(&image).unwrap(), (0, 0), "{}", path.display());
            drop(image);
            if qemu {
                qemu_check(path);
            }
        }
        if qemu && self.bits == qcow2::CLUSTER_BITS {
            let raw = dir.path().join("raw");
            qemu_img(&["convert", "-O", "raw"], &[&top, &raw]);
            let mut data = vec![0; (SECTORS * SECTOR) as usize];
            let stack = chain::open(&HostStorage, &top, Access { write: false, direct: false }).unwrap();
            stack.read(0, &mut data).unwrap();
            assert!(std::fs::read(raw).unwrap() == data, "qemu-img reads the same");
        }
    }
}

impl Stack {
    /// As an engine does it.
    pub(in crate::disk) fn write_any(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (target, len) = self.target(at, rest.len() as u64)?;
            let (part, after) = rest.split_at(len as usize);
            match target {
                Target::Placed { member, offset } => {
                    self.member(member)?.file().write_all_at(part, offset)?
                }
                Target::Unplaced => self.write(at, part)?,
            }
            at += len;
            rest = after;
        }
        Ok(())
    }
}

fn make(
    storage: &FaultyStorage,
    number: u32,
    backing: &str,
    format: Format,
    bits: u32,
) -> Result<(), Malformed> {
    let file = storage.create(&layer(number))?;
    qcow2::create(&*file, SECTORS * SECTOR, Some((backing.into(), format)), bits)
}

pub(in crate::disk) fn qemu_img(words: &[&str], paths: &[&Path]) -> String {
    let output = Command::new("qemu-img")
        .args(words)
        .args(paths)
        .output()
        .expect("qemu-img, from `cargo xtask setup`");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {words:?} {paths:?}: {text}");
    text
}

/// `qemu-img check` finds nothing, and can follow the chain.
pub(in crate::disk) fn qemu_check(path: &Path) {
    qemu_img(&["check"], &[path]);
    qemu_img(&["info", "--backing-chain"], &[path]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_and_every_file_is_sound(ops in ops(), small in any::<bool>()) {
        let mut world = World::new(if small { 9 } else { 16 });
        for op in ops {
            prop_assert!(world.run(op));
            world.check(false);
        }
        world.close(true);
    }

    #[test]
    fn what_was_flushed_survives_a_power_cut_at_any_step(
        ops in ops(), small in any::<bool>(), at in 0.0..1.0_f64, seed in any::<u64>(), power in any::<bool>()
    ) {
        let bits = if small { 9 } else { 16 };
        let mut world = World::new(bits);
        let start = world.storage.operations();
        let all = ops.iter().all(|op| world.run(*op));
        prop_assert!(all);
        let count = world.storage.operations() - start;
        let mut world = World::new(bits);
        let start = world.storage.operations();
        world.storage.plan(Some(Fault::PowerOff { at: start + (count as f64 * at) as u64 }));
        let _ = ops.iter().all(|op| world.run(*op));
        world.crash(power, seed);
        world.repair_frozen();
        world.close(false);
    }

    #[test]
    fn a_host_that_fails_once_loses_nothing_that_was_flushed(
        ops in ops(), small in any::<bool>(), at in 0.0..1.0_f64, full in any::<bool>(), seed in any::<u64>()
    ) {
        let bits = if small { 9 } else { 16 };
        let mut world = World::new(bits);
        let start = world.storage.operations();
        ops.iter().for_each(|op| { world.run(*op); });
        let at = start + ((world.storage.operations() - start) as f64 * at) as u64;
        let mut world = World::new(bits);
        world.storage.plan(Some(if full { Fault::Full { at } } else { Fault::Eio { at } }));
        for op in &ops {
            let done = world.run(*op);
            if matches!(op, Op::Reopen) {
                if !done {
                    world.storage.plan(None);
                    prop_assert!(world.reopen());
                }
                // What was not flushed when it was closed while the host failed may be gone.
                world.check(true);
            }
        }
        world.storage.plan(None);
        prop_assert!(world.run(Op::Flush) );
        world.check(false);
        world.crash(true, seed);
        world.repair_frozen();
        world.close(false);
    }
}

#[test]
fn a_power_cut_at_every_single_step_loses_nothing_that_was_flushed() {
    let ops = [
        Op::Write(10, 300),
        Op::Flush,
        Op::Write(5, 20),
        Op::Zero(100, 300),
        Op::Write(450, 200),
        Op::Flush,
        Op::Write(600, 50),
        Op::Freeze,
        Op::Write(0, 30),
        Op::Flush,
        Op::Write(300, 9),
        Op::Finish,
        Op::Reopen,
        Op::Write(200, 400),
        Op::Flush,
    ];
    for bits in [9, 16] {
        let mut world = World::new(bits);
        let start = world.storage.operations();
        assert!(ops.iter().all(|op| world.run(*op)));
        for at in start..world.storage.operations() {
            for seed in 0..3 {
                let mut world = World::new(bits);
                world.storage.plan(Some(Fault::PowerOff { at }));
                let _ = ops.iter().all(|op| world.run(*op));
                world.crash(seed > 0, seed);
            }
        }
    }
}

#[test]
fn layers_are_found_through_ten_of_them() {
    let mut world = World::new(16);
    for step in 0..10 {
        assert!(world.run(Op::Write(step * 60, 30)));
        assert!(world.run(Op::Freeze));
    }
    world.check(false);
    assert_eq!(world.stack.members().count(), 12);
    world.close(true);
}

#[test]
fn threads_that_write_to_the_same_clusters_lose_nothing() {
    for bits in [9, 16] {
        let mut world = World::new(bits);
        let (stack, threads) = (&world.stack, 4);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    for sector in (thread..SECTORS).step_by(threads as usize) {
                        let data = content(5000 + sector as u32);
                        stack.write_any(sector * SECTOR, &data).unwrap();
                        let mut read = vec![0; SECTOR as usize];
                        stack.read(sector * SECTOR, &mut read).unwrap();
                        assert!(read == data);
                        if sector % 50 == thread {
                            stack.flush().unwrap();
                        }
                    }
                });
            }
        });
        for sector in 0..SECTORS {
            world.model.put(sector, 1, 5000 + sector as u32, true);
        }
        world.check(false);
        assert!(world.run(Op::Flush));
        world.crash(true, 1);
        world.close(true);
    }
}

#[test]
fn a_flush_on_one_thread_waits_for_the_tables_that_another_one_writes() {
    let mut world = World::new(9);
    for round in 0..20_u64 {
        let stack = &world.stack;
        std::thread::scope(|scope| {
            for thread in 0..3 {
                scope.spawn(move || {
                    let sector = round * 30 + thread * 9;
                    stack.write_any(sector * SECTOR, &content(7)).unwrap();
                    stack.flush().unwrap();
                });
            }
        });
        for thread in 0..3 {
            world.model.put(round * 30 + thread * 9, 1, 7, true);
        }
        world.model.durable = world.model.seen.clone();
    }
    world.crash(true, 5);
    world.close(false);
}

#[test]
fn a_disk_that_grows_survives_a_power_cut_at_any_step() {
    let grow = |world: &World| world.stack.resize(40 << 20).and_then(|()| Ok(world.stack.flush()?));
    let world = || {
        let mut world = World::new(9);
        for op in [Op::Write(0, 300), Op::Flush, Op::Write(500, 100)] {
            assert!(world.run(op));
        }
        world
    };
    let counted = world();
    let start = counted.storage.operations();
    grow(&counted).unwrap();
    let end = counted.storage.operations();
    assert!(end - start > 5);
    for at in start..end {
        for fault in [Fault::PowerOff { at }, Fault::Eio { at }, Fault::Full { at }] {
            let mut world = world();
            world.storage.plan(Some(fault));
            let grown = grow(&world);
            world.storage.plan(None);
            if !world.storage.is_off() {
                world.check(false);
                grow(&world).unwrap();
                world.model.durable = world.model.seen.clone();
            }
            let after = world.storage.after_power_cut(at);
            let size = chain::open(&after, &layer(0), WRITE).unwrap().size();
            assert!(size == 40 << 20 || grown.is_err() && size == SECTORS * SECTOR);
            world.crash(true, at);
            world.repair_frozen();
            world.close(false);
        }
    }
}
