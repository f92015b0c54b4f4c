//! Images that `qemu-img` made, read and written here, and images that nobody should make.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::chain::{self, Access};
use super::super::stack::Stack;
use super::super::stack::tests::{qemu_check, qemu_img};
use super::super::{DiskError, Erase, Extent};
use super::*;
use crate::storage::HostStorage;

const READ: Access = Access { write: false, direct: false };
const WRITE: Access = Access { write: true, direct: false };
/// Not a whole number of clusters of any size but the smallest.
const SIZE: usize = (3 << 20) + 1536;

/// Parts that are zeroes, that can be packed well, and that cannot.
fn content() -> Vec<u8> {
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let mut part = |index: usize| {
        (0..SIZE / 64 / 8).flat_map(move |_| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            match index % 4 {
                0 => [0; 8],
                1 | 2 => [index as u8; 8],
                _ => noise.to_le_bytes(),
            }
        })
    };
    let mut bytes: Vec<u8> = (0..65).flat_map(&mut part).collect();
    bytes.resize(SIZE, 7);
    bytes
}

struct Place {
    dir: TempDir,
    raw: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("raw");
        fs::write(&raw, content()).unwrap();
        Self { dir, raw }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The content as an image made with these words of `qemu-img convert`.
    fn image(&self, name: &str, words: &str) -> PathBuf {
        let path = self.path(name);
        let mut all = vec!["convert", "-O", "qcow2", "-f", "raw"];
        all.extend(words.split_whitespace());
        qemu_img(&all, &[&self.raw, &path]);
        path
    }
}

fn open(path: &Path, access: Access) -> Result<Stack, DiskError> {
    chain::open(&HostStorage, path, access)
}

fn read(stack: &Stack) -> Vec<u8> {
    let mut data = vec![0; stack.size() as usize];
    stack.read(0, &mut data).unwrap();
    data
}

fn refused(path: &Path, access: Access) -> String {
    let error = open(path, access).unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    assert!(text.contains(&*path.to_string_lossy()), "names the file: {text}");
    text
}

/// Every kind of image that there is to be read.
const KINDS: [&str; 13] = [
    "-o compat=0.10",
    "-o compat=1.1",
    "-o compat=1.1,lazy_refcounts=on",
    "-o cluster_size=512",
    "-o cluster_size=4096",
    "-o cluster_size=2M",
    "-c -o cluster_size=512",
    "-c -o compression_type=zlib",
    "-c -o compression_type=zstd",
    "-c -o compression_type=zstd,cluster_size=2M",
    "-o refcount_bits=1",
    "-o refcount_bits=64,cluster_size=1024",
    "-o preallocation=metadata",
];

#[test]
fn every_kind_of_image_is_read() {
    let place = Place::new();
    for (index, words) in KINDS.into_iter().enumerate() {
        let path = place.image(&index.to_string(), words);
        assert!(read(&open(&path, READ).unwrap()) == content(), "{words}");
    }
}

#[test]
fn chains_of_every_kind_are_read() {
    let place = Place::new();
    let mut below = place.image("0", KINDS[6]);
    let mut wanted = content();
    for (index, words) in
        (1..).zip(["-o compat=0.10", "-o cluster_size=2M", "-o cluster_size=512", "-o cluster_size=64k"])
    {
        let path = place.path(&index.to_string());
        let mut all = vec!["create", "-q", "-f", "qcow2", "-F", "qcow2"];
        all.extend(words.split_whitespace());
        // By its plain name, which is looked for beside the image.
        all.extend(["-b", below.file_name().unwrap().to_str().unwrap()]);
        // Each longer than the one below it.
        wanted.resize(SIZE + index * 70 * 1024, 0);
        let size = wanted.len().to_string();
        let path_text = path.to_str().unwrap().to_owned();
        all.extend([path_text.as_str(), size.as_str()]);
        qemu_img(&all, &[]);
        let stack = open(&path, WRITE).unwrap();
        for part in 0..10 {
            let at = (part * 300 + index * 77) * 512;
            let data = vec![index as u8; 3 * 512];
            stack.write_any(at as u64, &data).unwrap();
            wanted[at..at + data.len()].copy_from_slice(&data);
        }
        assert!(read(&stack) == wanted, "{words}");
        drop(stack);
        below = path;
    }
    let out = place.path("out");
    qemu_img(&["convert", "-O", "raw"], &[&below, &out]);
    assert!(fs::read(out).unwrap() == wanted, "qemu-img reads the same");
    assert!(read(&open(&below, READ).unwrap()) == wanted);
    qemu_check(&below);
}

