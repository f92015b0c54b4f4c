//! Memory that is written all the time, from ring 3, and knows what must be in it.
//!
//! `span=` MiB are written once; then, for ever, `rate=` MiB a second of it, page after page in no order. What each page
//! was written last stands in a table, in memory as well: pages and table of one instant agree, those of two do not. A few
//! pages a turn are compared, and one that is wrong is told: `FAIL page …`. While it works, the guest counts:
//! `count N` every `say=` milliseconds, and a `.` every `dot=` microseconds, if that is not 0.

#![no_std]
#![no_main]

extern crate alloc;

use rt::entropy::Random;
use rt::memory::pages;
use rt::{clock, cpu, println, pvh};

rt::guest_main!(run);

const PAGE: u64 = 4096;
const WORDS: usize = 512;
/// Pages a MiB.
const MIB: u64 = 256;
/// How long a turn is.
const TURN: u64 = 1_000_000;
/// Pages that are compared in a turn.
const LOOKS: u64 = 4;
/// Time that is missing from the guest's life (it was snapshotted, and put back much later) is not made up for.
const GAP: u64 = 100 * TURN;

/// Pages, and for each what was written to it last.
struct Area {
    pages: *mut u64,
    versions: *mut u64,
    count: u64,
    random: Random,
}

/// What every word of a page is. Never 0.
fn content(page: u64, version: u64) -> u64 {
    (page << 32 | version).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

impl Area {
    fn new(count: u64) -> Self {
        let versions = pages((count * 8).div_ceil(PAGE));
        // Not cleared: all of it is written now.
        let mut area =
            Self { pages: pages(count).cast(), versions: versions.cast(), count, random: Random(0x5eed) };
        (0..count).for_each(|page| area.write(page));
        area
    }

    fn at(&self, page: u64) -> (*mut u64, *mut u64) {
        let page = page as usize;
        (self.pages.wrapping_add(page * WORDS), self.versions.wrapping_add(page))
    }

    fn write(&mut self, page: u64) {
        let (at, version) = self.at(page);
        // SAFETY: both lie in memory that `new` took, for `page` is less than `count`.
        unsafe {
            let next = version.read_volatile() + 1;
            version.write_volatile(next);
            let word = content(page, next);
            (0..WORDS).for_each(|index| at.add(index).write_volatile(word));
        }
    }

    /// Whether the page is as the table says.
    fn check(&self, page: u64) {
        let (at, version) = self.at(page);
        // SAFETY: as in `write`.
        let (version, words) = unsafe {
            let word = |index| at.add(index).read_volatile();
            (version.read_volatile(), [word(0), word(WORDS / 2), word(WORDS - 1)])
        };
        let wanted = content(page, version);
        if words != [wanted; 3] {
            println!("FAIL page {page} is {:#x}, not {wanted:#x}", words[0]);
        }
    }

    fn any(&mut self) -> u64 {
        self.random.next_u64() % self.count
    }
}

/// What is due every so often.
struct Every {
    nanos: u64,
    next: u64,
}

impl Every {
    fn due(&mut self, now: u64) -> bool {
        let due = self.nanos != 0 && now >= self.next;
        if due {
            self.next = now + self.nanos;
        }
        due
    }
}

fn run() {
    let number = |name, without| pvh::number(name).unwrap_or(without);
    let mut area = Area::new((number("span", 16) * MIB).max(1));
    // In pages a turn, times a thousand.
    let rate = number("rate", 0) * MIB;
    let mut say = Every { nanos: number("say", 100) * 1_000_000, next: 0 };
    let mut dot = Every { nanos: number("dot", 0) * 1_000, next: 0 };
    println!("ready");
    let (mut owed, mut count, mut turn) = (0, 0_u64, clock::nanos());
    loop {
        let now = clock::nanos();
        if dot.due(now) {
            cpu::out_serial(b".");
        }
        if now < turn {
            core::hint::spin_loop();
            continue;
        }
        turn = if now > turn + GAP { now } else { turn } + TURN;
        owed += rate;
        while owed >= 1000 {
            let page = area.any();
            area.write(page);
            owed -= 1000;
        }
        for _ in 0..LOOKS {
            let page = area.any();
            area.check(page);
        }
        if say.due(now) {
            count += 1;
            println!("count {count}");
        }
    }
}
