//! The real-time clock of a PC: an MC146818 with 128 bytes of memory, at ports 0x70 and 0x71.
//!
//! [`RtcCore`] is the registers, a plain value that is told the time; [`Rtc`] adds the ports and a clock.
//!
//! The clock is UTC. It runs by itself: the guest that sets it changes the distance to the host's
//! clock, and memory holds only what is not time. It never interrupts: the alarm registers keep
//! what is written and register C reads zero. Linux's rtc-cmos is content with that (its alarms do not
//! fire), and no system keeps time by this chip's interrupts when there are timers.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bus::{BusDevice, Effect};
use crate::state::{Hex, RestoreError};

/// Where the ports begin: index, data.
pub const RTC_PORTS: u64 = 0x70;
/// How many ports there are.
pub const RTC_PORTS_LEN: u64 = 2;
/// Where the century is (FADT CENTURY).
pub const CENTURY: u8 = 0x32;

const SECONDS: usize = 0x00;
const MINUTES: usize = 0x02;
const HOURS: usize = 0x04;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const REGISTER_A: usize = 0x0a;
const REGISTER_B: usize = 0x0b;
const REGISTER_C: usize = 0x0c;
const REGISTER_D: usize = 0x0d;
const CENTURY_AT: usize = CENTURY as usize;

/// A: update in progress.
const A_UPDATING: u8 = 1 << 7;
/// A at power-on: 32.768 kHz crystal, 1024 Hz periodic rate.
const A_POWER_ON: u8 = 0x26;
/// B: updates are held so that the time can be set.
const B_SET: u8 = 1 << 7;
/// B: numbers are binary, not BCD.
const B_BINARY: u8 = 1 << 2;
/// B: hours are 0 to 23, not 1 to 12 with bit 7 for the afternoon.
const B_24_HOURS: u8 = 1 << 1;
/// D: memory and time are valid.
const D_VALID: u8 = 1 << 7;
/// Hours: afternoon.
const AFTERNOON: u8 = 1 << 7;

/// Before each second's update the chip says so for this long (t_BUC), in nanoseconds.
const UPDATE_NOTICE: u32 = 244_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// What is saved of the clock: not the time, but how far from the host's it is, so that it is right whenever the state is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RtcState {
    /// The selected register.
    pub index: u8,
    /// The 128 bytes of memory.
    pub memory: Hex,
    /// How far ahead of the host's clock this one is, in seconds.
    pub offset: i64,
}

/// The registers and memory. `now` is the host's time in all methods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RtcCore {
    index: u8,
    /// Everything but the time; while B_SET is on, the time too.
    memory: [u8; 128],
    /// How far ahead of the host's clock this one is, in seconds.
    offset: i64,
}

impl Default for RtcCore {
    fn default() -> Self {
        let mut memory = [0; 128];
        memory[REGISTER_A] = A_POWER_ON;
        memory[REGISTER_B] = B_24_HOURS;
        Self { index: 0, memory, offset: 0 }
    }
}

impl RtcCore {
    /// As it was saved.
    ///
    /// # Errors
    /// If it cannot be so.
    pub fn restore(state: &RtcState) -> Result<Self, RestoreError> {
        let wrong = |field, reason: &str| RestoreError::new("the clock", field, reason);
        let memory = <[u8; 128]>::try_from(state.memory.0.as_slice());
        let memory = memory.map_err(|_| wrong("memory", "it is not 128 bytes long"))?;
        if state.index > 0x7f {
            return Err(wrong("index", "there is no such register"));
        }
        Ok(Self { index: state.index, memory, offset: state.offset })
    }

    /// To be saved.
    #[must_use]
    pub fn save(&self) -> RtcState {
        RtcState { index: self.index, memory: self.memory.to_vec().into(), offset: self.offset }
    }

    /// Select the register that the data port is. Bit 7 is the NMI mask of a PC; there are no such NMIs.
    pub fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// Read the selected register.
    #[must_use]
    pub fn read(&self, now: SystemTime) -> u8 {
        let index = usize::from(self.index);
        let stored = self.memory.get(index).copied().unwrap_or(0xff);
        match index {
            REGISTER_A if self.updating(now) => stored | A_UPDATING,
            REGISTER_C => 0,
            REGISTER_D => D_VALID,
            _ if is_time(index) && !self.held() => self.time_register(index, now),
            _ => stored,
        }
    }

    /// Write the selected register.
    pub fn write(&mut self, value: u8, now: SystemTime) {
        match usize::from(self.index) {
            REGISTER_A => self.store(REGISTER_A, value & !A_UPDATING),
            REGISTER_B => self.write_b(value, now),
            REGISTER_C | REGISTER_D => {}
            index if is_time(index) && !self.held() => {
                self.hold(now);
                self.store(index, value);
                self.release(now);
            }
            index => self.store(index, value),
        }
    }

    fn write_b(&mut self, value: u8, now: SystemTime) {
        match (self.held(), value & B_SET != 0) {
            // The registers stop in the format of before, and start in the new one.
            (false, true) => {
                self.hold(now);
                self.store(REGISTER_B, value);
            }
            (true, false) => {
                self.store(REGISTER_B, value);
                self.release(now);
            }
            _ => self.store(REGISTER_B, value),
        }
    }

    /// Whether the guest holds the time to set it.
    fn held(&self) -> bool {
        self.memory[REGISTER_B] & B_SET != 0
    }

    /// Whether the seconds are about to change.
    fn updating(&self, now: SystemTime) -> bool {
        let nanos = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
        !self.held() && nanos >= 1_000_000_000 - UPDATE_NOTICE
    }

