use proptest::prelude::*;
use vm_memory::GuestMemoryMmap;

use super::bytes::{u32_at, u64_at};
use super::decompress::Format;
use super::decompress::tests::{FORMATS, pack};
use super::*;

const MEMORY: u64 = 64 << 20;
const ADDR: u64 = 0x100_0000;

fn ram() -> GuestRam {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap()
}

fn elf(pvh: Option<u32>) -> Vec<u8> {
    elf::tests::build(ADDR, b"kernel code", 0x20_0000, pvh)
}

fn no_initrd() -> Option<Initrd<'static, &'static [u8]>> {
    None
}

fn read(ram: &GuestRam, addr: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    ram.read_slice(&mut data, GuestAddress(addr)).unwrap();
    data
}

#[test]
fn a_bzimage_of_every_format_is_unpacked_and_entered_in_64_bits() {
    for format in FORMATS.into_iter().chain([Format::Elf]) {
        let image = bzimage::tests::build(&pack(format, &elf(Some(0x100_0004))));
        let kernel = Kernel::parse(&image[..]).unwrap();
        assert_eq!(kernel.elf_file(), elf(Some(0x100_0004)));
        let ram = ram();
        let mut data = &b"initial ram disk"[..];
        let initrd = Initrd { len: data.len() as u64, source: &mut data };
        let entry = load(&kernel, &ram, "console=ttyS0", Some(initrd)).unwrap();
        assert_eq!(entry, Entry { protocol: Protocol::Linux64, address: ADDR, info: layout::ZERO_PAGE });
        assert_eq!(read(&ram, ADDR, 12), b"kernel code\0");
        assert_eq!(read(&ram, layout::CMDLINE, 14), b"console=ttyS0\0");
        let page = read(&ram, layout::ZERO_PAGE, 4096);
        let (addr, len) = (u32_at(&page, 0x218).unwrap(), u32_at(&page, 0x21c).unwrap());
        assert_eq!((u64::from(addr), len), (MEMORY - 0x1000, 16));
        assert_eq!(read(&ram, addr.into(), 16), b"initial ram disk");
        assert_eq!(read(&ram, layout::RESET_VECTOR, 9), b"\xba\x02\x06\xb0\x01\xee\xf4\xeb\xfd");
    }
}

#[test]
fn an_elf_file_with_a_pvh_note_is_entered_there_and_one_without_in_64_bits() {
    let ram = ram();
    let file = elf(Some(ADDR as u32 + 4));
    let kernel = Kernel::parse(&file[..]).unwrap();
    let entry = load(&kernel, &ram, "", no_initrd()).unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Pvh, address: ADDR + 4, info: layout::PVH_INFO });
    assert_eq!(u64_at(&read(&ram, layout::PVH_INFO, 56), 24), Some(layout::CMDLINE));

    let kernel = Kernel::parse(elf(None)).unwrap();
    let entry = load(&kernel, &ram, "", no_initrd()).unwrap();
    assert_eq!((entry.protocol, entry.address), (Protocol::Linux64, ADDR));
}

#[test]
fn an_unpacked_kernel_can_be_kept_and_used_again() {
    let image = bzimage::tests::build(&pack(Format::Zstd, &elf(None)));
    let kernel = Kernel::parse(image).unwrap();
    let header = kernel.setup_header().unwrap().as_bytes().to_vec();
    let again = Kernel::from_parts(kernel.elf_file().into(), Some(SetupHeader::from_bytes(&header).unwrap()))
        .unwrap();
    assert_eq!(again.setup_header(), kernel.setup_header());
    assert_eq!((again.protocol(), again.entry()), (kernel.protocol(), kernel.entry()));
}

#[test]
fn a_kernel_must_lie_in_ram_above_1_mib_and_in_one_piece() {
    let ram = ram();
    let load_at = |addr: u64, mem_len: u64, pvh| {
        let kernel = Kernel::parse(elf::tests::build(addr, b"code", mem_len, pvh)).unwrap();
        load(&kernel, &ram, "", no_initrd())
    };
    load_at(0x10_0000, MEMORY - 0x10_0000, None).unwrap();
    assert!(matches!(load_at(0x10_0000, MEMORY - 0xf_ffff, None), Err(LoadError::OutsideRam { .. })));
    assert!(matches!(load_at(0xf_ffff, 8, None), Err(LoadError::OutsideRam { .. })));
    assert!(matches!(load_at(u64::MAX - 8, 8, None), Err(LoadError::OutsideRam { .. })));
    assert!(matches!(load_at(0x10_0000, 8, Some(0x10_0008)), Err(LoadError::BadEntry(0x10_0008))));

    let mut file = elf::tests::build(0x10_0000, b"code", 8, None);
    // Turn the note into a segment at the same place.
    file[64] = 1;
    file[64 + 24..64 + 32].copy_from_slice(&0x10_0004u64.to_le_bytes());
    file[64 + 40..64 + 48].copy_from_slice(&8u64.to_le_bytes());
    let kernel = Kernel::parse(file).unwrap();
    assert!(matches!(load(&kernel, &ram, "", no_initrd()), Err(LoadError::Overlap(0x10_0004))));
}

