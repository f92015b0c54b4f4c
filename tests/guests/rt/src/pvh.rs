//! What the loader said: the PVH start info (Xen's `hvm_start_info`, version 1).

use alloc::vec::Vec;
use core::ptr::read_unaligned;

const MAGIC: u32 = 0x336e_c578;
const CMDLINE_MAX: usize = 2048;
const MAP_MAX: usize = 32;

/// A range of the memory map.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Range {
    /// Guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// 1: RAM, 2: reserved, 3: ACPI, as in e820.
    pub kind: u32,
    reserved: u32,
}

/// Copied out of the loader's memory at once, so that this can be used for other things.
struct Info {
    rsdp: u64,
    cmdline: [u8; CMDLINE_MAX],
    cmdline_len: usize,
    map: [Range; MAP_MAX],
    map_len: usize,
}

static mut INFO: Info = Info {
    rsdp: 0,
    cmdline: [0; CMDLINE_MAX],
    cmdline_len: 0,
    map: [Range { start: 0, len: 0, kind: 0, reserved: 0 }; MAP_MAX],
    map_len: 0,
};

fn info() -> &'static Info {
    let info = &raw const INFO;
    // SAFETY: written once by `init`, before anything else runs.
    unsafe { &*info }
}

/// Copy the start info at `at`.
pub(crate) fn init(at: u64) {
    let info = &raw mut INFO;
    // SAFETY: the loader's structure, below 4 GiB and so mapped; nothing else runs.
    unsafe {
        let info = &mut *info;
        if read_unaligned(at as *const u32) != MAGIC {
            crate::println!("FAIL pvh: no start info at {at:#x}");
            crate::power::off();
        }
        let cmdline = read_unaligned((at + 24) as *const u64) as *const u8;
        while !cmdline.is_null() && info.cmdline_len < CMDLINE_MAX {
            let byte = *cmdline.add(info.cmdline_len);
            if byte == 0 {
                break;
            }
            info.cmdline[info.cmdline_len] = byte;
            info.cmdline_len += 1;
        }
        info.rsdp = read_unaligned((at + 32) as *const u64);
        let map = read_unaligned((at + 40) as *const u64) as *const Range;
        info.map_len = (read_unaligned((at + 48) as *const u32) as usize).min(MAP_MAX);
        for index in 0..info.map_len {
            info.map[index] = map.add(index).read_unaligned();
        }
    }
}

/// The kernel's command line.
pub fn cmdline() -> &'static str {
    core::str::from_utf8(&info().cmdline[..info().cmdline_len]).unwrap_or("")
}

/// The value of `name=value` on the command line.
pub fn arg(name: &str) -> Option<&'static str> {
    cmdline().split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// The number in `name=value` on the command line, decimal or 0x….
pub fn number(name: &str) -> Option<u64> {
    let text = arg(name)?;
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The memory map.
pub fn memory_map() -> &'static [Range] {
    &info().map[..info().map_len]
}

/// The RAM in the memory map: start and end of each range.
pub fn ram() -> Vec<(u64, u64)> {
    memory_map()
        .iter()
        .filter(|range| range.kind == 1)
        .map(|range| (range.start, range.start + range.len))
        .collect()
}

/// The address of ACPI's root pointer, 0 if there is none.
pub fn rsdp() -> u64 {
    info().rsdp
}