#[test]
fn every_kind_of_image_is_written_in_place() {
    let place = Place::new();
    for (index, words) in KINDS.into_iter().enumerate() {
        let path = place.image(&index.to_string(), words);
        let mut wanted = content();
        let stack = open(&path, WRITE).unwrap();
        for part in 0..40_usize {
            let at = part * 37 * 512 % (SIZE - 70_000);
            let len = [512, 4096, 1024, 66_048][part % 4];
            match part % 5 {
                3 => {
                    stack.erase(Extent { offset: at as u64, len: len as u64, how: Erase::Unmap }).unwrap();
                    wanted[at..at + len].fill(0);
                }
                _ => {
                    stack.write_any(at as u64, &vec![part as u8; len]).unwrap();
                    wanted[at..at + len].fill(part as u8);
                }
            }
            if part % 11 == 0 {
                stack.flush().unwrap();
            }
        }
        assert!(read(&stack) == wanted, "{words}");
        drop(stack);
        assert!(read(&open(&path, READ).unwrap()) == wanted, "{words}");
        qemu_check(&path);
    }
}

#[test]
fn tables_grow_with_the_disk_and_with_what_is_written() {
    let place = Place::new();
    let path = place.path("small");
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path.to_str().unwrap(), "1M"], &[]);
    let stack = open(&path, WRITE).unwrap();
    stack.write_any(0, &[1; 512]).unwrap();
    // L1 moves, and the table of refcounts, which covers 8 MiB of the file at first, more than once.
    stack.resize(40 << 20).unwrap();
    assert_eq!(stack.size(), 40 << 20);
    for at in (0..40 << 20).step_by(1 << 20) {
        stack.write_any(at, &vec![3; 900 * 1024]).unwrap();
    }
    drop(stack);
    qemu_check(&path);
    let data = read(&open(&path, READ).unwrap());
    assert!(
        data[..900 * 1024] == vec![3; 900 * 1024] && data[(39 << 20) + 900 * 1024..] == vec![0; 124 * 1024]
    );
    assert!(qemu_img(&["info"], &[&path]).contains("40 MiB"));
}

