//! A guest whose requests are not what they say.

use proptest::prelude::*;

use super::client::{ANSWER, Client, REQUEST, ROOM, ROOT, longs, number32, op, text, words};
use crate::virtio::fs::Owners;
use crate::virtio::testing::Buf;
use crate::virtio::transport::TransportState;

/// The device still works.
fn works(client: &mut Client) {
    assert!(!client.guest.broken());
    client.file("works", "works");
    let found = client.lookup(ROOT, "works").unwrap().node;
    let handle = client.open(found, libc::O_RDWR).unwrap();
    assert_eq!(client.read(found, handle, 0, 100).unwrap(), b"works");
    client.release(found, handle).unwrap();
    client.forget(found, 1);
}

#[test]
fn nothing_is_done_before_a_mount_begins() {
    let mut client = Client::unmounted(false, Owners::Same);
    client.file("a", "text");
    for opcode in 0..60 {
        if opcode != op::INIT {
            client.send(1, &Client::request(opcode, ROOT, &[0; 200]), ROOM);
        }
    }
    assert_eq!(client.lookup(ROOT, "a").map(drop), Err(libc::EIO));
    client.init().unwrap();
    works(&mut client);
}

#[test]
fn a_length_that_lies_is_refused() {
    let mut client = Client::new();
    client.file("a", "text");
    let request = Client::request(op::LOOKUP, ROOT, &text("a"));
    for len in [0, 1, 39, 43, 4096, 1 << 20, u32::MAX] {
        let mut request = request.clone();
        request[..4].copy_from_slice(&len.to_le_bytes());
        let answer = client.send(1, &request, ROOM);
        assert_eq!(Client::answer(&answer), Err(libc::EINVAL), "{len}");
    }
    // Less than there is: the name lacks its end.
    let mut short = request.clone();
    short[..4].copy_from_slice(&41_u32.to_le_bytes());
    assert!(Client::answer(&client.send(1, &short, ROOM)).is_err());
    for cut in 1..40 {
        let answer = client.send(1, &request[..cut], ROOM);
        assert_eq!(number32(&answer, 4) as i32, -libc::EIO, "{cut} bytes");
    }
    works(&mut client);
}

/// How the host has the file at `path` open, each time: the flags in octal.
fn held(path: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = entries.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link == path));
    open.map(|entry| {
        let info = std::path::Path::new("/proc/self/fdinfo").join(entry.file_name());
        let info = std::fs::read_to_string(info).unwrap_or_default();
        info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default().trim().to_owned()
    })
    .collect()
}

#[test]
fn what_is_there_and_cannot_be_opened_costs_no_descriptor() {
    let mut client = Client::new();
    let pipe = client.inside("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    for _ in 0..3 {
        assert!(client.create(ROOT, "pipe", libc::O_RDWR, 0o600).is_err());
    }
    assert_eq!(held(&pipe), [""; 0]);
    // What can be is opened, unless the guest wanted to make it.
    client.file("old", "text");
    let (found, handle) = client.create(ROOT, "old", libc::O_RDWR, 0o600).unwrap();
    assert_eq!(client.read(found.node, handle, 0, 100).unwrap(), b"text");
    let exclusive = client.create(ROOT, "old", libc::O_RDWR | libc::O_EXCL, 0o600);
    assert_eq!(exclusive.map(drop), Err(libc::EEXIST));
    works(&mut client);
}

