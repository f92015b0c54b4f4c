use super::*;

use std::fs;

use super::super::stack::tests::{qemu_check, qemu_img};
use super::super::tests::{file, layered, pattern};
use super::super::{Disk, DiskOptions};
use crate::storage::HostStorage;
use crate::storage::faulty::{Fault, FaultyStorage};

const SIZE: usize = (1 << 20) + 1024;

fn options(path: &Path, readonly: bool) -> DiskOptions {
    DiskOptions { path: path.to_owned(), readonly, direct: false }
}

fn write(disk: &Disk, offset: u64, data: &[u8]) {
    disk.stack().unwrap().write_any(offset, data).unwrap();
}

/// A new empty layer beside `top`, on it.
fn next(top: &Path, name: &str, size: usize) -> PathBuf {
    let path = top.with_file_name(name);
    let base = Base { name: top.file_name().unwrap().into(), format: Format::Qcow2 };
    create(&HostStorage, &path, Some(&base), size as u64).unwrap();
    path
}

#[test]
fn a_new_layer_is_empty_and_says_what_it_lies_on() {
    let base = file(SIZE);
    let (_dir, options) = layered(&base);
    let info = inspect(&HostStorage, &options.path).unwrap();
    assert_eq!((info.format, info.size, info.allocated), (Format::Qcow2, SIZE as u64, 0));
    assert_eq!((info.backing.as_deref(), info.backing_format), (Some(base.path()), Some(Format::Raw)));
    assert_eq!(backing(&HostStorage, &options.path).unwrap().as_deref(), Some(base.path()));
    assert_eq!(backing(&HostStorage, base.path()).unwrap(), None);
    assert_eq!(inspect(&HostStorage, base.path()).unwrap().format, Format::Raw);
    qemu_check(&options.path);
    assert!(
        create(&HostStorage, &options.path, None, 512)
            .unwrap_err()
            .to_string()
            .contains("cannot make the layer")
    );
    let long = Base { name: "x".repeat(2000).into(), format: Format::Raw };
    let path = options.path.with_file_name("long");
    create(&HostStorage, &path, Some(&long), 512).unwrap_err();
    assert!(!path.exists(), "no file stays");
    for size in [0, 513, 1 << 60] {
        create(&HostStorage, &path, None, size).unwrap_err();
    }
    create(&HostStorage, &path, None, 64 << 40).unwrap();
    qemu_check(&path);
    assert!(fs::metadata(&path).unwrap().len() < 4 << 20, "a large disk is a small file");
}

#[test]
fn a_disk_is_frozen_while_it_is_used() {
    let base = file(SIZE);
    let (_dir, first) = layered(&base);
    let disk = Disk::open(&first).unwrap();
    write(&disk, 512, &pattern(1, 5000));
    let mut wanted = pattern(0, SIZE);
    wanted[512..5512].copy_from_slice(&pattern(1, 5000));
    let second = next(&first.path, "second", SIZE);
    let frozen = disk.freeze(disk.prepare(&second).unwrap()).unwrap();
    write(&disk, 4096, &[9; 512]);
    assert!(disk.content()[4608..] == wanted[4608..], "through both");
    assert!(disk.content()[4096..4608] == [9; 512]);
    frozen.finish().unwrap();
    qemu_check(&first.path);
    // Another VM reads what is frozen, and has its own top on it; nobody writes what others read.
    let other = Disk::open(&options(&next(&first.path, "other", SIZE), false)).unwrap();
    assert!(other.content() == wanted, "as it was then");
    assert!(matches!(Disk::open(&first).unwrap_err(), DiskError::InUse { .. }));
    assert!(matches!(Disk::open(&options(&second, false)).unwrap_err(), DiskError::InUse { .. }));
    Disk::open(&options(base.path(), true)).unwrap();
    assert!(matches!(Disk::open(&options(base.path(), false)).unwrap_err(), DiskError::InUse { .. }));
    wanted[4096..4608].fill(9);
    assert!(disk.content() == wanted);
    drop(disk);
    qemu_check(&second);
    assert!(Disk::open(&options(&second, false)).unwrap().content() == wanted);
    assert!(fs::read(base.path()).unwrap() == pattern(0, SIZE), "the base is never written");
}

#[test]
fn a_flush_before_the_end_of_a_freeze_makes_the_frozen_top_durable_too() {
    let base = file(SIZE);
    let (_dir, first) = layered(&base);
    let disk = Disk::open(&first).unwrap();
    write(&disk, 0, &[5; 70_000]);
    let frozen = disk.freeze(disk.prepare(&next(&first.path, "second", SIZE)).unwrap()).unwrap();
    disk.stack().unwrap().flush().unwrap();
    // As after a crash: what is in the files now.
    let copy = first.path.with_file_name("copy");
    fs::copy(&first.path, &copy).unwrap();
    assert!(Disk::open(&options(&copy, true)).unwrap().content()[..70_000] == [5; 70_000]);
    frozen.finish().unwrap();
    frozen.finish().unwrap();
}