#[test]
fn pages_of_zeroes_are_left_out_and_nothing_else() {
    let ram = ram();
    let data: Vec<u8> =
        (0..30_000usize).map(|i| if (9000..25_000).contains(&i) { 0 } else { i as u8 | 1 }).collect();
    for addr in [0x20_0000, 0x30_0123] {
        write_nonzero(&ram, addr, &data).unwrap();
        assert!(read(&ram, addr, data.len()) == data);
    }
    // What was there shows which pages were not written: those from 9000 to 25000 alone.
    ram.write_slice(&[7; 30_000], GuestAddress(0x20_0000)).unwrap();
    write_nonzero(&ram, 0x20_0000, &data).unwrap();
    let kept = read(&ram, 0x20_0000, data.len());
    assert_eq!(kept.iter().filter(|&&byte| byte == 0).count(), 12_288 - 9000 + 25_000 - 24_576);
}

#[test]
fn an_initrd_ends_below_the_kernels_limit_and_never_reaches_into_the_kernel() {
    let ram = ram();
    let kernel_end = ADDR + 0x20_0000;
    let kernel = Kernel::parse(elf(None)).unwrap();
    let with = |len: u64| {
        let data = vec![7u8; len as usize];
        load(&kernel, &ram, "", Some(Initrd { len, source: &mut &data[..] }))
    };
    with(MEMORY - kernel_end).unwrap();
    assert!(matches!(
        with(MEMORY - kernel_end + 1),
        Err(LoadError::InitrdTooLarge { room, .. }) if room == MEMORY - kernel_end
    ));
    assert_eq!(kernel.initrd_ceiling(3 << 30), 0x8000_0000);
    let short = Initrd { len: 100, source: &mut &b"short"[..] };
    assert!(matches!(load(&kernel, &ram, "", Some(short)), Err(LoadError::Initrd(_))));
    let huge = Initrd { len: u64::MAX, source: &mut &b"short"[..] };
    assert!(matches!(load(&kernel, &ram, "", Some(huge)), Err(LoadError::InitrdTooLarge { .. })));
    // An empty file is no initrd.
    with(0).unwrap();
    assert_eq!(u64_at(&read(&ram, layout::ZERO_PAGE, 4096), 0x218), Some(0));
}

#[test]
fn the_command_line_has_the_kernels_limit() {
    let ram = ram();
    let kernel = Kernel::parse(elf(None)).unwrap();
    load(&kernel, &ram, &"x".repeat(2047), no_initrd()).unwrap();
    assert!(matches!(
        load(&kernel, &ram, &"x".repeat(2048), no_initrd()),
        Err(LoadError::CmdlineTooLong { len: 2048, max: 2047 })
    ));
    assert!(matches!(load(&kernel, &ram, "a\0b", no_initrd()), Err(LoadError::CmdlineNul)));
}

#[test]
fn what_is_no_kernel_is_said_to_be_none() {
    let error = |file: &[u8]| Kernel::parse(file.to_vec()).unwrap_err();
    assert!(error(b"#!/bin/sh\n").to_string().contains("text"));
    let packed_text = bzimage::tests::build(&pack(Format::Gzip, b"no kernel"));
    assert!(matches!(error(&packed_text), KernelError::PayloadNotElf));
    assert!(matches!(error(&bzimage::tests::build(b"")), KernelError::Decompress(_)));
    assert!(matches!(error(b"\x7fELF"), KernelError::Elf(_)));
}

proptest! {
    #[test]
    fn a_mutated_kernel_is_loaded_or_refused_but_never_panics(
        changes in prop::collection::vec((0usize..220, any::<u8>()), 1..8),
        packed in any::<bool>(),
    ) {
        let mut file = elf(Some(ADDR as u32));
        for (at, value) in changes {
            if let Some(byte) = file.get_mut(at) {
                *byte = value;
            }
        }
        let image = if packed { bzimage::tests::build(&pack(Format::Lz4, &file)) } else { file };
        if let Ok(kernel) = Kernel::parse(image) {
            let _ = load(&kernel, &ram(), "", no_initrd());
        }
    }
}
