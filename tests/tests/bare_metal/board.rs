//! What the loader and the board promise.

use std::time::{SystemTime, UNIX_EPOCH};

use skiff_tests::machine::{Machine, Transport, cpuid_is_the_hosts};

use crate::on_both;

on_both!(the_tables_describe_the_machine, the_bus_is_as_configured, every_processor_starts);

#[test]
fn the_command_line_arrives() {
    let ended = Machine::guest("cmdline").cmdline("root=/dev/vda1 quiet 'a b'").run();
    ended.passed(&["cmdline"]);
    assert!(ended.said("cmdline").ends_with("root=/dev/vda1 quiet 'a b'"), "{ended:#?}");
}

fn ram(memory: &str) -> Vec<(u64, u64)> {
    let ended = Machine::guest("memory").memory(memory).run();
    ended.passed(&["memory"]);
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let range = |line: &str| line.split_once(' ').map(|(start, end)| (number(start), number(end))).unwrap();
    ended.all("ram").map(range).collect()
}

#[test]
fn memory_is_as_large_as_asked_and_leaves_the_hole_free() {
    const MIB: u64 = 1 << 20;
    const HOLE: std::ops::Range<u64> = 0xc000_0000..0x1_0000_0000;
    for (memory, size) in [("64M", 64), ("512M", 512), ("3G", 3072), ("3500M", 3500), ("5G", 5120)] {
        let ranges = ram(memory);
        let sum: u64 = ranges.iter().map(|(start, end)| end - start).sum();
        // Below 1 MiB some is reserved.
        assert!(sum <= size * MIB && sum >= size * MIB - MIB, "{memory}: {ranges:x?}");
        assert!(
            ranges.iter().all(|&(start, end)| end <= HOLE.start || start >= HOLE.end),
            "{memory}: {ranges:x?}"
        );
        let above = ranges.iter().any(|&(start, _)| start >= HOLE.end);
        assert_eq!(above, size > 3072, "{memory}: {ranges:x?}");
    }
}

fn the_tables_describe_the_machine(transport: Transport) {
    for cpus in [1, 4] {
        let ended = Machine::guest("acpi,cpuid").transport(transport).cpus(cpus).run();
        ended.passed(&["acpi", "cpuid"]);
        assert_eq!(ended.said("processors"), cpus.to_string());
        assert_eq!(ended.said("ecam"), "0xe0000000");
        assert_eq!(ended.said("sleep"), "0x600 0x601 reset 0x602 0x1");
        assert_eq!(ended.said("lnro0005"), (transport == Transport::Mmio).to_string());
    }
}

#[test]
fn the_clock_tells_the_time() {
    let ended = Machine::guest("rtc").run();
    ended.passed(&["rtc"]);
    let numbers: Vec<i64> =
        ended.said("rtc").split(['-', ' ', ':']).map(|text| text.parse().unwrap()).collect();
    let &[year, month, day, hour, minute, second] = &numbers[..] else { panic!("{ended:#?}") };
    let guest = days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
    let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(guest.abs_diff(i64::try_from(host).unwrap()) < 120, "the guest's clock is off: {ended:#?}");
}

/// Days since 1970 of a date after 2000.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let years: i64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    let months: i64 = lengths.iter().take(usize::try_from(month - 1).unwrap()).sum();
    years + months + day - 1
}

fn the_bus_is_as_configured(transport: Transport) {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    skiff_tests::pattern::make(&disk, 4096).unwrap();
    let tests = if transport == Transport::Pci { "pci,bar,bar-move,mmio" } else { "pci,mmio" };
    let path = format!("path={}", disk.display());
    let ended = Machine::guest(tests).transport(transport).disk(path).console("file=/dev/null").run();
    ended.passed(&tests.split(',').collect::<Vec<_>>());
    let is_virtio = |line: &&str| line.contains("1af4:");
    let (pci, mmio) = (ended.all("pci").filter(is_virtio).count(), ended.all("mmio").count());
    match transport {
        // A disk, a console, an entropy source and a balloon.
        Transport::Pci => assert_eq!((pci, mmio), (4, 0), "{ended:#?}"),
        Transport::Mmio => assert_eq!((pci, mmio), (0, 4), "{ended:#?}"),
    }
}

fn every_processor_starts(transport: Transport) {
    for cpus in [1, 2, 5, 16] {
        let mut machine = Machine::guest("smp").transport(transport).cpus(cpus);
        if cpuid_is_the_hosts() {
            eprintln!("skipped: what CPUID says, which is the host's here");
            machine = machine.cmdline("cpuid=host");
        }
        let ended = machine.run();
        ended.passed(&["smp"]);
        let wanted = format!("{cpus} ");
        assert!(ended.said("processors-up").starts_with(&wanted), "{ended:#?}");
    }
}