/// A snapshot may fail before its layer is finished; the next one stands on that layer.
#[test]
fn the_end_of_a_freeze_is_that_of_those_before_it() {
    let base = file(SIZE);
    let (_dir, first) = layered(&base);
    let disk = Disk::open(&first).unwrap();
    write(&disk, 0, &[5; 70_000]);
    let second = next(&first.path, "second", SIZE);
    drop(disk.freeze(disk.prepare(&second).unwrap()).unwrap());
    write(&disk, 140_000, &[6; 512]);
    let frozen = disk.freeze(disk.prepare(&next(&second, "third", SIZE)).unwrap()).unwrap();
    assert_eq!(frozen.path(), second);
    frozen.finish().unwrap();
    let content = Disk::open(&options(&second, true)).unwrap().content();
    assert!(content[..70_000] == [5; 70_000] && content[140_000..140_512] == [6; 512]);
}

#[test]
fn a_layer_that_does_not_fit_is_not_taken() {
    let base = file(SIZE);
    let (_dir, first) = layered(&base);
    let disk = Disk::open(&first).unwrap();
    let other_size = next(&first.path, "larger", SIZE + 512);
    let elsewhere = first.path.with_file_name("elsewhere");
    create(&HostStorage, &elsewhere, None, SIZE as u64).unwrap();
    for path in [other_size, elsewhere] {
        assert!(matches!(disk.prepare(&path).unwrap_err(), DiskError::NotOnTop { .. }));
    }
    let prepared = disk.prepare(&next(&first.path, "fits", SIZE)).unwrap();
    disk.resize(2 * SIZE as u64).unwrap();
    assert!(matches!(disk.freeze(prepared).unwrap_err(), DiskError::NotOnTop { .. }));
    let raw = Disk::open(&options(file(4096).path(), true)).unwrap();
    assert!(matches!(raw.prepare(&first.path).unwrap_err(), DiskError::NoLayers { .. }));
}

#[test]
fn a_disk_of_layers_grows_by_zeroes() {
    let base = file(SIZE);
    let (_dir, first) = layered(&base);
    let disk = Disk::open(&first).unwrap();
    disk.resize(3 << 30).unwrap();
    assert_eq!(disk.size(), 3 << 30);
    write(&disk, (3 << 30) - 512, &[7; 512]);
    let mut data = [1; 4096];
    disk.stack().unwrap().read(SIZE as u64, &mut data).unwrap();
    assert!(data == [0; 4096]);
    assert!(disk.resize(1 << 20).unwrap_err().to_string().contains("would be lost"));
    drop(disk);
    qemu_check(&first.path);
    let disk = Disk::open(&options(&first.path, true)).unwrap();
    assert_eq!(disk.size(), 3 << 30);
    assert!(matches!(disk.resize(4 << 30).unwrap_err(), DiskError::ReadOnly { .. }));
}

/// Three layers on a base, each with something of its own, and zeroes over what is below.
fn three(storage: &dyn Storage, dir: &Path) -> ([PathBuf; 3], Vec<u8>) {
    let base = dir.join("base");
    let mut wanted = pattern(0, SIZE);
    let file = storage.create(&base).unwrap();
    file.write_all_at(&wanted, 0).unwrap();
    file.sync().unwrap();
    let paths = ["a", "b", "c"].map(|name| dir.join(name));
    let mut below = Base { name: "base".into(), format: Format::Raw };
    for (number, path) in paths.iter().enumerate() {
        create(storage, path, Some(&below), SIZE as u64).unwrap();
        let stack = chain::open(storage, path, chain::Access { write: true, direct: false }).unwrap();
        let at = number * 100 * 1024;
        stack.write_any(at as u64, &vec![number as u8 + 1; 90_112]).unwrap();
        wanted[at..at + 90_112].fill(number as u8 + 1);
        let (at, len) = (500 * 1024 + number * 131_072, 200_704);
        let how = crate::disk::Erase::Unmap;
        stack.erase(crate::disk::Extent { offset: at as u64, len: len as u64, how }).unwrap();
        wanted[at..at + len].fill(0);
        drop(stack);
        below = Base { name: path.file_name().unwrap().into(), format: Format::Qcow2 };
    }
    storage.sync_dir(dir).unwrap();
    (paths, wanted)
}

fn content(storage: &dyn Storage, path: &Path) -> Vec<u8> {
    use super::super::qcow2::Below;
    let layers = chain::open_readonly(storage, path).unwrap();
    let mut data = vec![0; layers.size() as usize];
    layers.read(0, &mut data).unwrap();
    data
}

