//! Files and trees through a running agent.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::support::Agent;
use agent::frame::{Frame, MAX_FRAME};
use agent::message::{Ended, Looked, Pack, Refusal, Request, Unpack};
use tar::{Builder, EntryType, Header};

fn pack(agent: &Agent, path: &Path) -> (Vec<u8>, Ended) {
    let request = Request::Pack(Pack { path: path.display().to_string(), follow: false, name: None });
    let mut stream = agent.accepted(&request);
    let mut archive = Vec::new();
    loop {
        match Frame::read(&mut stream).unwrap().unwrap() {
            Frame::Output(bytes) => archive.extend(bytes),
            frame => return (archive, frame.read_as().unwrap()),
        }
    }
}

fn unpack_into(dir: &Path, rename: Option<&str>) -> Request {
    Request::Unpack(Unpack { dir: dir.display().to_string(), rename: rename.map(str::to_owned), owner: None })
}

fn send(mut stream: UnixStream, archive: &[u8]) -> Ended {
    for piece in archive.chunks(MAX_FRAME) {
        Frame::Input(piece.to_vec()).write(&mut stream).unwrap();
    }
    Frame::InputEnd.write(&mut stream).unwrap();
    Frame::read(&mut stream).unwrap().unwrap().read_as().unwrap()
}

fn unpack(agent: &Agent, dir: &Path, rename: Option<&str>, archive: &[u8]) -> Ended {
    send(agent.accepted(&unpack_into(dir, rename)), archive)
}

/// What can be seen of a tree, sorted.
fn seen(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let content = match found.file_type() {
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
            kind if kind.is_dir() => {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                String::new()
            }
            _ => format!("{:?} of {}", &fs::read(&path).unwrap().get(..8), found.len()),
        };
        let links = if found.is_dir() { 0 } else { found.nlink() };
        lines.push(format!("{name} {:o} {} {links} {content}", found.mode(), found.mtime()));
    }
    lines.sort();
    lines
}

fn tree(root: &Path) -> PathBuf {
    let tree = root.join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    for at in 0..300 {
        fs::write(tree.join(format!("a/b/file {at}")), vec![at as u8; at * 100]).unwrap();
    }
    let long = "long".repeat(60);
    fs::create_dir(tree.join(&long)).unwrap();
    fs::write(tree.join(&long).join(&long), "deep in").unwrap();
    fs::write(tree.join("a/script"), "#!/bin/sh").unwrap();
    fs::set_permissions(tree.join("a/script"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(tree.join("a/script"), tree.join("other name")).unwrap();
    symlink("/etc/passwd", tree.join("link")).unwrap();
    symlink("nowhere", tree.join("a/broken")).unwrap();
    let hole = fs::File::create(tree.join("hole")).unwrap();
    hole.set_len(3 << 20).unwrap();
    fs::create_dir(tree.join("closed")).unwrap();
    fs::write(tree.join("closed/in it"), "x").unwrap();
    fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o500)).unwrap();
    tree
}

#[test]
fn a_tree_comes_back_as_it_was() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let tree = tree(dir.path());
    let (archive, ended) = pack(&agent, &tree);
    assert_eq!(ended, Ended::Exited(0));
    assert_eq!(unpack(&agent, dir.path(), Some("again"), &archive), Ended::Exited(0));
    let again = dir.path().join("again");
    assert_eq!(seen(&again), seen(&tree));
    assert_eq!(fs::metadata(again.join("hole")).unwrap().blocks(), 0);
    // Once more over what is there.
    assert_eq!(unpack(&agent, dir.path(), Some("again"), &archive), Ended::Exited(0));
    assert_eq!(seen(&again), seen(&tree));
    fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(again.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn files_that_claim_to_be_empty_have_their_content() {
    let agent = Agent::start();
    let (archive, _) = pack(&agent, Path::new("/proc/version"));
    let mut archive = tar::Archive::new(&archive[..]);
    let mut text = String::new();
    archive.entries().unwrap().next().unwrap().unwrap().read_to_string(&mut text).unwrap();
    assert!(text.contains("Linux"), "{text}");
}

/// An archive of one entry, whose name is taken as it is.
fn hostile(name: &str, kind: EntryType, target: &str, rest: Option<&str>) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    let mut add = |name: &str, kind, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content).unwrap();
    };
    add(name, kind, if kind == EntryType::Regular { b"evil" } else { b"" });
    if let Some(rest) = rest {
        add(rest, EntryType::Regular, b"evil");
    }
    archive.into_inner().unwrap()
}

