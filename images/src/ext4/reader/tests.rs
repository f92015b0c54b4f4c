//! File systems by the real programs, and what hostile ones could do.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::*;
use crate::ext4::{self, ArchiveError, archive};
use crate::tree::{self, Limits, Options, tests::described};

struct Disk(Vec<u8>);

impl Source for Disk {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn extent(&mut self, _: u64, len: u64) -> io::Result<(bool, u64)> {
        Ok((false, len))
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        data.copy_from_slice(&self.0[at..at + data.len()]);
        Ok(())
    }
}

/// A tree with everything that an archive can hold. Times are whole seconds: mkfs keeps no more.
fn tree(dir: &Path) {
    fs::create_dir_all(dir.join("usr/lib/deep/deeper")).unwrap();
    fs::create_dir(dir.join("many")).unwrap();
    for number in 0..600 {
        fs::write(
            dir.join(format!("many/a rather long name, so that there are several blocks {number}")),
            "",
        )
        .unwrap();
    }
    fs::write(dir.join("usr/lib/a b"), "content").unwrap();
    fs::write(dir.join("usr/lib/large"), (0..3_000_000).map(|at: u32| (at / 7) as u8).collect::<Vec<u8>>())
        .unwrap();
    let sparse = File::create(dir.join("usr/sparse")).unwrap();
    for at in [0, 5_000_000, 14_000_000] {
        sparse.write_all_at(b"between holes", at).unwrap();
    }
    sparse.set_len(20_000_001).unwrap();
    fs::hard_link(dir.join("usr/lib/a b"), dir.join("second")).unwrap();
    symlink("usr/lib", dir.join("lib")).unwrap();
    symlink("x".repeat(1000), dir.join("long")).unwrap();
    let fifo = rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    );
    fifo.unwrap();
    for (name, mode) in [("second", 0o4755), ("usr/sparse", 0o600), ("many", 0o1777)] {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    // Not every file system of the host has them.
    let _ = rustix::fs::setxattr(dir.join("second"), "user.skiff", b"value", rustix::fs::XattrFlags::empty());
    let mut all = vec![dir.to_owned()];
    let mut at = 0;
    while let Some(path) = all.get(at).cloned() {
        if path.is_dir() && !path.is_symlink() {
            all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        at += 1;
    }
    for (age, path) in all.iter().enumerate() {
        let (seconds, now) = (1_600_000_000 + age as i64, rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 });
        let times = rustix::fs::Timestamps {
            last_access: now,
            last_modification: rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 },
        };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// What comes out of the archive of a file system.
fn unpacked(disk: &mut dyn Source, start: u64, to: &Path) -> Vec<String> {
    let mut bytes = Vec::new();
    let mut reader = Reader::open(disk, start).unwrap();
    let packed = archive(&mut reader, &mut bytes, &Limits::default(), &mut ()).unwrap();
    assert_eq!(packed.skipped, 0);
    fs::create_dir(to).unwrap();
    let owners = rustix::process::geteuid().is_root();
    let limits = Limits { leave: 0, ..Limits::default() };
    let options = Options { owners, limits, ..Options::image() };
    tree::unpack(&bytes[..], File::open(to).unwrap(), &options).unwrap();
    described_below(to)
}

/// A tree without its top, whose time mkfs does not keep.
fn described_below(dir: &Path) -> Vec<String> {
    described(dir).into_iter().filter(|line| !line.starts_with(' ')).collect()
}

#[test]
fn what_is_in_a_file_system_of_any_kind_comes_out_as_it_was() {
    let temporary = tempfile::tempdir().unwrap();
    let from = temporary.path().join("from");
    fs::create_dir(&from).unwrap();
    tree(&from);
    let wanted = described_below(&from);
    let kinds: [&[&str]; 6] = [
        &["-t", "ext4"],
        &["-t", "ext4", "-b", "1024", "-O", "^64bit,meta_bg,^resize_inode"],
        &["-t", "ext4", "-O", "bigalloc,sparse_super2"],
        &["-t", "ext3", "-b", "1024"],
        &["-t", "ext2", "-b", "4096", "-I", "128"],
        &["-t", "ext2", "-b", "1024", "-O", "none"],
    ];
    for (number, options) in kinds.into_iter().enumerate() {
        let image = temporary.path().join(format!("{number}.img"));
        let output = Command::new("/sbin/mke2fs")
            .args(["-q", "-F", "-d"])
            .arg(&from)
            .args(options)
            .arg(&image)
            .arg("64M")
            .output()
            .unwrap();
        assert!(output.status.success(), "{options:?}: {output:?}");
        let bytes = [vec![0xff; 4096], fs::read(&image).unwrap()].concat();
        let found = unpacked(&mut Disk(bytes), 4096, &temporary.path().join(number.to_string()));
        assert!(found == wanted, "{options:?}: {}", difference(&found, &wanted));
    }
}

fn difference(found: &[String], wanted: &[String]) -> String {
    let pair = found.iter().zip(wanted).find(|(found, wanted)| found != wanted);
    let short = |text: &str| text.chars().take(200).collect::<String>();
    pair.map_or_else(
        || format!("{} and {} files", found.len(), wanted.len()),
        |(found, wanted)| format!("{} is not {}", short(found), short(wanted)),
    )
}

/// A small file system with a few files.
fn small() -> Vec<u8> {
    static SMALL: OnceLock<Vec<u8>> = OnceLock::new();
    let make = || {
        let temporary = tempfile::tempdir().unwrap();
        let (from, image) = (temporary.path().join("from"), temporary.path().join("image"));
        fs::create_dir_all(from.join("directory/below")).unwrap();
        fs::write(from.join("directory/file"), vec![7; 20_000]).unwrap();
        symlink("y".repeat(100), from.join("link")).unwrap();
        let output = Command::new("/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(&from)
            .arg(&image)
            .arg("1M")
            .output();
        assert!(output.unwrap().status.success());
        fs::read(&image).unwrap()
    };
    SMALL.get_or_init(make).clone()
}

fn try_to_read(bytes: Vec<u8>, limits: &Limits) -> Result<tree::Packed, ArchiveError> {
    let mut disk = Disk(bytes);
    archive(&mut Reader::open(&mut disk, 0)?, io::sink(), limits, &mut ())
}

fn place_of(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).unwrap()
}

#[test]
fn a_directory_below_itself_is_refused() {
    let mut bytes = small();
    let entry = place_of(&bytes, b"below\0") - 8;
    for inode in [2, u32::MAX, 12, 0] {
        bytes[entry..entry + 4].copy_from_slice(&u32::to_le_bytes(inode));
        let read = try_to_read(bytes.clone(), &Limits::default());
        // A name that was taken away is none.
        assert_eq!(read.is_ok(), inode == 0, "{inode}: {read:?}");
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for name in [&b"be/ow"[..], b"\0elow", b"...ow"] {
        let mut bytes = small();
        let at = place_of(&bytes, b"below\0");
        bytes[at..at + 5].copy_from_slice(name);
        let read = try_to_read(bytes, &Limits::default());
        assert_eq!(read.is_ok(), name == b"...ow", "{read:?}");
    }
}

#[test]
fn what_is_more_than_was_expected_is_refused() {
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        try_to_read(small(), &limits)
    };
    assert_eq!(limits(|_| ()).unwrap().entries, 5);
    let refused = |read: Result<_, _>| match read {
        Err(ArchiveError::Tree(error)) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(limits(|limits| limits.bytes = 19_999)), tree::Error::TooLarge { .. }));
    assert!(matches!(refused(limits(|limits| limits.entries = 4)), tree::Error::TooMany { .. }));
    assert!(matches!(refused(limits(|limits| limits.depth = 1)), tree::Error::TooDeep { .. }));
}

