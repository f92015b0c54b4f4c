//! Archives that are not what they should be. Whole ones are tried with VMs, by the tests of the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use devices::storage::{HostStorage, Space};

use super::super::super::manifest::Sum;
use super::super::super::memory::{Content, Index, PAGE, Run};
use super::super::super::{Id, Places, Record};
use super::super::testing::World;
use super::super::tests::{family, with_every_fault};
use super::super::{Store, StoreError};
use super::*;
use crate::spec::{NetBackend, NetSpec};

const SPEC: &str = "kernel = \"/k\"\ncmdline = \"\"\ncpus = 1\nmemory = \"64M\"\ntransport = \"pci\"\nserial = \"file=/etc/passwd\"\n\
                    console = \"null\"\npublish = [\"8080:80\"]\n[vsock]\npath = \"/run/v\"\n[[net]]\nuser = true\nmtu = 1400\n\
                    [[net]]\ntap = \"br-office\"\nqueues = 4\n[[net]]\nfd = 5\n";
const RAM: u64 = 64 << 20;

/// An archive before it is written.
struct Draft {
    contents: Contents,
    entries: Vec<(String, tar::EntryType, Vec<u8>)>,
    /// What follows it.
    after: Vec<u8>,
}

fn good(dir: &Path) -> Draft {
    let page = vec![7; PAGE as usize];
    let runs = vec![Run { first: 3, count: 1, content: Content::Data }];
    let index_path = dir.join("made");
    let _ = fs::remove_file(&index_path);
    Index::new(RAM, runs, crc32fast::hash(&page)).unwrap().write(&HostStorage, &index_path).unwrap();
    let all = [
        (STATE, b"state".to_vec()),
        (INDEX, fs::read(index_path).unwrap()),
        (MEMORY, page),
        (KERNEL, b"kernel".to_vec()),
    ];
    let sum = |content: &[u8]| Sum { len: content.len() as u64, crc32: crc32fast::hash(content) };
    let contents = Contents {
        format: FORMAT,
        arch: std::env::consts::ARCH.to_owned(),
        vm: "web".to_owned(),
        name: "s1".to_owned(),
        comment: "a\u{1b}b".to_owned(),
        created_ms: 1,
        pause_us: 2,
        spec: SPEC.to_owned(),
        entries: all
            .iter()
            .map(|(name, content)| EntrySum { name: (*name).to_owned(), sum: sum(content) })
            .collect(),
        disks: Vec::new(),
    };
    let entries =
        all.into_iter().map(|(name, content)| (name.to_owned(), tar::EntryType::Regular, content)).collect();
    Draft { contents, entries, after: Vec::new() }
}

fn write(draft: &Draft, path: &Path) {
    let mut archive = tar::Builder::new(Vec::new());
    let contents = super::super::super::sealed::seal(&draft.contents).unwrap();
    let first = (CONTENTS.to_owned(), tar::EntryType::Regular, contents);
    for (name, kind, content) in std::iter::once(&first).chain(&draft.entries) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        // As it is: the library itself refuses names that lead outside.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, content.as_slice()).unwrap();
    }
    let mut all = archive.into_inner().unwrap();
    all.extend(&draft.after);
    fs::write(path, zstd::encode_all(all.as_slice(), 1).unwrap()).unwrap();
}

/// A store in `dir`, and what an import into it comes to.
fn import(dir: &Path, draft: &Draft) -> (Store, Result<Import, ArchiveError>) {
    let path = dir.join("web.skiff");
    write(draft, &path);
    let store = Store::open(Places::new(dir.join("data")));
    let imported = store.import(&path, &mut |_, _| {});
    (store, imported)
}

/// All files of the store but its locks.
fn files(store: &Store) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for dir in [store.places().layers(), store.places().boot(), store.places().snapshots()] {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            files.push(entry.unwrap().path());
        }
    }
    files
}

