//! Work that goes on over snapshots, and looks whether all of the machine is at one instant: memory, processors, timer, disk and
//! clock.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rt::apic::{self, Local};
use rt::memory::{Machine, pages};
use rt::serial::PORT;
use rt::virtio::find;
use rt::{acpi, clock, cpu, println, smp};
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::{DeviceType, SomeTransport};

use crate::block::text;
use crate::interrupts::prepare;
use crate::machine::seconds_of_day;
use crate::{Outcome, check};

const TIMER: u8 = 0x45;
/// How many pages are written in turn.
const PAGES: u64 = 512;
/// How many sectors of the disk are.
const SECTORS: u64 = 64;
const DAY: u64 = 86_400;

/// What the other processors count, each twice.
static COUNTS: [[AtomicU64; 2]; 16] = [const { [const { AtomicU64::new(0) }; 2] }; 16];
/// One of them found its two counts apart.
static APART: AtomicBool = AtomicBool::new(false);

/// What every other processor does, for ever.
extern "C" fn count() {
    let [first, second] = &COUNTS[usize::from(apic::id()) % COUNTS.len()];
    loop {
        let now = first.load(Ordering::SeqCst);
        if second.load(Ordering::SeqCst) != now {
            APART.store(true, Ordering::SeqCst);
        }
        first.store(now + 1, Ordering::SeqCst);
        second.store(now + 1, Ordering::SeqCst);
    }
}

/// The disk, if there is one, and which round wrote each sector last.
struct Written {
    disk: VirtIOBlk<Machine, SomeTransport<'static>>,
    rounds: Vec<u64>,
}

impl Written {
    fn find() -> Result<Option<Self>, String> {
        let Some(found) = find(DeviceType::Block).first().copied() else { return Ok(None) };
        let disk = VirtIOBlk::new(found.transport()).map_err(text)?;
        Ok(Some(Self { disk, rounds: vec![0; SECTORS as usize] }))
    }

    /// Write one sector, and read another.
    fn work(&mut self, round: u64) -> Outcome {
        let mut sector = [0_u8; 512];
        sector.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&round.to_le_bytes()));
        self.disk.write_blocks((round % SECTORS) as usize, &sector).map_err(text)?;
        self.rounds[(round % SECTORS) as usize] = round;
        if round.is_multiple_of(8) {
            self.disk.flush().map_err(text)?;
        }
        let other = (round * 7 % SECTORS) as usize;
        self.disk.read_blocks(other, &mut sector).map_err(text)?;
        let wrote = self.rounds[other];
        let right = wrote == 0 || sector.chunks_exact(8).all(|word| word == wrote.to_le_bytes());
        check!(right, "sector {other} is not what round {wrote} wrote");
        Ok(())
    }
}

/// Pages, and which round wrote each last.
struct Filled {
    base: *mut u64,
    rounds: Vec<u64>,
}

impl Filled {
    fn page(&mut self, page: u64) -> &mut [u64] {
        // SAFETY: the pages are this one's alone, and page is below their number.
        unsafe { core::slice::from_raw_parts_mut(self.base.add(page as usize * 512), 512) }
    }

    fn work(&mut self, round: u64) -> Outcome {
        self.page(round % PAGES).fill(round);
        self.rounds[(round % PAGES) as usize] = round;
        for step in 0..16 {
            let other = (round * 5 + step * 31) % PAGES;
            let wrote = self.rounds[other as usize];
            let right = self.page(other).iter().all(|word| *word == wrote);
            check!(right, "page {other} is not what round {wrote} wrote");
        }
        Ok(())
    }
}

/// A millisecond's sleep, from which only the timer wakes.
fn sleep() {
    let before = cpu::interrupts(TIMER);
    apic::write(Local::TimerStart, 1_000_000);
    while cpu::interrupts(TIMER) == before {
        cpu::wait();
    }
}

/// Until somebody types a key: write and check memory and disk in turn, sleep, watch the other processors and the clocks.
pub fn work() -> Outcome {
    prepare();
    let own = apic::id();
    let mut others = 0;
    for id in acpi::processors().into_iter().filter(|id| *id != u32::from(own)) {
        others += 1;
        check!(smp::start(others, id as u8, count), "processor {id} does not start");
    }
    apic::write(Local::TimerDivider, 0xb);
    apic::write(Local::Timer, TIMER.into());
    // A port whose driver does not ask for input gets none.
    cpu::out8(PORT + 1, 1);
    let mut disk = Written::find()?;
    let mut memory = Filled { base: pages(PAGES).cast(), rounds: vec![0; PAGES as usize] };
    for page in 0..PAGES {
        memory.page(page).fill(0);
    }
    let (day, started) = (seconds_of_day()?, clock::nanos());
    for round in 1_u64.. {
        memory.work(round)?;
        if let Some(disk) = &mut disk {
            disk.work(round)?;
        }
        sleep();
        check!(!APART.load(Ordering::SeqCst), "another processor's counts are apart");
        if round % 16 != 0 {
            continue;
        }
        let wall = (seconds_of_day()? + DAY - day) % DAY;
        let ticked = (clock::nanos() - started) / 1_000_000_000;
        check!(
            wall.abs_diff(ticked) <= 2,
            "{ticked} s have passed by the time stamp, and {wall} s by the clock"
        );
        println!("beat {}", round / 16);
        if cpu::in8(PORT + 5) & 1 != 0 {
            return Ok(());
        }
    }
    Ok(())
}
