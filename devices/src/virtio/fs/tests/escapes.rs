//! A guest that wants out of the folder, with requests that no kernel would send, and a host that moves things about.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::client::{Client, ROOT, longs, op, text, words};

#[test]
fn a_name_is_a_name_and_no_path() {
    let mut client = Client::new();
    let dir = client.mkdir(ROOT, "d").unwrap().node;
    client.file("a", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    let long = "x".repeat(256);
    let longer = "x".repeat(5000);
    let names = [
        ("..", libc::EINVAL),
        (".", libc::EINVAL),
        ("", libc::ENOENT),
        ("../secret", libc::EINVAL),
        ("d/../../secret", libc::EINVAL),
        ("/etc/passwd", libc::EINVAL),
        ("d/", libc::EINVAL),
        (&long, libc::ENAMETOOLONG),
        (&longer, libc::ENAMETOOLONG),
    ];
    for parent in [ROOT, dir] {
        for (name, error) in names {
            assert_eq!(client.lookup(parent, name).map(drop), Err(error), "lookup {name:?}");
            assert_eq!(
                client.create(parent, name, libc::O_RDWR, 0o666).map(drop),
                Err(error),
                "create {name:?}"
            );
            assert_eq!(client.mkdir(parent, name).map(drop), Err(error), "mkdir {name:?}");
            assert_eq!(client.unlink(parent, name), Err(error), "unlink {name:?}");
            assert_eq!(client.call(op::RMDIR, parent, &text(name)), Err(error), "rmdir {name:?}");
            assert_eq!(client.symlink(parent, name, "x").map(drop), Err(error), "symlink {name:?}");
            assert_eq!(client.link(a, parent, name).map(drop), Err(error), "link {name:?}");
            assert_eq!(client.rename((ROOT, "a"), (parent, name)), Err(error), "rename to {name:?}");
            assert_eq!(client.rename((parent, name), (ROOT, "b")), Err(error), "rename from {name:?}");
            let body = [words(&[libc::S_IFREG | 0o666, 0, 0, 0]), text(name)].concat();
            assert_eq!(client.call(op::MKNOD, parent, &body), Err(error), "mknod {name:?}");
        }
    }
    assert_eq!(std::fs::read_to_string(client.outside("secret")).unwrap(), "secret");
    assert_eq!(std::fs::read_dir(client.outside("")).unwrap().count(), 2, "nothing else is there");
}

#[test]
fn a_name_ends_at_its_first_zero() {
    let mut client = Client::new();
    client.file("a", "");
    let body = b"a\0/../../secret\0";
    let answer = client.call(op::LOOKUP, ROOT, body).unwrap();
    assert_eq!(answer.len(), 128, "that is a");
    assert!(client.call(op::LOOKUP, ROOT, b"a").is_err(), "no end");
    assert!(client.call(op::LOOKUP, ROOT, b"").is_err());
    assert!(client.call(op::RENAME, ROOT, &[longs(&[ROOT]), text("a")].concat()).is_err(), "one name of two");
}

#[test]
fn a_symbolic_link_leads_the_guest_and_not_the_host() {
    let mut client = Client::new();
    symlink("../secret", client.inside("out")).unwrap();
    symlink("..", client.inside("up")).unwrap();
    let made = client.symlink(ROOT, "made", "/etc/passwd").unwrap().node;
    for (name, target) in [("out", "../secret"), ("up", ".."), ("made", "/etc/passwd")] {
        let found = client.lookup(ROOT, name).unwrap();
        assert_eq!(found.attributes.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(client.call(op::READLINK, found.node, &[]).unwrap(), target.as_bytes());
        assert!(client.open(found.node, libc::O_RDONLY).is_err(), "{name}");
        assert!(client.call(op::OPENDIR, found.node, &words(&[0, 0])).is_err(), "{name}");
        assert_eq!(client.lookup(found.node, "secret").map(drop), Err(libc::ENOTDIR), "{name}");
        assert!(client.create(ROOT, name, libc::O_RDWR | libc::O_TRUNC, 0o666).is_err(), "{name}");
        // Truncate, mode and attributes are of the link itself, which has none.
        assert!(client.setattr(found.node, 8, 0, (0, 0), 0).is_err(), "{name}");
        assert!(client.setattr(found.node, 1, 0o777, (0, 0), 0).is_err(), "{name}");
    }
    assert_eq!(std::fs::read_to_string(client.outside("secret")).unwrap(), "secret");
    // Nor when the name becomes a link between looking and opening.
    let a = client.file("a", "mine");
    let node = client.lookup(ROOT, "a").unwrap().node;
    std::fs::remove_file(&a).unwrap();
    symlink("../secret", &a).unwrap();
    let handle = client.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(node, handle, 0, 100).unwrap(), b"mine");
    let _ = made;
}

#[test]
fn a_directory_that_was_moved_out_leads_nowhere() {
    let mut client = Client::new();
    let dir = client.mkdir(ROOT, "d").unwrap().node;
    client.file("d/known", "text");
    client.file("a", "text");
    let known = client.lookup(dir, "known").unwrap().node;
    let a = client.lookup(ROOT, "a").unwrap().node;
    let handle = client.call(op::OPENDIR, dir, &words(&[0, 0])).unwrap();
    std::fs::rename(client.inside("d"), client.outside("d")).unwrap();
    std::fs::write(client.outside("d/new"), "secret").unwrap();
    let stale = Err(libc::ESTALE);
    assert_eq!(client.lookup(dir, "new").map(drop), stale);
    assert_eq!(client.lookup(dir, "known").map(drop), stale);
    assert_eq!(client.create(dir, "made", libc::O_RDWR, 0o666).map(drop), stale);
    assert_eq!(client.mkdir(dir, "made").map(drop), stale);
    assert_eq!(client.link(a, dir, "made").map(drop), stale);
    assert_eq!(client.rename((ROOT, "a"), (dir, "made")), stale);
    assert_eq!(client.rename((dir, "known"), (ROOT, "stolen")), stale);
    assert_eq!(client.unlink(dir, "known"), stale);
    let body = [handle[..8].to_vec(), longs(&[0]), words(&[4096, 0, 0, 0, 0, 0])].concat();
    assert_eq!(client.call(op::READDIRPLUS, dir, &body).map(drop), stale);
    assert_eq!(client.call(op::OPENDIR, dir, &words(&[0, 0])).map(drop), stale);
    // To give what was moved out another name inside would bring it back.
    assert_eq!(client.link(known, ROOT, "stolen").map(drop), stale);
    assert_eq!(std::fs::read_dir(client.outside("d")).unwrap().count(), 2);
    // It comes back when it is moved back.
    std::fs::rename(client.outside("d"), client.inside("e")).unwrap();
    assert!(client.lookup(dir, "new").is_ok());
}

#[test]
fn the_folder_itself_may_be_moved() {
    let mut client = Client::new();
    client.file("a", "text");
    let dir = client.mkdir(ROOT, "d").unwrap().node;
    std::fs::rename(client.outside("share"), client.outside("elsewhere")).unwrap();
    std::fs::create_dir(client.outside("share")).unwrap();
    assert!(client.lookup(ROOT, "a").is_ok(), "it is the folder that was shared, not its name");
    assert!(client.mkdir(dir, "e").is_ok());
    assert!(client.outside("elsewhere/d/e").exists());
}

#[test]
fn a_guest_that_walks_while_the_host_moves_never_arrives_outside() {
    let mut client = Client::new();
    std::fs::create_dir_all(client.inside("a/b")).unwrap();
    std::fs::write(client.inside("a/b/name"), "mine").unwrap();
    std::fs::create_dir_all(client.outside("other/b")).unwrap();
    std::fs::write(client.outside("other/b/name"), "secret").unwrap();
    let (inside, outside) = (client.inside("a"), client.outside("other"));
    let (kept, link) = (client.outside("kept"), client.inside("a"));
    let done = Arc::new(AtomicBool::new(false));
    let mover = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            while !done.load(Ordering::Relaxed) {
                // Out of the folder, a link to the outside in its place, and back.
                std::fs::rename(&inside, &kept).unwrap();
                symlink(&outside, &link).unwrap();
                std::fs::remove_file(&link).unwrap();
                std::fs::rename(&kept, &inside).unwrap();
            }
        }
    });
    let mut read = 0;
    for _ in 0..2000 {
        let Ok(found) = client.find("a/b/name") else { continue };
        let Ok(handle) = client.open(found.node, libc::O_RDONLY) else { continue };
        assert_eq!(client.read(found.node, handle, 0, 100).unwrap(), b"mine");
        client.release(found.node, handle).unwrap();
        read += 1;
    }
    done.store(true, Ordering::Relaxed);
    mover.join().unwrap();
    let found = client.find("a/b/name").unwrap();
    let handle = client.open(found.node, libc::O_RDONLY).unwrap();
    assert_eq!(client.read(found.node, handle, 0, 100).unwrap(), b"mine", "after {read} others");
}