#[test]
fn a_good_archive_becomes_a_snapshot_that_names_nothing_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let (store, imported) = import(dir.path(), &good(dir.path()));
    let mut imported = imported.unwrap();
    assert_eq!((imported.name(), imported.vm.as_str()), ("s1", "web"));
    assert_eq!(imported.spec.serial, crate::spec::Stream::Null);
    assert!(imported.spec.ports.is_empty());
    let user = NetSpec::new(NetBackend::User);
    let tap = NetSpec { queues: Some(4), ..NetSpec::new(NetBackend::Tap("br-office".to_owned())) };
    assert_eq!(imported.spec.nets, [NetSpec { mtu: Some(1400), ..user.clone() }, tap, user]);
    imported.spec.vsock.as_mut().unwrap().path = Some("/run/mine".into());
    let vm = Id::draw().unwrap();
    let record = dir.path().join(Record::FILE);
    let mut at = None;
    imported
        .commit(vm, |id, _| {
            at = Some(id);
            Ok::<_, StoreError>(Record::new(vm, Vec::new()).write(&HostStorage, &record)?)
        })
        .unwrap();
    let chain = store.verify(at.unwrap(), &mut |_, _| {}).unwrap();
    assert_eq!((chain[0].comment.as_str(), chain[0].vm), ("ab", vm));
    let memory = fs::read(store.memory_layer(&chain[0]).data).unwrap();
    assert_eq!(
        (memory.len() as u64, memory.iter().position(|byte| *byte == 7)),
        (RAM, Some(3 * PAGE as usize))
    );
    let spec = read_spec(&chain[0].spec).unwrap();
    assert_eq!(fs::read(spec.kernel).unwrap(), b"kernel");
}

#[test]
fn an_archive_that_is_not_what_it_says_leaves_nothing() {
    type Change = fn(&mut Draft);
    let changes: &[(&str, Change)] = &[
        ("it ends before memory", |draft| draft.entries.truncate(2)),
        ("memory is not where it must be", |draft| draft.entries.swap(2, 3)),
        ("state is not where it must be", |draft| draft.entries[0].0 = "../../state".to_owned()),
        ("state is not where it must be", |draft| draft.entries[0].1 = tar::EntryType::Symlink),
        ("state is not where it must be", |draft| {
            let name = b"state\0".to_vec();
            draft.entries.insert(0, ("long".to_owned(), tar::EntryType::GNULongName, name));
        }),
        ("kernel is not where it must be", |draft| draft.entries[3].1 = tar::EntryType::Link),
        ("state is not where it must be", |draft| draft.contents.entries[0].name = "../state".to_owned()),
        ("more than belongs to a snapshot", |draft| {
            let entry = draft.contents.entries[0].clone();
            draft.contents.entries.push(entry);
        }),
        ("more than it says", |draft| {
            draft.entries.push(("x".to_owned(), tar::EntryType::Regular, Vec::new()));
        }),
        ("kernel has another length", |draft| draft.entries[3].2.push(0)),
        ("the checksum of kernel is wrong", |draft| draft.entries[3].2[0] ^= 1),
        ("its memory is not what its index says", |draft| draft.contents.entries[2].sum.len += PAGE),
        ("are free on the file system of", |draft| draft.contents.entries[2].sum.len = 1 << 60),
        ("state has 67108865 bytes, and 67108864 are the most", |draft| {
            draft.contents.entries[0].sum.len = (64 << 20) + 1;
        }),
        // 64 MiB of memory have no more than 16384 runs.
        ("index has 1310721 bytes, and 1310720 are the most", |draft| {
            draft.contents.entries[1].sum.len = (1 << 20) + 16384 * 16 + 1;
        }),
        ("web.skiff", |draft| {
            draft.entries[1].2 = b"no index".to_vec();
            draft.contents.entries[1].sum = Sum { len: 8, crc32: crc32fast::hash(b"no index") };
        }),
        ("it has not the disks of its spec", |draft| draft.contents.disks.push(512)),
        ("its spec", |draft| draft.contents.spec = "kernel = 5".to_owned()),
        ("more follows than belongs to it", |draft| draft.after = b"tail".to_vec()),
        ("more follows than belongs to it", |draft| draft.after = vec![0; 2 << 20]),
        ("format 2, written by a newer skiff", |draft| draft.contents.format = 2),
        ("exported on aarch64", |draft| draft.contents.arch = "aarch64".to_owned()),
    ];
    for (message, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        let mut draft = good(dir.path());
        change(&mut draft);
        let (store, imported) = import(dir.path(), &draft);
        let error = imported.expect_err(message).to_string();
        assert!(error.contains(message) && error.contains("web.skiff"), "{message}: {error}");
        assert_eq!(files(&store), Vec::<PathBuf>::new(), "{message}");
    }
}