#[test]
fn nothing_is_put_outside_the_directory() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let outside = dir.path().join("outside");
    fs::write(&outside, "good").unwrap();
    let target = outside.to_str().unwrap();
    let above = dir.path().to_str().unwrap();
    for (what, archive) in [
        ("..", hostile("../outside", EntryType::Regular, "", None)),
        (".. within", hostile("a/../../outside", EntryType::Regular, "", None)),
        ("absolute", hostile(target, EntryType::Regular, "", None)),
        ("through a link", hostile("l", EntryType::Symlink, above, Some("l/outside"))),
        ("through a link up", hostile("l", EntryType::Symlink, "..", Some("l/new/outside"))),
        ("hard link", hostile("h", EntryType::Link, "../outside", Some("h"))),
        ("hard link, absolute", hostile("h", EntryType::Link, target, Some("h"))),
        ("device", hostile("d", EntryType::Char, "", None)),
        ("unknown", hostile("u", EntryType::new(b'Z'), "", None)),
    ] {
        let ended = unpack(&agent, &inner, None, &archive);
        assert!(matches!(ended, Ended::Failed(_)), "{what}: {ended:?}");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "good", "{what}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{what}");
    }
    // A link in a file's place is replaced, not followed.
    let archive = hostile("s", EntryType::Symlink, target, Some("s"));
    assert_eq!(unpack(&agent, &inner, None, &archive), Ended::Exited(0));
    assert_eq!(fs::read_to_string(&outside).unwrap(), "good");
    assert_eq!(fs::read_to_string(inner.join("s")).unwrap(), "evil");
}

#[test]
fn a_name_without_end_is_not_held_in_memory() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(8 << 30);
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    archive.resize(2 << 20, b'x');
    let ended = unpack(&agent, dir.path(), None, &archive);
    assert!(matches!(&ended, Ended::Failed(why) if why.contains("without end")), "{ended:?}");
}

#[test]
fn half_an_archive_is_an_error_and_leaves_no_half_file() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("big"), vec![7; 100_000]).unwrap();
    let (archive, _) = pack(&agent, &dir.path().join("big"));
    let ended = unpack(&agent, dir.path(), Some("copy"), &archive[..50_000]);
    assert!(matches!(ended, Ended::Failed(_)), "{ended:?}");
    assert!(!dir.path().join("copy").exists());
    let ended =
        unpack(&agent, dir.path(), Some("copy"), b"no archive at all, but long enough to be looked at");
    assert!(matches!(ended, Ended::Failed(_)), "{ended:?}");
}

#[test]
fn what_is_at_a_path_is_said() {
    let agent = Agent::start();
    let file = agent.path("file");
    fs::write(&file, "four").unwrap();
    let look = |path: &Path| {
        let mut stream = agent.accepted(&Request::Look { path: path.display().to_string() });
        Frame::read(&mut stream).unwrap().unwrap().read_as::<Looked>().unwrap()
    };
    assert_eq!(look(&file), Looked::File { size: 4 });
    assert_eq!(look(agent.dir.path()), Looked::Directory);
    assert_eq!(look(&agent.path("no")), Looked::Nothing);
}

#[test]
fn what_is_not_there_is_refused() {
    let agent = Agent::start();
    let nowhere = agent.path("nowhere");
    let request = Request::Pack(Pack { path: nowhere.display().to_string(), follow: false, name: None });
    assert!(matches!(agent.refused(&request), Refusal::Failed(why) if why.contains("nowhere")));
    assert!(matches!(agent.refused(&unpack_into(&nowhere, None)), Refusal::Failed(_)));
    for name in ["a/b", "..", "/", ""] {
        let request = unpack_into(agent.dir.path(), Some(name));
        assert!(matches!(agent.refused(&request), Refusal::Failed(_)), "{name}");
    }
}

#[test]
fn fractions_of_a_second_and_attributes_are_kept() {
    let agent = Agent::start();
    let (to, mut archive) = (tempfile::tempdir().unwrap(), Builder::new(Vec::new()));
    let said: [(&str, &[u8]); 3] = [
        ("mtime", b"1700000000.25"),
        ("SCHILY.xattr.user.note", b"kept"),
        ("SCHILY.xattr.trusted.note", b"for nobody"),
    ];
    archive.append_pax_extensions(said).unwrap();
    let mut header = Header::new_ustar();
    header.set_size(2);
    header.set_mode(0o640);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    archive.append_data(&mut header, "file", &b"hi"[..]).unwrap();
    let ended = unpack(&agent, to.path(), None, &archive.into_inner().unwrap());
    assert_eq!(ended, Ended::Exited(0));
    let file = to.path().join("file");
    let found = fs::metadata(&file).unwrap();
    assert_eq!((found.mtime(), found.mtime_nsec()), (1_700_000_000, 250_000_000));
    let mut value = [0; 16];
    match rustix::fs::getxattr(&file, "user.note", &mut value) {
        // Not every file system has attributes.
        Err(rustix::io::Errno::OPNOTSUPP) => {}
        length => assert_eq!(&value[..length.unwrap()], b"kept"),
    }
    assert!(rustix::fs::getxattr(&file, "trusted.note", &mut value).is_err());
}