#[test]
fn a_file_system_that_was_in_use_is_not_taken_for_whole() {
    let mut bytes = small();
    bytes[1024 + 0x60] |= 4;
    assert!(matches!(
        try_to_read(bytes.clone(), &Limits::default()),
        Err(ArchiveError::Read(ReadError::Unclean))
    ));
    bytes[1024 + 0x60] ^= 4;
    bytes.truncate(900_000);
    assert!(matches!(
        try_to_read(bytes, &Limits::default()),
        Err(ArchiveError::Read(ReadError::Damaged { .. }))
    ));
    assert!(try_to_read(vec![0; 100], &Limits::default()).is_err());
}

#[test]
fn files_cannot_share_blocks_to_be_more_than_the_disk() {
    // The inode of the file says that it has terabytes, all of them in one extent of the same blocks again and again.
    let mut bytes = small();
    let reader = |bytes: &[u8]| {
        let mut disk = Disk(bytes.to_vec());
        let mut reader = Reader::open(&mut disk, 0).unwrap();
        let (table, size) = (reader.inode_table(0).unwrap() * reader.shape.block, reader.shape.inode_size);
        (usize::try_from(table).unwrap(), size)
    };
    let (table, size) = reader(&bytes);
    let file = (11..20)
        .map(|number| table + number * size)
        .find(|at| bytes[at + 4..at + 8] == 20_000_u32.to_le_bytes())
        .unwrap();
    bytes[file + 4..file + 8].copy_from_slice(&(4_u32 << 20).to_le_bytes());
    // Four extents in the inode, each of all blocks of the disk.
    bytes[file + 0x28 + 2] = 4;
    for entry in 0..4_u32 {
        let at = file + 0x28 + 12 + 12 * entry as usize;
        bytes[at..at + 4].copy_from_slice(&(entry * 1000).to_le_bytes());
        bytes[at + 4..at + 6].copy_from_slice(&1000_u16.to_le_bytes());
        bytes[at + 6..at + 12].copy_from_slice(&[0, 0, 1, 0, 0, 0]);
    }
    let read = try_to_read(bytes, &Limits::default()).unwrap_err();
    let ArchiveError::File { source: ReadError::Damaged { what }, .. } = read else { panic!("{read:?}") };
    assert!(what.contains("several files"), "{what}");
}

#[test]
fn what_was_made_for_guests_is_read_without_e2fsprogs() {
    let temporary = tempfile::tempdir().unwrap();
    let (from, image) = (temporary.path().join("from"), temporary.path().join("image"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "content").unwrap();
    let making = ext4::Making { label: "root".to_owned(), size: 1 << 30, bytes: 7, entries: 1 };
    ext4::make(&from, &image, &making).unwrap();
    let found = unpacked(&mut Disk(fs::read(&image).unwrap()), 0, &temporary.path().join("to"));
    assert_eq!(found.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn no_damage_makes_it_fall_over(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), superblock in any::<bool>()) {
        let mut bytes = small();
        // Where something is: elsewhere a change changes nothing.
        static USED: OnceLock<Vec<usize>> = OnceLock::new();
        let used = USED.get_or_init(|| (0..bytes.len()).filter(|at| !matches!(bytes[*at], 0 | 7 | 0xff)).collect());
        let places = if superblock { &(1024..2048).collect() } else { used };
        for (place, byte) in changes {
            let at = *place.get(places);
            bytes[at] = byte;
        }
        let limits = Limits { bytes: 64 << 20, ..Limits::default() };
        let _ = try_to_read(bytes, &limits);
    }
}
