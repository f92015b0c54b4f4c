//! A mount that goes on in another life.

use super::client::{Client, ROOT, number, op, words};
use crate::virtio::fs::FsState;
use crate::virtio::state::DeviceState;

#[test]
fn files_are_found_again_by_name_and_number() {
    let mut client = Client::new();
    std::fs::create_dir_all(client.inside("d/e")).unwrap();
    client.file("d/e/a", "text");
    client.file("gone", "text");
    client.file("other", "text");
    let a = client.find("d/e/a").unwrap().node;
    let dir = client.find("d").unwrap().node;
    let gone = client.find("gone").unwrap().node;
    let other = client.find("other").unwrap().node;
    let handle = client.open(a, libc::O_RDWR | libc::O_TRUNC).unwrap();
    client.write(a, handle, 0, b"written").unwrap();
    let listing = number(&client.call(op::OPENDIR, dir, &words(&[0, 0])).unwrap(), 0);
    let gone_handle = client.open(gone, libc::O_RDONLY).unwrap();

    let state = client.save();
    std::fs::remove_file(client.inside("gone")).unwrap();
    // Another file under the same name.
    std::fs::rename(client.inside("other"), client.inside("kept")).unwrap();
    client.file("other", "new");
    client.restore(&state);

    assert_eq!(client.read(a, handle, 0, 100).unwrap(), b"written", "it is not cut off again");
    assert_eq!(client.write(a, handle, 7, b" more"), Ok(5));
    assert_eq!(client.lookup(dir, "e").map(drop), Ok(()));
    let list = [super::client::longs(&[listing, 0]), words(&[4096, 0, 0, 0, 0, 0])].concat();
    assert!(!client.call(op::READDIRPLUS, dir, &list).unwrap().is_empty());
    assert_eq!(client.getattr(gone), Err(libc::ESTALE));
    assert_eq!(client.read(gone, gone_handle, 0, 1), Err(libc::ESTALE));
    assert_eq!(client.getattr(other), Err(libc::ESTALE), "what has its name is another file");
    let new = client.lookup(ROOT, "other").unwrap().node;
    assert!(new > a.max(other), "no number is used twice");
    client.release(a, handle).unwrap();
    client.release(gone, gone_handle).unwrap();
    for node in [a, dir, gone, other] {
        client.forget(node, 9);
        assert_eq!(client.getattr(node), Err(libc::ESTALE));
    }
}

#[test]
fn what_nobody_used_in_between_is_saved_again_as_it_was() {
    let mut client = Client::new();
    client.file("a", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    let state = client.save();
    client.restore(&state);
    let again = client.save();
    assert_eq!(again.device, state.device);
    client.restore(&again);
    assert_eq!(client.getattr(a).unwrap().size, 4);
    assert_eq!(client.save().device, state.device, "used or not");
}

#[test]
fn a_mount_that_is_none_has_no_state() {
    let mut client = Client::new();
    client.call(op::DESTROY, 0, &[]).unwrap();
    let state = client.save();
    assert_eq!(state.device, DeviceState::Fs(FsState { session: None }));
    client.restore(&state);
    assert_eq!(client.getattr(ROOT), Err(libc::EIO));
    client.init().unwrap();
    assert!(client.getattr(ROOT).is_ok());
}

#[test]
fn a_reset_ends_the_mount() {
    let mut client = Client::new();
    client.file("a", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    client.queues = client.guest.start(u64::MAX);
    assert_eq!(client.getattr(a), Err(libc::EIO));
}