    /// Put the time of now into memory.
    fn hold(&mut self, now: SystemTime) {
        for index in (0..=YEAR).chain([CENTURY_AT]).filter(|i| is_time(*i)) {
            let value = self.time_register(index, now);
            self.store(index, value);
        }
    }

    /// Take the time of now from memory. If that is none, such as the 31st of February, the clock runs
    /// on as it did.
    fn release(&mut self, now: SystemTime) {
        if let Some(time) = self.stored_time() {
            self.offset = time.saturating_sub(unix_seconds(now));
        }
    }

    fn store(&mut self, index: usize, value: u8) {
        if let Some(byte) = self.memory.get_mut(index) {
            *byte = value;
        }
    }

    /// A time register as it is now.
    fn time_register(&self, index: usize, now: SystemTime) -> u8 {
        let time = unix_seconds(now).saturating_add(self.offset);
        let date = Date::from_days(time.div_euclid(SECONDS_PER_DAY));
        let second = time.rem_euclid(SECONDS_PER_DAY);
        let value = match index {
            SECONDS => second % 60,
            MINUTES => second / 60 % 60,
            HOURS => return self.encode_hour(second / 3600),
            WEEKDAY => date.weekday,
            DAY => date.day,
            MONTH => date.month,
            YEAR => date.year.rem_euclid(100),
            _ => date.year.div_euclid(100).rem_euclid(100),
        };
        self.encode(value)
    }

    /// The time that the registers hold, in seconds since 1970; `None` if there is no such time.
    fn stored_time(&self) -> Option<i64> {
        let get = |index: usize| self.decode(self.memory.get(index).copied()?);
        let hour = self.decode_hour(self.memory[HOURS])?;
        let (minute, second) = (get(MINUTES)?, get(SECONDS)?);
        let (year, month, day) = (get(CENTURY_AT)? * 100 + get(YEAR)?, get(MONTH)?, get(DAY)?);
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let days = days_since_1970(year, month, day);
        // A date that does not exist comes back as another.
        let date = Date::from_days(days);
        ((date.year, date.month, date.day) == (year, month, day))
            .then_some(days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second)
    }

    fn binary(&self) -> bool {
        self.memory[REGISTER_B] & B_BINARY != 0
    }

    /// A number from 0 to 99 in the format of register B.
    fn encode(&self, value: i64) -> u8 {
        let value = value as u8;
        if self.binary() { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> Option<i64> {
        let number = match (self.binary(), value >> 4, value & 15) {
            (true, ..) => value,
            (false, tens @ 0..=9, ones @ 0..=9) => tens * 10 + ones,
            _ => return None,
        };
        (number < 100).then_some(i64::from(number))
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.memory[REGISTER_B] & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { AFTERNOON } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> Option<i64> {
        if self.memory[REGISTER_B] & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let hour = self.decode(value & !AFTERNOON).filter(|hour| (1..=12).contains(hour))?;
        Some(hour % 12 + if value & AFTERNOON != 0 { 12 } else { 0 })
    }
}

/// Whether the register shows the time, and not an alarm, control or memory.
fn is_time(index: usize) -> bool {
    matches!(index, SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY_AT)
}

/// Whole seconds since 1970, also before it.
fn unix_seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
    }
}

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: i64,
    /// 1 to 12.
    month: i64,
    /// 1 to 31.
    day: i64,
    /// 1 (Sunday) to 7.
    weekday: i64,
}

/// Days in the 400 years after which the calendar repeats.
const DAYS_PER_ERA: i64 = 146_097;
/// Days from 1 March of the year 0 to 1 January 1970.
const DAYS_TO_1970: i64 = 719_468;

impl Date {
    /// The day that is `days` after 1 January 1970.
    fn from_days(days: i64) -> Self {
        // 1970 began on a Thursday.
        let weekday = (days.rem_euclid(7) + 4) % 7 + 1;
        // Years are counted from March, so that the leap day is their last.
        let days = days.saturating_add(DAYS_TO_1970);
        let (era, day_of_era) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (DAYS_PER_ERA - 1)) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        Self { year, month, day, weekday }
    }
}

/// The inverse of [`Date::from_days`], for years 0 to 9999.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * DAYS_PER_ERA + day_of_era - DAYS_TO_1970
}

/// Tells the host's time.
pub type Clock = Box<dyn Fn() -> SystemTime + Send>;

/// The clock on its ports.
pub struct Rtc {
    core: RtcCore,
    clock: Clock,
}

impl Rtc {
    /// A clock that starts from the time of `clock` (usually [`SystemTime::now`]).
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { core: RtcCore::default(), clock }
    }

    /// To be saved.
    #[must_use]
    pub fn save(&self) -> RtcState {
        self.core.save()
    }

    /// Become what was saved.
    ///
    /// # Errors
    /// If it cannot be so.
    pub fn restore(&mut self, state: &RtcState) -> Result<(), RestoreError> {
        self.core = RtcCore::restore(state)?;
        Ok(())
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The index port cannot be read.
        data.fill(0xff);
        if let (1, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.core.read((self.clock)());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        // A word to the index port is an index and its data, as on an ISA bus.
        for (port, byte) in (offset..2).zip(data) {
            match port {
                0 => self.core.select(*byte),
                _ => self.core.write(*byte, (self.clock)()),
            }
        }
        Effect::None
    }
}

#[cfg(test)]
#[path = "rtc_tests.rs"]
mod tests;
