//! What the loader and the board promise: command line, memory map, tables, clock, processor.

use alloc::string::String;

use rt::{acpi, cpu, memory, println, pvh};

use crate::{Outcome, check};

/// The command line arrives as it was given.
pub fn cmdline() -> Outcome {
    println!("cmdline {}", pvh::cmdline());
    Ok(())
}

/// Every range of RAM has its first and last bytes, and no two ranges share them.
pub fn memory() -> Outcome {
    let ram = pvh::ram();
    let (free, _) = memory::free();
    for (index, &(start, end)) in ram.iter().enumerate() {
        println!("ram {start:#x} {end:#x}");
        check!(start < end, "range {index} is empty");
        // The guest's own image and what the loader left lie low; ends are free.
        for at in [start.max(free), end - 8] {
            memory::map(at);
            let place = at as *mut u64;
            // SAFETY: RAM that nothing uses: behind the heap's end, or the last bytes of a range.
            let seen = unsafe {
                place.write_volatile(at ^ 0x5aa5);
                place.read_volatile()
            };
            check!(seen == at ^ 0x5aa5, "{at:#x} does not hold what was written: {seen:#x}");
        }
    }
    for &(_, end) in &ram {
        let at = end - 8;
        // SAFETY: as above, and mapped by now.
        let seen = unsafe { (at as *const u64).read_volatile() };
        check!(seen == at ^ 0x5aa5, "{at:#x} is also somewhere else: {seen:#x}");
    }
    Ok(())
}

/// The tables add up and say what the machine has.
pub fn acpi() -> Outcome {
    check!(acpi::root_is_sound(), "no sound root pointer and root table");
    for table in acpi::tables().chain(acpi::dsdt()) {
        let name = core::str::from_utf8(&table.signature).unwrap_or("?");
        println!("table {name} {}", table.len);
        check!(table.checksum() == 0, "{name} does not add up");
    }
    println!("processors {}", acpi::processors().len());
    if let Some(ecam) = acpi::ecam() {
        println!("ecam {ecam:#x}");
    }
    let Some(fadt) = acpi::fadt() else { return Err("no FADT".into()) };
    println!(
        "sleep {:#x} {:#x} reset {:#x} {:#x}",
        fadt.sleep_control, fadt.sleep_status, fadt.reset, fadt.reset_value
    );
    check!(fadt.flags & 1 << 20 != 0, "not hardware-reduced: flags {:#x}", fadt.flags);
    check!(fadt.flags & 1 << 10 != 0, "no reset register: flags {:#x}", fadt.flags);
    check!(acpi::dsdt_has(b"_S5_"), "no \\_S5 in the DSDT");
    println!("lnro0005 {}", acpi::dsdt_has(b"LNRO0005"));
    Ok(())
}

fn cmos(register: u8) -> u8 {
    cpu::out8(0x70, register);
    cpu::in8(0x71)
}

/// The clock tells a time, which the host compares with its own.
pub fn rtc() -> Outcome {
    let [year, month, day, hour, minute, second] = time()?;
    println!("rtc 20{year}-{month}-{day} {hour}:{minute}:{second}");
    check!(cmos(0x0b) & 2 != 0, "the clock is not in 24-hour format");
    Ok(())
}

/// The clock's year of the century, month, day, hour, minute and second.
fn time() -> Result<[u8; 6], String> {
    let format = cmos(0x0b);
    let read = |register| {
        let value = cmos(register);
        if format & 4 != 0 { value } else { (value >> 4) * 10 + (value & 15) }
    };
    for _ in 0..3 {
        let now = [9, 8, 7, 4, 2, 0].map(read);
        let again = [9, 8, 7, 4, 2, 0].map(read);
        if now == again {
            return Ok(now);
        }
    }
    Err("the clock does not stand still for a moment".into())
}

/// How many seconds of the day have passed by the clock.
pub fn seconds_of_day() -> Result<u64, String> {
    let [_, _, _, hour, minute, second] = time()?.map(u64::from);
    Ok((hour * 60 + minute) * 60 + second)
}

/// The hypervisor shows itself, and the topology knows this processor.
pub fn cpuid() -> Outcome {
    let [_, _, features, _] = cpu::cpuid(1, 0);
    check!(features & 1 << 31 != 0, "no hypervisor bit");
    let [_, b, c, d] = cpu::cpuid(0x4000_0000, 0);
    check!([b, c, d] == [0x4b4d_564b, 0x564b_4d56, 0x4d], "not KVM's signature: {b:#x} {c:#x} {d:#x}");
    println!("kvm-features {:#x} tsc-khz {}", cpu::cpuid(0x4000_0001, 0)[0], rt::clock::khz());
    Ok(())
}