#[test]
fn a_file_stays_open_as_it_was_opened() {
    let mut client = Client::new();
    let path = client.file("a", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    let handle = client.open(a, libc::O_RDWR).unwrap();
    let before = held(&path);
    let flags = (libc::O_RDWR | libc::O_APPEND | libc::O_DIRECT) as u32;
    let body = [longs(&[handle, 0]), words(&[100, 0]), longs(&[0]), words(&[flags, 0])].concat();
    assert_eq!(client.call(op::READ, a, &body).unwrap(), b"text");
    assert_eq!((held(&path), before.len()), (before, 2), "the node and the open file");
}

#[test]
fn a_request_that_is_longer_than_any_is_refused() {
    let mut client = Client::new();
    client.file("a", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    let handle = client.open(a, libc::O_RDWR).unwrap();
    // An ioctl with so many bytes behind it (struct fuse_ioctl_in).
    let len = (1 << 20) + 4096;
    let body =
        [longs(&[handle]), words(&[0, 1]), longs(&[0]), words(&[len, 0]), vec![0; len as usize]].concat();
    assert_eq!(client.call(39, a, &body), Err(libc::EIO));
    works(&mut client);
}

#[test]
fn room_that_is_too_small_is_not_written_beyond() {
    let mut client = Client::new();
    client.file("a", "text");
    for room in [0, 1, 15, 16, 17, 100, 143] {
        client.guest.ram_fill(ANSWER, 200);
        let answer = client.send(1, &Client::request(op::LOOKUP, ROOT, &text("a")), room);
        assert!(answer.len() == 16 || answer.is_empty(), "{room}: {answer:?}");
        assert_eq!(client.guest.get(ANSWER + u64::from(room), 8), [0xaa; 8], "{room}");
    }
    works(&mut client);
}

#[test]
fn sizes_of_gigabytes_are_cut_to_what_there_is() {
    let mut client = Client::new();
    client.file("a", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    let handle = client.open(a, libc::O_RDWR).unwrap();
    let read = [longs(&[handle, 0]), words(&[u32::MAX, 0, 0, 0, 0, 0])].concat();
    assert_eq!(client.call(op::READ, a, &read).unwrap_or_default().get(..4).unwrap_or(b"text"), b"text");
    // A write of 4 GiB that has 3 bytes.
    let write = [longs(&[handle, 0]), words(&[u32::MAX, 0, 0, 0, 0, 0]), b"abc".to_vec()].concat();
    let _ = client.call(op::WRITE, a, &write);
    assert!(std::fs::metadata(client.inside("a")).unwrap().len() <= 4);
    // Far out, and beyond what a file can have.
    for offset in [u64::MAX, 1 << 63, i64::MAX as u64] {
        let _ = client.read(a, handle, offset, 4096);
        assert!(client.write(a, handle, offset, b"x").is_err(), "{offset:#x}");
    }
    let dir = super::client::number(&client.call(op::OPENDIR, ROOT, &words(&[0, 0])).unwrap(), 0);
    for size in [u32::MAX, ROOM, 1 << 20, 1, 0] {
        for opcode in [op::READDIR, op::READDIRPLUS] {
            let list = [longs(&[dir, 0]), words(&[size, 0, 0, 0, 0, 0])].concat();
            let _ = client.call(opcode, ROOT, &list);
            let list = [longs(&[dir, u64::MAX]), words(&[size, 0, 0, 0, 0, 0])].concat();
            let _ = client.call(opcode, ROOT, &list);
        }
    }
    for size in [u32::MAX, 0, 1] {
        let _ = client.call(op::LISTXATTR, a, &words(&[size, 0]));
        let _ = client.call(op::GETXATTR, a, &[words(&[size, 0]), text("user.x")].concat());
        let body = [words(&[size, 0]), text("user.x"), b"value".to_vec()].concat();
        assert!(client.call(op::SETXATTR, a, &body).is_err(), "{size}");
    }
    works(&mut client);
}

#[test]
fn who_forgets_too_much_forgets_nothing_else() {
    let mut client = Client::new();
    client.file("a", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    client.lookup(ROOT, "a").unwrap();
    client.forget(a, 1);
    assert!(client.getattr(a).is_ok(), "it was looked up twice");
    client.forget(a, u64::MAX);
    assert_eq!(client.getattr(a), Err(libc::ESTALE));
    client.forget(a, 1);
    client.forget(ROOT, u64::MAX);
    client.forget(0, 1);
    client.forget(u64::MAX, 1);
    // Many at once: more than there are, and more than there can be.
    let a = client.lookup(ROOT, "a").unwrap().node;
    for (count, nodes) in [(1, vec![a, 5]), (u32::MAX, vec![a, 5]), (70_000, vec![])] {
        let request = Client::request(42, 0, &[words(&[count, 0]), longs(&nodes)].concat());
        assert!(client.send(0, &request, 0).is_empty());
    }
    works(&mut client);
}

#[test]
fn a_large_tree_costs_few_descriptors() {
    let mut client = Client::few();
    let names: Vec<String> = (0..2000).map(|i| format!("file-{i:04}")).collect();
    for name in &names {
        client.file(name, name);
    }
    let nodes = client.list(ROOT, true).unwrap();
    assert_eq!(nodes.len(), names.len());
    let mine = client.inside("").canonicalize().unwrap();
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let open = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    let open = open.filter(|path| path.starts_with(&mine)).count();
    assert!(open < 400, "{open} descriptors");
    // All of them are there.
    for (name, node) in nodes.iter().rev().step_by(7) {
        let handle = client.open(*node, libc::O_RDONLY).unwrap();
        assert_eq!(client.read(*node, handle, 0, 100).unwrap(), name.as_bytes());
        client.release(*node, handle).unwrap();
        client.forget(*node, 1);
        assert_eq!(client.getattr(*node), Err(libc::ESTALE));
    }
    assert!(!client.guest.broken());
}

#[test]
fn what_is_held_open_is_bounded() {
    let mut client = Client::new();
    client.file("a", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    // At most as many as descriptors that this process can have.
    let mut open = Vec::new();
    let error = (0..2_000_000).find_map(|_| match client.open(a, libc::O_RDONLY) {
        Ok(handle) => {
            open.push(handle);
            (open.len() == 20_000).then_some(0)
        }
        Err(error) => Some(error),
    });
    assert!(matches!(error, Some(0 | libc::ENFILE)), "{error:?} after {}", open.len());
    for handle in open {
        client.release(a, handle).unwrap();
    }
    works(&mut client);
}

#[test]
fn requests_that_nobody_knows_are_told_so() {
    let mut client = Client::new();
    for opcode in [0, 7, 19, 47, 50, 51, 52, 4096, u32::MAX] {
        let answer = client.send(1, &Client::request(opcode, ROOT, &[0; 64]), ROOM);
        assert!(Client::answer(&answer).is_err(), "{opcode}");
    }
    // There is no window to map files into.
    assert!(client.call(op::SETUPMAPPING, ROOT, &[0; 48]).is_err());
    works(&mut client);
}

#[test]
fn an_answer_into_the_request_itself_harms_nobody_else() {
    let mut client = Client::new();
    client.file("a", "text");
    let request = Client::request(op::LOOKUP, ROOT, &text("a"));
    use vm_memory::{Bytes, GuestAddress};
    client.guest.ram.write_slice(&request, GuestAddress(REQUEST)).unwrap();
    let buffers = [Buf::readable(REQUEST, request.len() as u32), Buf::writable(REQUEST, 4096)];
    assert_eq!(client.guest.request(&mut client.queues[1], &buffers), 144);
    works(&mut client);
}

/// A request that has something of one.
fn requests() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300),
        (0..20_u64, 0..20_u64, any::<u32>(), "[a-c./\0]{0,12}")
            .prop_map(|(a, b, c, name)| { [longs(&[a, b]), words(&[c, 0]), text(&name)].concat() }),
        ("[a-c./]{0,4}", "[a-c./]{0,4}").prop_map(|(a, b)| [text(&a), text(&b)].concat()),
    ];
    (0..54_u32, 0..9_u64, body).prop_map(|(opcode, node, body)| Client::request(opcode, node, &body))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever is asked: what is not shared stays as it is, and the device goes on.
    #[test]
    fn no_request_does_harm(requests in proptest::collection::vec(requests(), 1..60)) {
        let mut client = Client::new();
        client.file("a", "text");
        std::fs::create_dir(client.inside("b")).unwrap();
        std::os::unix::fs::symlink("../../secret", client.inside("b/c")).unwrap();
        for request in &requests {
            client.send(1, request, ROOM);
        }
        client.init().unwrap();
        works(&mut client);
        prop_assert_eq!(std::fs::read_to_string(client.outside("secret")).unwrap(), "secret");
        prop_assert_eq!(std::fs::read_dir(client.outside("")).unwrap().count(), 2);
        let state: TransportState = client.save();
        client.restore(&state);
        works(&mut client);
    }
}
