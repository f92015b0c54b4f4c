use super::*;
use proptest::prelude::*;
use std::time::Duration;

/// 2024-02-29 23:59:58.5 UTC, a Thursday.
const LEAP_DAY: u64 = 1_709_251_198;

fn at(seconds: u64, nanos: u32) -> SystemTime {
    UNIX_EPOCH + Duration::new(seconds, nanos)
}

fn leap_day() -> SystemTime {
    at(LEAP_DAY, 500_000_000)
}

fn read(rtc: &mut RtcCore, register: usize, now: SystemTime) -> u8 {
    rtc.select(register as u8);
    rtc.read(now)
}

fn write(rtc: &mut RtcCore, register: usize, value: u8, now: SystemTime) {
    rtc.select(register as u8);
    rtc.write(value, now);
}

/// Century, year, month, day, hour, minute, second.
fn time(rtc: &mut RtcCore, now: SystemTime) -> [u8; 7] {
    [CENTURY_AT, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS].map(|register| read(rtc, register, now))
}

#[test]
fn the_time_is_bcd_and_24_hours_at_power_on() {
    let mut rtc = RtcCore::default();
    assert_eq!(time(&mut rtc, leap_day()), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58]);
    assert_eq!(read(&mut rtc, WEEKDAY, leap_day()), 5);
    let later = leap_day() + Duration::from_secs(2);
    assert_eq!(time(&mut rtc, later), [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00]);
}

#[test]
fn register_b_chooses_binary_and_12_hours() {
    let mut rtc = RtcCore::default();
    write(&mut rtc, REGISTER_B, B_BINARY | B_24_HOURS, leap_day());
    assert_eq!(time(&mut rtc, leap_day()), [20, 24, 2, 29, 23, 59, 58]);
    write(&mut rtc, REGISTER_B, 0, leap_day());
    assert_eq!(read(&mut rtc, HOURS, leap_day()), 0x11 | AFTERNOON);
    let midnight = leap_day() + Duration::from_secs(2);
    assert_eq!(read(&mut rtc, HOURS, midnight), 0x12);
    assert_eq!(read(&mut rtc, HOURS, midnight + Duration::from_secs(12 * 3600)), 0x12 | AFTERNOON);
}

#[test]
fn a_guest_sets_the_time_and_it_runs_on_from_there() {
    let (mut rtc, now) = (RtcCore::default(), leap_day());
    write(&mut rtc, REGISTER_B, B_SET | B_24_HOURS, now);
    let set = [
        (CENTURY_AT, 0x19),
        (YEAR, 0x99),
        (MONTH, 0x12),
        (DAY, 0x31),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x59),
    ];
    for (register, value) in set {
        write(&mut rtc, register, value, now);
    }
    let later = now + Duration::from_secs(100);
    assert_eq!(time(&mut rtc, later), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59], "held");
    write(&mut rtc, REGISTER_B, B_24_HOURS, later);
    let later = later + Duration::from_secs(1);
    assert_eq!(time(&mut rtc, later), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
}

#[test]
fn a_register_can_be_set_without_holding_the_clock() {
    let (mut rtc, now) = (RtcCore::default(), leap_day());
    write(&mut rtc, MINUTES, 0x10, now);
    assert_eq!(time(&mut rtc, now), [0x20, 0x24, 0x02, 0x29, 0x23, 0x10, 0x58]);
}

#[test]
fn a_time_that_does_not_exist_is_not_taken() {
    let (mut rtc, now) = (RtcCore::default(), leap_day());
    let before = time(&mut rtc, now);
    let bad =
        [(YEAR, 0x23), (MONTH, 0x13), (MONTH, 0), (DAY, 0x30), (DAY, 0), (HOURS, 0x24), (SECONDS, 0x5a)];
    for (register, value) in bad {
        write(&mut rtc, register, value, now);
        assert_eq!(time(&mut rtc, now), before, "register {register:#x} = {value:#x}");
    }
}

#[test]
fn the_chip_says_when_the_seconds_are_about_to_change() {
    let mut rtc = RtcCore::default();
    assert_eq!(read(&mut rtc, REGISTER_A, at(LEAP_DAY, 0)), A_POWER_ON);
    assert_eq!(read(&mut rtc, REGISTER_A, at(LEAP_DAY, 999_755_999)), A_POWER_ON);
    assert_eq!(read(&mut rtc, REGISTER_A, at(LEAP_DAY, 999_756_000)), A_POWER_ON | A_UPDATING);
    write(&mut rtc, REGISTER_B, B_SET | B_24_HOURS, at(LEAP_DAY, 999_999_999));
    assert_eq!(read(&mut rtc, REGISTER_A, at(LEAP_DAY, 999_999_999)), A_POWER_ON);
}

