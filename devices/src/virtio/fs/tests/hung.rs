//! A host that does not answer.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::client::{Client, ROOM, ROOT, op, words};
use crate::virtio::testing::eventually;

/// Which signal says that somebody waits (fcntl(2)); the libc crate does not have it.
const F_SETSIG: libc::c_int = 10;

/// Has a file for itself: the kernel keeps whoever opens it waiting until that is given up, for up to /proc/sys/fs/lease-break-time.
fn lease(path: &Path) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    // SAFETY: fcntl(2) with numbers on a descriptor that is open. The signal is one that does nothing.
    let leased = unsafe {
        libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG) == 0
            && libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
    };
    assert!(leased, "no lease: {}", std::io::Error::last_os_error());
    file
}

#[test]
fn the_end_of_a_vm_does_not_wait_for_it() {
    let mut client = Client::new();
    let path = client.file("a", "text");
    let a = client.lookup(ROOT, "a").unwrap().node;
    let leased = lease(&path);
    let buffers = client.put(&Client::request(op::OPEN, a, &words(&[libc::O_RDONLY as u32, 0])), ROOM);
    let Client { guest, mut queues, .. } = client;
    queues[1].add(&buffers);
    guest.registers.notify(1);
    // SAFETY: as above.
    let is_asked_for = || unsafe { libc::fcntl(leased.as_raw_fd(), libc::F_GETLEASE) } != libc::F_WRLCK;
    assert!(eventually(is_asked_for), "the request has begun");
    drop(guest);
    assert_eq!(queues[1].take_used(), None, "it waits still");
}
