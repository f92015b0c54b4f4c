//! Linux's 64-bit boot protocol: the zero page. Documentation/arch/x86/{boot,zero-page}.rst.
//!
//! The kernel is entered at the ELF entry point of the *unpacked* kernel, so nobody moves it: it runs at
//! the physical address it was linked for, and its virtual base is not randomised either. The part of KASLR
//! that the kernel does itself (`CONFIG_RANDOMIZE_MEMORY`) needs the flag that the unpacker would have set.

use super::bzimage::{SETUP_HEADER, SetupHeader};
use super::initrd::Placed;
use crate::layout;

const LEN: usize = 4096;
const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_LEN: usize = 20;

/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// The highest address of an initrd that every kernel takes; what x86 kernels put in their header.
pub const DEFAULT_INITRD_MAX: u64 = 0x7fff_ffff;

/// The zero page of a kernel with the setup header `setup`, or with a made-up one for a plain vmlinux.
#[must_use]
pub fn zero_page(setup: Option<&SetupHeader>, memory: u64, initrd: Option<Placed>) -> [u8; LEN] {
    let mut page = ZeroPage([0; LEN]);
    match setup {
        Some(setup) => page.put(SETUP_HEADER, setup.as_bytes()),
        None => {
            page.put(BOOT_FLAG, &0xaa55u16.to_le_bytes());
            page.put(HEADER_MAGIC, b"HdrS\x0c\x02");
            page.put(LOADFLAGS, &[1]);
            page.put_u32(INITRD_ADDR_MAX, DEFAULT_INITRD_MAX as u32);
            page.put_u32(KERNEL_ALIGNMENT, 0x20_0000);
            page.put_u32(CMDLINE_SIZE, layout::CMDLINE_SIZE as u32 - 1);
        }
    }
    page.put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    page.put(SETUP_DATA, &0u64.to_le_bytes());
    page.put_u32(CMD_LINE_PTR, layout::CMDLINE as u32);
    page.put(ACPI_RSDP_ADDR, &layout::ACPI.to_le_bytes());
    // The initrd is below 4 GiB, so that the upper halves (ext_ramdisk_*) stay zero.
    let initrd = initrd.unwrap_or(Placed { addr: 0, len: 0 });
    page.put_u32(RAMDISK_IMAGE, initrd.addr as u32);
    page.put_u32(RAMDISK_IMAGE + 4, initrd.len as u32);

    let map = layout::memory_map(memory);
    page.put(E820_ENTRIES, &[map.len() as u8]);
    for (i, (range, kind)) in map.iter().enumerate() {
        let at = E820_TABLE + i * E820_ENTRY_LEN;
        page.put(at, &range.start.to_le_bytes());
        page.put(at + 8, &range.len.to_le_bytes());
        page.put_u32(at + 16, *kind as u32);
    }
    page.0
}

struct ZeroPage([u8; LEN]);

impl ZeroPage {
    /// Every caller's place and length are fixed by this file and by [`SetupHeader`]'s bound.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            place.copy_from_slice(bytes);
        }
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::{u16_at, u32_at, u64_at};
    use super::super::bzimage::tests::build;
    use super::*;

    #[test]
    fn the_kernels_header_is_kept_and_the_loaders_answers_filled_in() {
        let setup = SetupHeader::parse(&build(b"payload")).unwrap();
        let initrd = Placed { addr: 0x300_0000, len: 12345 };
        let page = zero_page(Some(&setup), 64 << 20, Some(initrd));
        assert_eq!(u16_at(&page, 0x1fe), Some(0xaa55));
        assert_eq!(&page[0x202..0x208], b"HdrS\x0f\x02");
        assert_eq!(page[0x1f1], 1);
        assert_eq!(page[0x210], 0xff);
        assert_eq!(u32_at(&page, 0x218), Some(0x300_0000));
        assert_eq!(u32_at(&page, 0x21c), Some(12345));
        assert_eq!(u32_at(&page, 0x228), Some(0x2_0000));
        assert_eq!(u32_at(&page, 0x22c), Some(0x7fff_ffff));
        assert_eq!(u64_at(&page, 0x070), Some(0xe_0000));
        assert_eq!(page[0x1ef], 0, "the sentinel says that the page was cleared");
    }

    #[test]
    fn the_e820_table_is_the_memory_map() {
        for memory in [64u64 << 20, 3 << 30, 4 << 30, 8 << 30] {
            let page = zero_page(None, memory, None);
            let map = layout::memory_map(memory);
            assert_eq!(usize::from(page[0x1e8]), map.len());
            for (i, (range, kind)) in map.iter().enumerate() {
                let at = 0x2d0 + i * 20;
                assert_eq!(u64_at(&page, at), Some(range.start));
                assert_eq!(u64_at(&page, at + 8), Some(range.len));
                assert_eq!(u32_at(&page, at + 16), Some(*kind as u32));
            }
        }
    }

    #[test]
    fn a_plain_vmlinux_gets_a_header_made_up() {
        let page = zero_page(None, 64 << 20, None);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(u32_at(&page, 0x238), Some(2047));
        assert_eq!((u32_at(&page, 0x218), u32_at(&page, 0x21c)), (Some(0), Some(0)));
    }
}