#[test]
fn memory_is_kept_and_the_read_only_registers_are() {
    let (mut rtc, now) = (RtcCore::default(), leap_day());
    for register in 0x0c..0x80 {
        write(&mut rtc, register, 0x15, now);
    }
    assert_eq!(read(&mut rtc, REGISTER_C, now), 0);
    assert_eq!(read(&mut rtc, REGISTER_D, now), D_VALID);
    for register in (0x0e..0x80).filter(|register| *register != CENTURY_AT) {
        assert_eq!(read(&mut rtc, register, now), 0x15);
    }
}

#[test]
fn the_ports_are_index_and_data() {
    let mut rtc = Rtc::new(Box::new(leap_day));
    assert_eq!(rtc.write(0, &[0x80 | CENTURY]), Effect::None, "NMI mask");
    let mut data = [0; 2];
    rtc.read(1, &mut data);
    assert_eq!(data, [0x20, 0xff]);
    assert_eq!(rtc.write(0, &[0x50, 0x77]), Effect::None, "a word");
    rtc.read(1, &mut data);
    assert_eq!(data[0], 0x77);
    rtc.read(0, &mut data);
    assert_eq!(data, [0xff, 0xff]);
}

#[test]
fn clocks_far_off_are_survived() {
    let mut rtc = RtcCore::default();
    time(&mut rtc, UNIX_EPOCH - Duration::from_secs(1 << 40));
    time(&mut rtc, UNIX_EPOCH + Duration::from_secs(1 << 62));
    assert_eq!(
        time(&mut rtc, UNIX_EPOCH - Duration::from_secs(1)),
        [0x19, 0x69, 0x12, 0x31, 0x23, 0x59, 0x59]
    );
}

proptest! {
    #[test]
    fn dates_and_days_are_inverse(days in -719_000i64..2_900_000) {
        let date = Date::from_days(days);
        prop_assert_eq!(days_since_1970(date.year, date.month, date.day), days);
        prop_assert_eq!(Date::from_days(days + 7).weekday, date.weekday);
    }

    #[test]
    fn any_sequence_of_accesses_is_survived(
        accesses in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..9)), 0..50),
        ports in prop::collection::vec((0u8..128, any::<u8>()), 0..50),
    ) {
        let mut rtc = Rtc::new(Box::new(leap_day));
        for (offset, mut data) in accesses {
            let _ = rtc.write(offset & 3, &data);
            let _ = rtc.write(offset, &data);
            rtc.read(offset & 3, &mut data);
        }
        for (index, value) in ports {
            let _ = rtc.write(0, &[index, value]);
            rtc.read(1, &mut [0]);
        }
    }
}

#[test]
fn a_restored_clock_is_right_at_once_and_as_far_off_as_the_guest_set_it() {
    let (mut rtc, now) = (RtcCore::default(), leap_day());
    write(&mut rtc, 0x40, 0x5a, now);
    write(&mut rtc, HOURS, 0x22, now);
    let file = serde_json::to_string(&rtc.save()).unwrap();
    let mut rtc = RtcCore::restore(&serde_json::from_str(&file).unwrap()).unwrap();
    assert_eq!(rtc.read(now), 0x22, "the register that was selected is");
    let week_later = now + Duration::from_secs(7 * 86_400);
    assert_eq!(time(&mut rtc, week_later), [0x20, 0x24, 0x03, 0x07, 0x22, 0x59, 0x58]);
    assert_eq!(read(&mut rtc, 0x40, week_later), 0x5a);
}

#[test]
fn a_clock_that_is_being_set_stands_still_over_a_restore() {
    let (mut rtc, now) = (RtcCore::default(), leap_day());
    write(&mut rtc, REGISTER_B, B_SET | B_24_HOURS, now);
    let mut rtc = RtcCore::restore(&rtc.save()).unwrap();
    let later = now + Duration::from_secs(3600);
    assert_eq!(time(&mut rtc, later), [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58]);
    write(&mut rtc, REGISTER_B, B_24_HOURS, later);
    assert_eq!(read(&mut rtc, HOURS, later), 0x23);
}

#[test]
fn what_is_no_clock_is_refused() {
    let good = RtcCore::default().save();
    assert!(RtcCore::restore(&RtcState { index: 0x80, ..good.clone() }).is_err());
    for len in [0, 127, 129] {
        let state = RtcState { memory: vec![0; len].into(), ..good.clone() };
        assert!(RtcCore::restore(&state).unwrap_err().to_string().contains("the clock"));
    }
}

proptest! {
    #[test]
    fn any_state_of_the_right_size_is_a_clock_and_is_saved_as_it_was(
        index in 0u8..0x80, memory in prop::collection::vec(any::<u8>(), 128), offset in any::<i64>(), register in 0usize..128,
    ) {
        let state = RtcState { index, memory: memory.into(), offset };
        let mut rtc = RtcCore::restore(&state).unwrap();
        prop_assert_eq!(rtc.save(), state);
        read(&mut rtc, register, leap_day());
        write(&mut rtc, register, 0x11, leap_day());
    }
}
