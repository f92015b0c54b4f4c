//! What a guest does with files.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::client::{Client, ROOM, ROOT, longs, number, number32, op, text, words};
use crate::virtio::fs::{NOBODY, Owners};

/// Valid bits of SETATTR.
const MODE: u32 = 1;
const UID: u32 = 2;
const GID: u32 = 4;
const SIZE: u32 = 8;

#[test]
fn the_configuration_space_has_the_tag_and_one_queue_for_requests() {
    let client = Client::unmounted(false, Owners::Same);
    let mut space = [0xff; 44];
    client.guest.registers.read_config(0, &mut space);
    assert_eq!(&space[..4], b"src\0");
    assert_eq!(space[4..36], [0; 32]);
    assert_eq!(space[36..44], [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_mount_agrees_on_large_requests_and_not_on_writing_back_later() {
    let mut client = Client::unmounted(false, Owners::Same);
    let answer = client.init().unwrap();
    assert_eq!((number32(&answer, 0), answer.len()), (7, 64));
    assert_eq!(number32(&answer, 20), 1 << 20, "max_write");
    let flags = number32(&answer, 12);
    assert_eq!(flags & 1 << 16, 0, "WRITEBACK_CACHE");
    assert_eq!(flags & (1 << 13 | 1 << 5), 1 << 13 | 1 << 5, "DO_READDIRPLUS, BIG_WRITES");
}

#[test]
fn files_are_made_written_read_and_removed() {
    let mut client = Client::new();
    let (made, handle) = client.create(ROOT, "a", libc::O_RDWR, 0o666).unwrap();
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| ((i * 7) >> 3) as u8).collect();
    assert_eq!(client.write(made.node, handle, 0, &data), Ok(1 << 20));
    assert_eq!(client.write(made.node, handle, 1 << 20, b"end"), Ok(3));
    assert_eq!(std::fs::read(client.inside("a")).unwrap(), [&data[..], b"end"].concat());
    assert_eq!(
        std::fs::metadata(client.inside("a")).unwrap().mode() & 0o7777,
        0o666,
        "no mask of the host's"
    );
    assert!(client.read(made.node, handle, 0, 1 << 20).unwrap() == data);
    assert_eq!(client.read(made.node, handle, 1 << 20, 4096).unwrap(), b"end");
    assert_eq!(client.read(made.node, handle, 2 << 20, 4096).unwrap(), b"");
    assert_eq!(client.getattr(made.node).unwrap().size, (1 << 20) + 3);
    client.setattr(made.node, SIZE | MODE, 0o640, (0, 0), 3).unwrap();
    assert_eq!(client.read(made.node, handle, 0, 4096).unwrap(), data[..3]);
    client.release(made.node, handle).unwrap();
    assert_eq!(client.read(made.node, handle, 0, 1), Err(libc::EBADF));
    assert_eq!(client.getattr(made.node).unwrap().mode, libc::S_IFREG | 0o640);
    client.unlink(ROOT, "a").unwrap();
    assert!(!client.inside("a").exists());
    assert_eq!(client.lookup(ROOT, "a"), Err(libc::ENOENT));
}

#[test]
fn a_directory_of_many_is_listed_whole_either_way() {
    let mut client = Client::new();
    let names: Vec<String> = (0..300).map(|i| format!("file-{i:03}")).collect();
    for name in &names {
        client.file(name, name);
    }
    for plus in [false, true] {
        let listed = client.list(ROOT, plus).unwrap();
        assert!(listed.iter().map(|(name, _)| name).eq(&names));
        if plus {
            let (name, node) = &listed[77];
            let handle = client.open(*node, libc::O_RDONLY).unwrap();
            assert_eq!(client.read(*node, handle, 0, 100).unwrap(), name.as_bytes());
        }
    }
}

#[test]
fn a_directory_is_emptied_while_it_is_listed() {
    let mut client = Client::new();
    for number in 0..200 {
        client.file(&number.to_string(), "");
    }
    let handle = number(&client.call(op::OPENDIR, ROOT, &words(&[0, 0])).unwrap(), 0);
    let mut offset = 0;
    loop {
        let body = [longs(&[handle, offset]), words(&[4096, 0, 0, 0, 0, 0])].concat();
        let answer = client.call(op::READDIRPLUS, ROOT, &body).unwrap();
        let mut at = 128;
        while at < answer.len() {
            offset = number(&answer, at + 8);
            let len = number32(&answer, at + 16) as usize;
            client.unlink(ROOT, std::str::from_utf8(&answer[at + 24..at + 24 + len]).unwrap()).unwrap();
            at = (at + 24 + len).next_multiple_of(8) + 128;
        }
        if answer.is_empty() {
            break;
        }
    }
    assert_eq!(std::fs::read_dir(client.inside("")).unwrap().count(), 0);
}

#[test]
fn links_and_renames_are_the_hosts() {
    let mut client = Client::new();
    client.file("a", "text");
    let dir = client.mkdir(ROOT, "d").unwrap();
    let a = client.lookup(ROOT, "a").unwrap();
    let hard = client.link(a.node, dir.node, "hard").unwrap();
    assert_eq!((hard.node, hard.attributes.links), (a.node, 2), "it is the same file");
    assert_eq!(std::fs::read_to_string(client.inside("d/hard")).unwrap(), "text");
    let soft = client.symlink(ROOT, "soft", "d/hard").unwrap();
    assert_eq!(client.call(op::READLINK, soft.node, &[]).unwrap(), b"d/hard");
    assert_eq!(
        client.link(soft.node, ROOT, "soft2").unwrap().node,
        soft.node,
        "a link to a link is no link to the file"
    );
    client.rename((ROOT, "a"), (dir.node, "b")).unwrap();
    assert!(client.inside("d/b").exists() && !client.inside("a").exists());
    let exchange = [longs(&[dir.node]), words(&[libc::RENAME_EXCHANGE, 0]), text("soft"), text("b")].concat();
    client.call(op::RENAME2, ROOT, &exchange).unwrap();
    assert!(client.inside("d/b").is_symlink());
    let noreplace =
        [longs(&[dir.node]), words(&[libc::RENAME_NOREPLACE, 0]), text("soft"), text("b")].concat();
    assert_eq!(client.call(op::RENAME2, ROOT, &noreplace), Err(libc::EEXIST));
    assert_eq!(client.call(op::RMDIR, ROOT, &text("d")), Err(libc::ENOTEMPTY));
}

#[test]
fn pipes_and_sockets_are_made_and_devices_are_not() {
    let mut client = Client::new();
    for (name, kind, made) in [
        ("pipe", libc::S_IFIFO, Ok(())),
        ("socket", libc::S_IFSOCK, Ok(())),
        ("plain", libc::S_IFREG, Ok(())),
        ("disk", libc::S_IFBLK, Err(libc::EPERM)),
        ("null", libc::S_IFCHR, Err(libc::EPERM)),
    ] {
        let body = [words(&[kind | 0o666, 0x103, 0, 0]), text(name)].concat();
        assert_eq!(client.call(op::MKNOD, ROOT, &body).map(drop), made, "{name}");
    }
    assert!(std::fs::metadata(client.inside("pipe")).unwrap().file_type().is_fifo());
    // The guest's kernel opens pipes itself. One that asks the host for it is up to something.
    let pipe = client.lookup(ROOT, "pipe").unwrap();
    assert_eq!(client.open(pipe.node, libc::O_RDONLY), Err(libc::EBADF));
}

#[test]
fn space_is_made_and_holes_are_found() {
    let mut client = Client::new();
    let (made, handle) = client.create(ROOT, "a", libc::O_RDWR, 0o600).unwrap();
    client.write(made.node, handle, 1 << 20, b"data").unwrap();
    let seek = |whence| [longs(&[handle, 0]), words(&[whence, 0])].concat();
    let answer = client.call(op::LSEEK, made.node, &seek(libc::SEEK_DATA as u32)).unwrap();
    // A host's file system that knows of no holes has data everywhere.
    assert!([0, 1 << 20].contains(&number(&answer, 0)));
    assert_eq!(client.call(op::LSEEK, made.node, &seek(libc::SEEK_END as u32)), Err(libc::EINVAL));
    let body = [longs(&[handle, 0, 2 << 20]), words(&[0, 0])].concat();
    client.call(op::FALLOCATE, made.node, &body).unwrap();
    assert_eq!(client.getattr(made.node).unwrap().size, 2 << 20);
}

#[test]
fn attributes_of_users_are_kept_and_those_of_the_system_are_not() {
    let user = Owners::One { host: (rustix::process::geteuid().as_raw(), 0), guest: (0, 0) };
    let mut client = Client::with(false, user);
    client.file("a", "");
    let a = client.lookup(ROOT, "a").unwrap().node;
    let set =
        |name: &str, value: &[u8]| [words(&[value.len() as u32, 0]), text(name), value.to_vec()].concat();
    match client.call(op::SETXATTR, a, &set("user.colour", b"red")) {
        // Not every file system of a host has them.
        Err(libc::EOPNOTSUPP) => return,
        other => drop(other.unwrap()),
    }
    let get = |name: &str, size| [words(&[size, 0]), text(name)].concat();
    assert_eq!(client.call(op::GETXATTR, a, &get("user.colour", 100)).unwrap(), b"red");
    assert_eq!(number32(&client.call(op::GETXATTR, a, &get("user.colour", 0)).unwrap(), 0), 3);
    assert_eq!(client.call(op::LISTXATTR, a, &words(&[u32::MAX, 0])).unwrap(), b"user.colour\0");
    assert_eq!(client.call(op::LISTXATTR, a, &words(&[3, 0])), Err(libc::ERANGE));
    for name in ["security.capability", "trusted.x", "system.posix_acl_access", "security.selinux"] {
        assert_eq!(client.call(op::SETXATTR, a, &set(name, b"x")), Err(libc::EOPNOTSUPP), "{name}");
        assert_eq!(client.call(op::GETXATTR, a, &get(name, 100)), Err(libc::EOPNOTSUPP), "{name}");
    }
}

#[test]
fn a_users_files_are_roots_in_the_guest() {
    let host = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut client = Client::with(false, Owners::One { host, guest: (0, 7) });
    client.file("mine", "");
    let mine = client.lookup(ROOT, "mine").unwrap();
    assert_eq!(mine.attributes.owner, (0, 7));
    assert_eq!(client.setattr(mine.node, UID | GID, 0, (0, 7), 0), Ok(()), "nothing changes");
    assert_eq!(client.setattr(mine.node, UID, 0, (1000, 0), 0), Err(libc::EPERM));
    if host.0 == 0 {
        std::os::unix::fs::chown(client.inside("mine"), Some(4321), None).unwrap();
        assert_eq!(client.getattr(mine.node).unwrap().owner, (NOBODY, 7));
    }
    // A process of another user of the guest's: the file is the user's on the host all the same.
    let mut request = Client::request(op::MKDIR, ROOT, &[words(&[0o700, 0]), text("d")].concat());
    request[24..28].copy_from_slice(&1000_u32.to_le_bytes());
    let answer = client.send(1, &request, ROOM);
    Client::answer(&answer).unwrap();
    assert_eq!(std::fs::metadata(client.inside("d")).unwrap().uid(), host.0);
}

#[test]
fn nothing_is_changed_in_a_folder_that_is_read_only() {
    let mut client = Client::with(true, Owners::Same);
    client.file("a", "text");
    client.file("b", "text");
    std::fs::create_dir(client.inside("d")).unwrap();
    let a = client.lookup(ROOT, "a").unwrap().node;
    let rofs = Err(libc::EROFS);
    assert_eq!(client.open(a, libc::O_RDWR).map(drop), rofs);
    assert_eq!(client.open(a, libc::O_WRONLY).map(drop), rofs);
    assert_eq!(client.open(a, libc::O_RDONLY | libc::O_TRUNC).map(drop), rofs);
    assert_eq!(client.create(ROOT, "c", libc::O_RDWR, 0o666).map(drop), rofs);
    assert_eq!(client.mkdir(ROOT, "c").map(drop), rofs);
    assert_eq!(client.symlink(ROOT, "c", "a").map(drop), rofs);
    assert_eq!(client.link(a, ROOT, "c").map(drop), rofs);
    assert_eq!(client.rename((ROOT, "a"), (ROOT, "b")), rofs);
    assert_eq!(client.unlink(ROOT, "a"), rofs);
    assert_eq!(client.call(op::RMDIR, ROOT, &text("d")).map(drop), rofs);
    assert_eq!(client.setattr(a, MODE, 0o777, (0, 0), 0), rofs);
    assert_eq!(client.setattr(a, SIZE, 0, (0, 0), 0), rofs);
    let body = [words(&[libc::S_IFREG | 0o666, 0, 0, 0]), text("c")].concat();
    assert_eq!(client.call(op::MKNOD, ROOT, &body).map(drop), rofs);
    let body = [words(&[1, 0]), text("user.x"), b"y".to_vec()].concat();
    assert_eq!(client.call(op::SETXATTR, a, &body).map(drop), rofs);
    let handle = client.open(a, libc::O_RDONLY).unwrap();
    // The library changes the flags of an open file to those of a request: not these.
    assert_eq!(client.write(a, handle, 0, b"x").map(drop), rofs);
    let body = [longs(&[handle, 0, 9]), words(&[0, 0])].concat();
    assert_eq!(client.call(op::FALLOCATE, a, &body).map(drop), rofs);
    assert_eq!(client.read(a, handle, 0, 9).unwrap(), b"text");
    let names: Vec<_> =
        std::fs::read_dir(client.inside("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn a_file_that_was_removed_stays_open() {
    let mut client = Client::new();
    let (made, handle) = client.create(ROOT, "a", libc::O_RDWR, 0o600).unwrap();
    client.unlink(ROOT, "a").unwrap();
    client.write(made.node, handle, 0, b"still here").unwrap();
    assert_eq!(client.read(made.node, handle, 0, 100).unwrap(), b"still here");
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(client.inside(""), mode).unwrap();
    assert_eq!(client.getattr(made.node).unwrap().links, 0);
}

#[test]
fn a_mount_ends_and_another_begins() {
    let mut client = Client::new();
    client.file("a", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    assert_eq!(client.call(op::DESTROY, 0, &[]).unwrap(), b"");
    assert_eq!(client.getattr(ROOT), Err(libc::EIO));
    client.init().unwrap();
    assert_eq!(client.getattr(a), Err(libc::ESTALE), "what was looked up is of another mount");
    assert!(client.lookup(ROOT, "a").is_ok());
    assert!(client.call(op::STATFS, ROOT, &[]).is_ok());
}