/// Change bytes of a copy of an image.
fn patched(place: &Place, image: &Path, at: u64, bytes: &[u8]) -> PathBuf {
    let path = place.path("patched");
    fs::copy(image, &path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(bytes, at).unwrap();
    path
}

#[test]
fn what_is_not_supported_is_refused_with_what_to_do() {
    let place = Place::new();
    let image = place.image("image", "");
    for (at, bytes, text) in [
        (0, &[0_u8; 4][..], "its magic is 0"),
        (4, &[0, 0, 0, 9], "its version is 9"),
        (20, &[0, 0, 0, 40], "its cluster size is 40"),
        (24, &[0xff; 8], "its size is"),
        (32, &[0, 0, 0, 2], "it uses encryption, which skiff does not support: convert it"),
        (36, &[0xff; 4], "its L1 table's length"),
        (36, &[0; 4], "its L1 table's length is 0"),
        (40, &[0, 0, 0, 0, 0, 0, 0, 1], "the L1 table is 1"),
        (40, &[0, 0x7f, 0, 0, 0, 0, 0, 0], "it is cut off: the L1 table at 0x7f"),
        (56, &[0xff; 4], "its refcount table's length"),
        (79, &[4], "an external data file"),
        (79, &[16], "extended L2 entries"),
        (79, &[0x80], "features that skiff does not know (bits 0x80)"),
        (96, &[0, 0, 0, 7], "its refcount order is 7"),
        (100, &[0xff; 4], "its header length"),
        (104, &[9], "its compression type is 9"),
    ] {
        let path = patched(&place, &image, at, bytes);
        if at == 0 {
            let error = chain::open_image(&HostStorage, &path, false).unwrap_err();
            assert!(format!("{error:?}").contains("magic"));
            continue;
        }
        let said = refused(&path, READ);
        assert!(said.contains(text), "{text}: {said}");
    }
    let corrupt = patched(&place, &image, 79, &[2]);
    open(&corrupt, READ).unwrap();
    assert!(refused(&corrupt, WRITE).contains("qemu-img check -r all"));
    qemu_img(&["snapshot", "-c", "inside"], &[&image]);
    open(&image, READ).unwrap();
    assert!(refused(&image, WRITE).contains("internal snapshots, which would not survive being written"));
}

#[test]
fn a_chain_that_goes_round_or_ends_nowhere_is_refused() {
    let place = Place::new();
    let [a, b] = ["a", "b"].map(|name| place.path(name));
    let base = super::super::layer::Base { name: "b".into(), format: Format::Qcow2 };
    super::super::layer::create(&HostStorage, &a, Some(&base), 1 << 20).unwrap();
    let gone = refused(&a, READ);
    assert!(gone.contains("the layer") && gone.contains("does not exist: move it back"), "{gone}");
    assert!(!gone.contains("make an empty disk"), "{gone}");
    let base = super::super::layer::Base { name: "a".into(), format: Format::Qcow2 };
    super::super::layer::create(&HostStorage, &b, Some(&base), 1 << 20).unwrap();
    for access in [READ, WRITE] {
        assert!(refused(&a, access).contains("which lies on it"));
    }
    let deep = |number: usize| place.path(&format!("deep{number}"));
    super::super::layer::create(&HostStorage, &deep(0), None, 1 << 20).unwrap();
    for number in 1..258 {
        let name = deep(number - 1).file_name().unwrap().into();
        let base = super::super::layer::Base { name, format: Format::Qcow2 };
        super::super::layer::create(&HostStorage, &deep(number), Some(&base), 1 << 20).unwrap();
    }
    open(&deep(255), READ).unwrap();
    assert!(refused(&deep(257), READ).contains("more than 256 layers"));
}

#[test]
fn tables_that_contradict_each_other_are_not_written() {
    let place = Place::new();
    let image = place.image("image", "");
    let header = chain::open_image(&HostStorage, &image, false).unwrap().header;
    let file = fs::read(&image).unwrap();
    let entry = |at: u64| u64::from_be_bytes(file[at as usize..][..8].try_into().unwrap());
    let table = entry(header.l1_offset) & 0x00ff_ffff_ffff_fe00;
    // Two clusters in one place; a cluster on the header; a table on itself; far outside.
    let first = (0..).map(|index| table + index * 8).find(|at| entry(*at) > 1).unwrap();
    for value in [entry(first), 1 << 63, (1 << 63) | table, (1 << 63) | (1 << 50), 512 * 3] {
        let path = patched(&place, &image, first + 8, &value.to_be_bytes());
        if value == 1 << 63 {
            // No place at all: the cluster is just not there.
            continue;
        }
        let said = refused(&path, WRITE);
        assert!(said.contains("damaged") || said.contains("cut off"), "{value:#x}: {said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is in its tables, an image is refused, or read and written with errors at worst.
    #[test]
    fn a_hostile_image_does_no_harm(
        kind in 0..3_usize,
        patches in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u64>(), Just(0), Just(u64::MAX), (0..100_u64).prop_map(|n| n << 9 | 1 << 63), (0..9_u64).prop_map(|n| n << 16)
        ]), 1..6),
    ) {
        static IMAGES: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(|| {
            let place = Place::new();
            let kinds = ["", "-c -o cluster_size=4k", "-c -o compression_type=zstd,cluster_size=512"];
            kinds.map(|words| fs::read(place.image("image", words)).unwrap()).into()
        });
        let place = Place::new();
        let path = place.path("image");
        let mut bytes = IMAGES[kind].clone();
        let header = Image::new(Box::new(Bytes(bytes.clone())), &path).unwrap().header;
        for (index, value) in patches {
            // In the header, or in one of the tables.
            let places: Vec<usize> = (0..112).step_by(4)
                .chain((0..64).map(|n| header.l1_offset as usize + n * 8))
                .chain((0..64).map(|n| header.refcount_offset as usize + n * 8))
                .chain((0..512).map(|n| (bytes.len() / 512 * n) & !7))
                .collect();
            let at = *index.get(&places);
            if let Some(place) = bytes.get_mut(at..at + 8) {
                place.copy_from_slice(&value.to_be_bytes());
            }
        }
        fs::write(&path, &bytes).unwrap();
        for access in [READ, WRITE] {
            let Ok(stack) = open(&path, access) else { continue };
            let mut data = vec![0; 64 * 1024];
            for at in (0..stack.size().min(4 << 20)).step_by(64 * 1024) {
                let len = (stack.size() - at).min(64 * 1024) as usize;
                let _ = stack.read(at, &mut data[..len]);
                if access.write {
                    let _ = stack.write_any(at, &data[..len.min(512)]);
                }
            }
            let _ = stack.flush();
        }
    }
}

/// A file in memory.
#[derive(Debug)]
struct Bytes(Vec<u8>);

impl crate::storage::StoredFile for Bytes {
    fn read_exact_at(&self, data: &mut [u8], offset: u64) -> std::io::Result<()> {
        let part = self.0.get(offset as usize..offset as usize + data.len());
        data.copy_from_slice(part.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_all_at(&self, _data: &[u8], _offset: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn set_len(&self, _len: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn erase(&self, _offset: u64, _len: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}