#[test]
fn an_import_leaves_some_room_whatever_others_write_meanwhile() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.skiff");
    let mut draft = good(dir.path());
    let kernel = vec![1; 80 * MIB as usize];
    draft.contents.entries[3].sum = Sum { len: kernel.len() as u64, crc32: crc32fast::hash(&kernel) };
    draft.entries[3].2 = kernel;
    write(&draft, &path);
    // A tenth is free, a twentieth must stay so, and at half of the way somebody else takes what is free.
    let import = |free: u64, later: u64| {
        let world = World::new();
        let say = |free| world.storage.say_space(Space { total: 2000 * MIB, free });
        say(free);
        let imported = world.store.import(&path, &mut |done, total| {
            if done > total / 2 {
                say(later);
            }
        });
        let files = world.storage.files();
        (imported.map(drop).map_err(|error| error.to_string()), files)
    };
    import(200 * MIB, 200 * MIB).0.unwrap();
    for (free, later, said) in [
        (180, 180, "81 MiB more are needed, 180 MiB are free"),
        (200, 100, "1 MiB more are needed, 100 MiB are free"),
    ] {
        let (imported, files) = import(free * MIB, later * MIB);
        let error = imported.unwrap_err();
        assert!(error.contains("web.skiff does not fit") && error.contains(said), "{error}");
        assert!(error.contains("100 MiB of it must stay free"), "{error}");
        assert!(!files.iter().any(|path| path.starts_with("/data/snapshots")), "{files:?}");
    }
}

#[test]
fn an_import_whose_vm_cannot_be_made_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (store, imported) = import(dir.path(), &good(dir.path()));
    let refuse = |id, _| Err(StoreError::Unknown(id));
    assert!(imported.unwrap().commit(Id::draw().unwrap(), refuse).is_err());
    assert_eq!(files(&store), Vec::<PathBuf>::new());
}

/// A good archive that stays to the end of the tests.
fn archive() -> &'static Path {
    static ARCHIVE: OnceLock<tempfile::TempDir> = OnceLock::new();
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let dir = ARCHIVE.get_or_init(|| tempfile::tempdir().unwrap());
        let path = dir.path().join("web.skiff");
        write(&good(dir.path()), &path);
        path
    })
}

#[test]
fn an_import_on_a_host_that_fails_leaves_nothing_and_takes_nothing_with_it() {
    let act = |world: &World| {
        let imported = world.store.import(archive(), &mut |_, _| {});
        let mut imported =
            imported.map_err(|error| StoreError::io("import", archive())(io::Error::other(error)))?;
        imported.spec.vsock.as_mut().unwrap().path = Some("/run/mine".into());
        imported.commit(super::super::testing::id(300), |id, _| {
            let mut record = Record::new(super::super::testing::id(300), vec![None]);
            record.parent = Some(id);
            world.users.lock().unwrap().insert(300, (record, false));
            Ok(())
        })
    };
    with_every_fault(family, act, &[1, 2, 3, 4]);
}
