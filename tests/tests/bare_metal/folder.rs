//! virtio-fs: files by hash, a tree as large as a kernel's, and a mount that goes on from a snapshot.

use std::fs;
use std::path::Path;
use std::time::Duration;

use skiff_tests::machine::{Machine, Transport};
use skiff_tests::tree;
use vmm::spec::FolderSpec;

use crate::on_both;
use crate::snapshots::World;

on_both!(files_are_the_hosts, a_mount_goes_on_from_any_snapshot);

/// FNV-1a, 64 bits, as the guest does it.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, step)
}

fn sum(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    format!("{:#x} {}", hash(&bytes), bytes.len())
}

fn files_are_the_hosts(transport: Transport) {
    let dir = tempfile::tempdir().unwrap();
    let share = dir.path().join("share");
    fs::create_dir(&share).unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    let bytes: Vec<u8> = (0..1_500_001_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    fs::write(share.join("in"), bytes).unwrap();
    for number in 0..100 {
        fs::write(share.join(format!("another file {number}")), "").unwrap();
    }
    let folder = format!("path={},tag=files", share.display());
    let ended = Machine::guest("folder").transport(transport).flag("--fs", folder).run();
    ended.passed(&["folder"]);
    assert_eq!(ended.said("folder-tag"), "files");
    assert_eq!(ended.said("folder-in"), sum(&share.join("in")));
    assert_eq!(ended.said("folder-out"), sum(&share.join("out")));
    assert_eq!(ended.said("folder-names"), "102");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_tree_as_large_as_a_kernels_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = tree::make(&dir.path().join("tree")).unwrap();
    let folder = format!("path={}", dir.path().display());
    let machine = Machine::guest("folder-tree").flag("--fs", folder);
    let ended = machine.limit(Duration::from_secs(600)).run();
    ended.passed(&["folder-tree"]);
    let mut same = Same::default();
    same.compare(&dir.path().join("tree"), &dir.path().join("copy"));
    assert_eq!((same.files, same.bytes), (tree::FILES as u64, bytes));
    let Same { files, directories, links, bytes, sum } = same;
    assert_eq!(ended.said("tree-copied"), format!("{files} {directories} {links} {bytes} {sum:#x}"));
}

/// What two trees both have.
#[derive(Default)]
struct Same {
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    /// The hashes of all files, added.
    sum: u64,
}

impl Same {
    fn compare(&mut self, one: &Path, other: &Path) {
        for entry in fs::read_dir(one).unwrap() {
            let here = entry.unwrap();
            let (path, there) = (here.path(), other.join(here.file_name()));
            let kind = here.file_type().unwrap();
            assert_eq!(there.symlink_metadata().unwrap().file_type(), kind, "{}", path.display());
            if kind.is_dir() {
                self.directories += 1;
                self.compare(&path, &there);
            } else if kind.is_symlink() {
                self.links += 1;
                assert_eq!(fs::read_link(&path).unwrap(), fs::read_link(&there).unwrap());
            } else {
                let bytes = fs::read(&path).unwrap();
                assert!(bytes == fs::read(&there).unwrap(), "{} is another", there.display());
                self.files += 1;
                self.bytes += bytes.len() as u64;
                self.sum = self.sum.wrapping_add(hash(&bytes));
            }
        }
        let count = |dir: &Path| fs::read_dir(dir).unwrap().count();
        assert_eq!(count(one), count(other), "{}", other.display());
    }
}

/// The file that the guest has open is found again; a clone whose folder has no such file is told so.
fn a_mount_goes_on_from_any_snapshot(transport: Transport) {
    let (share, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut world = World::of("folder-beats", transport);
    world.folders = vec![FolderSpec::new(share.path())];
    let first = world.start("first", 1, None);
    first.goes_on(2);
    let snapshot = first.snapshot("s");
    first.goes_on(2);
    first.roll_back(snapshot);
    first.goes_on(2);
    let clone = world.start("clone", 1, Some(snapshot));
    clone.goes_on(2);
    clone.end();
    world.folders = vec![FolderSpec::new(other.path())];
    let lost = world.start("lost", 1, Some(snapshot));
    // ESTALE, to whichever request is the first.
    lost.fails(": error 116");
    first.end();
    assert!(fs::metadata(share.path().join("log")).unwrap().len() >= 32);
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
}
