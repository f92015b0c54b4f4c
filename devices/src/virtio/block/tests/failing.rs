//! A host that says no is the guest's error, not the VM's end.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, SealFlags};

use super::*;

/// A disk in memory, which can be sealed.
fn in_memory() -> (File, DiskOptions) {
    let memory = rustix::fs::memfd_create("disk", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    let memory = File::from(memory);
    memory.set_len(SIZE as u64).unwrap();
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd()).into();
    (memory, DiskOptions { path, readonly: false, direct: false })
}

#[test]
fn a_host_that_takes_no_more_is_an_error_of_each_write() {
    for engine in [EngineKind::Auto, EngineKind::Plain] {
        let (memory, disk) = in_memory();
        let options = BlockOptions { engine, ..BlockOptions::default() };
        let mut machine = Machine::new(disk, NamedTempFile::new().unwrap(), options);
        assert_eq!(machine.run(1, 0, Some((DATA, 4096, 0))), (0, 1));
        // What a full file system is to its last block, this is to all of them.
        rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE).unwrap();
        for _ in 0..3 {
            assert_eq!(machine.run(1, 8, Some((DATA, 4096, 0))), (1, 1));
            assert_eq!(machine.run(0, 8, Some((DATA, 4096, WRITE))), (0, 4097));
        }
        let counters = &machine.block.counters;
        assert_eq!((counters.requests.get(), counters.errors.get()), (7, 3));
        assert_eq!((counters.to_guest.get(), counters.from_guest.get()), (3 * 4096, 4096));
        assert_eq!(machine.status.load(Ordering::SeqCst), 0, "the device goes on");
    }
}
