//! A disk that is written for ever, and what must be on it whatever happens to the machine.
//!
//! Record `n` is a block of pages at `n % slots`; the first sector counts the records that are complete. Each step is flushed
//! before the next. So a machine that boots after its power was cut finds every record that was counted, and one
//! that is put back to an instant finds the count that it has in memory. The slot behind the count may be half written.

use alloc::string::String;
use alloc::vec;

use rt::entropy::Random;
use rt::memory::Machine;
use rt::println;
use rt::virtio::find;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::{DeviceType, SomeTransport};

use crate::block::text;
use crate::{Outcome, check};

const SECTORS: usize = 8;
const BLOCK: usize = SECTORS * 512;
/// Behind the count.
const FIRST: usize = SECTORS;
/// Says that the first sector is one of ours.
const MAGIC: u64 = 0x6a6f_7572_6e61_6c00;
/// How often the host is told.
const TELL: u64 = 8;

type Disk = VirtIOBlk<Machine, SomeTransport<'static>>;

struct Journal {
    disk: Disk,
    slots: u64,
    count: u64,
    random: Random,
}

fn record(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    Random(number).fill(&mut block);
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

impl Journal {
    fn open() -> Result<Self, String> {
        let disks = find(DeviceType::Block);
        check!(!disks.is_empty(), "no disk");
        let disk = Disk::new(disks[0].transport()).map_err(text)?;
        let slots = disk.capacity() / SECTORS as u64 - 1;
        check!(slots > 1, "the disk is too small");
        let mut journal = Self { disk, slots, count: 0, random: Random(0x10a5) };
        journal.count = journal.counted()?;
        Ok(journal)
    }

    /// What the disk says.
    fn counted(&mut self) -> Result<u64, String> {
        let mut sector = [0; 512];
        self.disk.read_blocks(0, &mut sector).map_err(text)?;
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&sector[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        match (word(0), word(8), word(16)) {
            (0, 0, 0) => Ok(0),
            (MAGIC, count, check) if check == !count => Ok(count),
            other => Err(alloc::format!("the first sector is {other:x?}")),
        }
    }

    fn place(&self, number: u64) -> usize {
        FIRST + SECTORS * (number % self.slots) as usize
    }

    /// The oldest record that must be there.
    fn oldest(&self) -> u64 {
        (self.count + 1).saturating_sub(self.slots)
    }

    fn check(&mut self, number: u64) -> Outcome {
        let mut seen = vec![0; BLOCK];
        self.disk.read_blocks(self.place(number), &mut seen).map_err(text)?;
        let found = seen[..8].iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
        check!(seen == record(number), "record {number} of {} begins with {found:#x}", self.count);
        Ok(())
    }

    /// One record more.
    fn append(&mut self) -> Outcome {
        let number = self.count;
        self.disk.write_blocks(self.place(number), &record(number)).map_err(text)?;
        self.disk.flush().map_err(text)?;
        let mut sector = [0; 512];
        let words = [MAGIC, number + 1, !(number + 1)];
        for (at, word) in words.iter().enumerate() {
            sector[8 * at..8 * at + 8].copy_from_slice(&word.to_le_bytes());
        }
        self.disk.write_blocks(0, &sector).map_err(text)?;
        self.disk.flush().map_err(text)?;
        self.count = number + 1;
        Ok(())
    }
}

/// Check all of it, then go on for ever.
pub fn endless() -> Outcome {
    let mut journal = Journal::open()?;
    for number in journal.oldest()..journal.count {
        journal.check(number)?;
    }
    println!("journal {}", journal.count);
    loop {
        journal.append()?;
        let counted = journal.counted()?;
        check!(counted == journal.count, "the disk says {counted}, memory {}", journal.count);
        let oldest = journal.oldest();
        let number = oldest + journal.random.next_u64() % (journal.count - oldest);
        journal.check(number)?;
        if journal.count % TELL == 0 {
            println!("wrote {}", journal.count);
        }
    }
}