#[test]
fn numbers_that_were_not_given_mean_nothing() {
    let mut client = Client::new();
    client.file("a", "text");
    client.file("b", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    let b = client.lookup(ROOT, "b").unwrap().node;
    let handle = client.open(a, libc::O_RDWR).unwrap();
    for forged in [0, a + 100, u64::MAX, 1 << 47 | 2] {
        assert_eq!(client.getattr(forged), Err(libc::ESTALE), "{forged:#x}");
        assert_eq!(client.lookup(forged, "a").map(drop), Err(libc::ESTALE), "{forged:#x}");
        assert_eq!(client.open(forged, 0), Err(libc::ESTALE), "{forged:#x}");
        assert_eq!(client.read(a, forged, 0, 4), Err(libc::EBADF), "{forged:#x}");
    }
    assert_eq!(client.read(b, handle, 0, 4), Err(libc::EBADF), "an open file of another node");
    assert_eq!(client.release(b, handle), Err(libc::EBADF));
    let list = [longs(&[handle, 0]), words(&[4096, 0, 0, 0, 0, 0])].concat();
    assert_eq!(client.call(op::READDIR, a, &list), Err(libc::ENOTDIR));
    assert_eq!(client.call(op::READDIR, ROOT, &list), Err(libc::EBADF));
    let dir = client.call(op::OPENDIR, ROOT, &words(&[0, 0])).unwrap();
    let dir = super::client::number(&dir, 0);
    assert_eq!(client.read(ROOT, dir, 0, 4), Err(libc::EBADF), "a directory is not read as a file");
    assert_eq!(client.read(a, handle, 0, 4).unwrap(), b"text");
}