#[test]
fn merging_two_layers_changes_nothing_that_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (paths, wanted) = three(&HostStorage, dir.path());
    assert!(content(&HostStorage, &paths[2]) == wanted);
    let out = dir.path().join("merged");
    let mut told = Vec::new();
    merge(&HostStorage, &paths[1], &paths[0], &out, &mut |done, total| told.push((done, total))).unwrap();
    assert_eq!(told.last(), Some(&(SIZE as u64, SIZE as u64)));
    assert!(content(&HostStorage, &out) == content(&HostStorage, &paths[1]));
    assert_eq!(backing(&HostStorage, &out).unwrap().as_deref(), Some(Path::new("base")));
    qemu_check(&out);
    // A VM that has it open goes on; those that open it later find the merged one.
    let old = Disk::open(&options(&paths[2], false)).unwrap();
    fs::rename(&out, &paths[1]).unwrap();
    fs::remove_file(&paths[0]).unwrap();
    assert!(old.content() == wanted);
    drop(old);
    assert!(content(&HostStorage, &paths[2]) == wanted);
    qemu_check(&paths[2]);
    let raw = dir.path().join("raw");
    qemu_img(&["convert", "-O", "raw"], &[&paths[2], &raw]);
    assert!(fs::read(raw).unwrap() == wanted);
}

#[test]
fn a_longer_upper_layer_hides_what_a_shorter_one_does_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let (paths, mut wanted) = three(&HostStorage, dir.path());
    let disk = Disk::open(&options(&paths[2], false)).unwrap();
    disk.resize(SIZE as u64 + 200_704).unwrap();
    drop(disk);
    wanted.resize(SIZE + 200_704, 0);
    let out = dir.path().join("merged");
    merge(&HostStorage, &paths[2], &paths[1], &out, &mut |_, _| {}).unwrap();
    assert!(content(&HostStorage, &out) == wanted);
    qemu_check(&out);
}

#[test]
fn a_chain_becomes_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let (paths, wanted) = three(&HostStorage, dir.path());
    let out = dir.path().join("flat");
    flatten(&HostStorage, &paths[2], &out, &mut |_, _| {}).unwrap();
    let info = inspect(&HostStorage, &out).unwrap();
    assert_eq!((info.backing, info.size), (None, SIZE as u64));
    assert!(info.allocated < SIZE as u64, "zeroes take no place");
    assert!(content(&HostStorage, &out) == wanted);
    qemu_check(&out);
    let out = dir.path().join("flat of raw");
    flatten(&HostStorage, &dir.path().join("base"), &out, &mut |_, _| {}).unwrap();
    assert!(content(&HostStorage, &out) == pattern(0, SIZE));
    assert_eq!(sum(&HostStorage, &out).unwrap(), crc32fast::hash(&fs::read(&out).unwrap()));
}

#[test]
fn a_merge_that_fails_at_any_step_leaves_the_old_world() {
    let world = || {
        let storage = FaultyStorage::new();
        let (paths, wanted) = three(&storage, Path::new("/"));
        (storage, paths, wanted)
    };
    let out = Path::new("/merged");
    let work = |storage: &FaultyStorage, paths: &[PathBuf; 3]| {
        merge(storage, &paths[1], &paths[0], out, &mut |_, _| {})?;
        storage.rename(out, &paths[1]).map_err(chain::read_failed(out))?;
        storage.sync_dir(Path::new("/")).map_err(chain::read_failed(out))
    };
    let (storage, paths, _) = world();
    let start = storage.operations();
    work(&storage, &paths).unwrap();
    let end = storage.operations();
    assert!(end - start > 20);
    for at in start..end {
        for fault in [Fault::Eio { at }, Fault::Full { at }, Fault::PowerOff { at }] {
            let (storage, paths, wanted) = world();
            storage.plan(Some(fault));
            let done = work(&storage, &paths);
            let after = match fault {
                Fault::PowerOff { .. } => storage.after_power_cut(at),
                _ => storage.after_kill(),
            };
            assert!(content(&after, &paths[2]) == wanted, "{fault:?}: {done:?}");
            if done.is_err() && !storage.is_off() && at < end - 2 {
                assert!(!storage.exists(out).unwrap(), "{fault:?}: nothing stays");
            }
        }
    }
}

#[test]
fn an_abandoned_top_is_left_as_it_is() {
    let base = file(SIZE);
    let (_dir, first) = layered(&base);
    let disk = Disk::open(&first).unwrap();
    write(&disk, 0, &[5; 512]);
    disk.stack().unwrap().flush().unwrap();
    write(&disk, 70_000, &[6; 512]);
    disk.abandon();
    drop(disk);
    let mut wanted = pattern(0, SIZE);
    wanted[..512].fill(5);
    assert!(Disk::open(&first).unwrap().content() == wanted);
    qemu_check(&first.path);
}

#[test]
fn leaks_are_repaired() {
    let base = file(SIZE);
    let (_dir, first) = layered(&base);
    let disk = Disk::open(&first).unwrap();
    write(&disk, 0, &[5; 70_000]);
    disk.stack().unwrap().flush().unwrap();
    drop(disk);
    // The refcount of a cluster that is not there, as a crash leaves it.
    let mut bytes = fs::read(&first.path).unwrap();
    let used = bytes.len() / 65536;
    bytes[0x20000 + used * 2 + 1] = 1;
    bytes.resize(bytes.len() + 65536, 3);
    fs::write(&first.path, &bytes).unwrap();
    let output = std::process::Command::new("qemu-img").arg("check").arg(&first.path).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "it has leaks");
    repair(&HostStorage, &first.path).unwrap();
    qemu_check(&first.path);
}
