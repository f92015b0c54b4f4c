//! A disk that is made larger under its driver.

use super::*;
use crate::disk::DiskError;

impl Machine {
    /// As the configuration space says, in sectors.
    fn capacity(&self) -> u64 {
        let mut field = [0; 8];
        self.block.read_config(0, &mut field);
        u64::from_le_bytes(field)
    }

    /// How often the guest was told that it changed.
    fn told(&self) -> u64 {
        self.signal.config.load(Ordering::SeqCst)
    }
}

const OLD_END: u64 = SIZE as u64 / 512;

#[test]
fn the_guest_is_told_and_can_use_what_is_new() {
    everywhere(|mut machine| {
        let resizer = machine.block.resizer();
        machine.put(&pattern(3, 4096));
        assert_eq!(machine.run(1, OLD_END, Some((DATA, 4096, 0))).0, 1, "beyond the end");
        resizer.resize(2 * SIZE as u64).unwrap();
        assert_eq!((machine.capacity(), machine.told()), (2 * OLD_END, 1));
        assert_eq!(machine.run(1, OLD_END, Some((DATA, 4096, 0))).0, 0);
        assert_eq!(machine.run(0, 2 * OLD_END - 8, Some((DATA, 4096, WRITE))).0, 0);
        assert_eq!(machine.run(0, 2 * OLD_END - 7, Some((DATA, 4096, WRITE))).0, 1);
        let content = machine.disk.content();
        assert_eq!(content.len(), 2 * SIZE);
        assert!(content[SIZE..SIZE + 4096] == pattern(3, 4096));
        resizer.resize(2 * SIZE as u64).unwrap();
        assert_eq!(machine.told(), 1, "nothing has changed");
    });
}

#[test]
fn a_driver_that_is_not_there_is_told_when_it_is() {
    everywhere(|mut machine| {
        let resizer = machine.block.resizer();
        let queues = machine.block.stop();
        resizer.resize(SIZE as u64 + 512).unwrap();
        assert_eq!((machine.capacity(), machine.told()), (OLD_END + 1, 0));
        machine.resume(queues, u64::MAX);
        assert_eq!(machine.told(), 1);
        assert_eq!(machine.run(0, OLD_END, Some((DATA, 512, WRITE))).0, 0);
        let queues = machine.block.stop();
        machine.resume(queues, u64::MAX);
        assert_eq!(machine.told(), 1, "once is enough");
    });
}

#[test]
fn a_disk_that_cannot_grow_so_stays_as_it_is() {
    everywhere(|machine| {
        let error = machine.block.resizer().resize(SIZE as u64 - 512).unwrap_err();
        assert!(matches!(error, DiskError::Shrink { .. }));
        assert_eq!((machine.capacity(), machine.told()), (OLD_END, 0));
    });
}
