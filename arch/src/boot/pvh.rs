//! The PVH boot protocol: the start info. Xen, docs/misc/pvh.pandoc and
//! xen/include/public/arch-x86/hvm/start_info.h.
//!
//! The structure lies at [`layout::PVH_INFO`]; behind it the module list (one entry, the initrd), then the memory map.

use super::initrd::Placed;
use crate::layout;

const MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const VERSION: u32 = 1;
const START_INFO_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;

/// The start info, module list and memory map, to be written to [`layout::PVH_INFO`].
#[must_use]
pub fn start_info(memory: u64, initrd: Option<Placed>) -> Vec<u8> {
    let modules = layout::PVH_INFO + START_INFO_LEN;
    let map = layout::memory_map(memory);
    let mut info = Vec::new();
    put_u32(&mut info, &[MAGIC, VERSION, 0, u32::from(initrd.is_some())]);
    let module_list = if initrd.is_some() { modules } else { 0 };
    put_u64(&mut info, &[module_list, layout::CMDLINE, layout::ACPI, modules + MODULE_LEN]);
    put_u32(&mut info, &[map.len() as u32, 0]);
    let initrd = initrd.unwrap_or(Placed { addr: 0, len: 0 });
    put_u64(&mut info, &[initrd.addr, initrd.len, 0, 0]);
    for (range, kind) in map {
        put_u64(&mut info, &[range.start, range.len]);
        put_u32(&mut info, &[kind as u32, 0]);
    }
    info
}

fn put_u32(to: &mut Vec<u8>, words: &[u32]) {
    to.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn put_u64(to: &mut Vec<u8>, words: &[u64]) {
    to.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{u32_at, u64_at};
    use super::*;

    #[test]
    fn module_and_memory_map_are_where_the_start_info_says() {
        let memory = 5 << 30;
        let info = start_info(memory, Some(Placed { addr: 0x300_0000, len: 77 }));
        assert_eq!((u32_at(&info, 0), u32_at(&info, 4), u32_at(&info, 12)), (Some(MAGIC), Some(1), Some(1)));
        let modules = (u64_at(&info, 16).unwrap() - layout::PVH_INFO) as usize;
        assert_eq!((u64_at(&info, modules), u64_at(&info, modules + 8)), (Some(0x300_0000), Some(77)));
        assert_eq!(u64_at(&info, 24), Some(layout::CMDLINE));
        assert_eq!(u64_at(&info, 32), Some(layout::ACPI));
        let at = (u64_at(&info, 40).unwrap() - layout::PVH_INFO) as usize;
        let map = layout::memory_map(memory);
        assert_eq!(u32_at(&info, 48), Some(map.len() as u32));
        for (i, (range, kind)) in map.iter().enumerate() {
            assert_eq!(u64_at(&info, at + i * 24), Some(range.start));
            assert_eq!(u64_at(&info, at + i * 24 + 8), Some(range.len));
            assert_eq!(u32_at(&info, at + i * 24 + 16), Some(*kind as u32));
        }
        assert_eq!(info.len(), at + map.len() * 24);
        assert!(info.len() <= 4096);
    }

    #[test]
    fn without_an_initrd_there_is_no_module() {
        let info = start_info(64 << 20, None);
        assert_eq!((u32_at(&info, 12), u64_at(&info, 16)), (Some(0), Some(0)));
    }
}
