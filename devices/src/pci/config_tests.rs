use super::*;
use proptest::prelude::*;

const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1042,
    revision: 1,
    class: 0x01_80_00,
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

const MSIX: MsixLayout =
    MsixLayout { vectors: 3, table_bar: 0, table_offset: 0x1000, pba_bar: 0, pba_offset: 0x1800 };

fn read32(config: &ConfigSpace, offset: usize) -> u32 {
    let mut data = [0; 4];
    config.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write32(config: &mut ConfigSpace, offset: usize, value: u32) -> Written {
    config.write(offset, &value.to_le_bytes())
}

/// A 64-bit BAR 0 of 16 KiB, a 32-bit BAR 2 of 4 KiB, MSI-X.
fn function() -> ConfigSpace {
    let mut config = ConfigSpace::new(&IDENTITY);
    config.add_bar(0, BarKind::Memory64, 0x4000).unwrap();
    config.add_bar(2, BarKind::Memory32, 0x1000).unwrap();
    config.add_msix(&MSIX).unwrap();
    config.set_bar_address(0, 0x40_0000_4000).unwrap();
    config.set_bar_address(2, 0xc000_1000).unwrap();
    config
}

#[test]
fn the_header_says_who_it_is_and_cannot_be_changed() {
    let mut config = function();
    for offset in [0x00, 0x08, 0x2c, 0x34, 0x44, 0x48] {
        let before = read32(&config, offset);
        assert_eq!(write32(&mut config, offset, !before), Written::default());
        assert_eq!(read32(&config, offset), before, "{offset:#x}");
    }
    assert_eq!(read32(&config, 0x00), 0x1042_1af4);
    assert_eq!(read32(&config, 0x08), 0x0180_0001);
    assert_eq!(read32(&config, 0x2c), 0x1100_1af4);
}

#[test]
fn a_bar_is_sized_by_writing_ones() {
    let mut config = function();
    let _ = write32(&mut config, 0x18, u32::MAX);
    assert_eq!(read32(&config, 0x18), 0xffff_f000);
    let _ = write32(&mut config, 0x10, u32::MAX);
    let _ = write32(&mut config, 0x14, u32::MAX);
    assert_eq!(read32(&config, 0x10), 0xffff_c000 | BAR_64_BIT);
    assert_eq!(read32(&config, 0x14), u32::MAX);
    for offset in [0x1c, 0x20, 0x24, 0x30] {
        let _ = write32(&mut config, offset, u32::MAX);
        assert_eq!(read32(&config, offset), 0, "no BAR at {offset:#x}");
    }
}

#[test]
fn bars_of_4_gib_and_more_have_no_writable_bits_below() {
    let mut config = ConfigSpace::new(&IDENTITY);
    config.add_bar(4, BarKind::Memory64, 1 << 33).unwrap();
    assert_eq!(config.write(0x20, &[0xff; 8]), Written::default());
    assert_eq!((read32(&config, 0x20), read32(&config, 0x24)), (BAR_64_BIT, 0xffff_fffe));
}

#[test]
fn bars_answer_when_memory_is_enabled() {
    let mut config = function();
    assert_eq!(config.bar_address(0), None);
    assert_eq!(config.write(COMMAND, &[0x02, 0]).effect(), Effect::MoveBars);
    assert_eq!(config.bar_address(0), Some(0x40_0000_4000));
    assert_eq!(config.bar_address(2), Some(0xc000_1000));
    assert_eq!((config.bar_address(1), config.bar_address(6)), (None, None));
    assert_eq!(config.write(COMMAND, &[0x06, 0]).effect(), Effect::None);
    assert!(config.write(COMMAND, &[0x04, 0]).bars);
    assert_eq!(config.bar_address(0), None);
}

#[test]
fn a_bar_moves_by_halves_when_it_is_enabled() {
    let mut config = function();
    let _ = config.write(COMMAND, &[0x02]);
    assert!(write32(&mut config, 0x10, 0x8000_0000).bars);
    assert_eq!(config.bar_address(0), Some(0x40_8000_0000));
    assert!(write32(&mut config, 0x14, 0).bars);
    assert_eq!(config.bar_address(0), Some(0x8000_0000));
    assert!(!write32(&mut config, 0x14, 0).bars, "nothing new");
    assert!(config.write(0x1a, &[0x00, 0xd0]).bars);
    assert_eq!(config.bar_address(2), Some(0xd000_1000));
}

#[test]
fn capabilities_are_found_in_the_order_they_were_added() {
    let mut config = function();
    let vendor = config.add_capability(9, &[16, 1, 2, 0xff], &[0, 0, 0x0f]).unwrap();
    assert_eq!(vendor, 0x4c, "MSI-X is 12 bytes");
    assert_eq!(config.add_capability(9, &[1], &[]).unwrap(), 0x54);
    let mut found = Vec::new();
    let mut at = read32(&config, CAPABILITIES) as usize & 0xff;
    while at != 0 {
        let header = read32(&config, at);
        found.push((at, header as u8));
        at = (header >> 8) as usize & 0xff;
    }
    assert_eq!(found, [(0x40, CAP_MSIX), (0x4c, 9), (0x54, 9)]);
    assert_eq!(read32(&config, COMMAND) >> 16 & 0x10, 0x10, "status says that there is a list");
    let _ = config.write(vendor, &[0; 6]);
    assert_eq!(read32(&config, vendor) >> 16, 0x0110);
    let _ = config.write(vendor + 4, &[0xff, 0]);
    assert_eq!(read32(&config, vendor + 4) & 0xffff, 0xff0f);
}

#[test]
fn msix_is_announced_and_its_control_is_passed_on() {
    let mut config = function();
    assert_eq!(read32(&config, 0x40) >> 16, 2);
    assert_eq!((read32(&config, 0x44), read32(&config, 0x48)), (0x1000, 0x1800));
    assert_eq!(config.write(0x42, &[0xff, 0xff]).msix_control, Some(0xc002));
    assert_eq!(config.write(0x42, &[0xff, 0xff]).msix_control, None);
    assert_eq!(write32(&mut config, 0x40, 0x8000_0000).msix_control, Some(0x8002));
}

#[test]
fn what_cannot_be_built_is_refused() {
    let mut config = function();
    let bad_bars = [
        (0, BarKind::Memory32, 0x1000),
        (1, BarKind::Memory32, 0x1000),
        (1, BarKind::Memory64, 0x1000),
        (5, BarKind::Memory64, 0x1000),
        (6, BarKind::Memory32, 0x1000),
        (255, BarKind::Memory32, 0x1000),
        (3, BarKind::Memory32, 0x1800),
        (3, BarKind::Memory32, 8),
        (3, BarKind::Memory32, 0),
        (3, BarKind::Memory32, 1 << 32),
    ];
    for (bar, kind, len) in bad_bars {
        assert_eq!(config.add_bar(bar, kind, len), Err(ConfigError::BadBar { bar, len }));
    }
    for (bar, address) in [(0, 0x1000), (1, 0x4000), (2, 1 << 32), (9, 0)] {
        assert_eq!(config.set_bar_address(bar, address), Err(ConfigError::BadAddress { bar, address }));
    }
    assert!(config.add_msix(&MSIX).is_err(), "twice");
    let layouts = [
        MsixLayout { vectors: 0, ..MSIX },
        MsixLayout { vectors: 2049, ..MSIX },
        MsixLayout { table_offset: 0x3ff0, ..MSIX },
        MsixLayout { table_offset: 4, ..MSIX },
        MsixLayout { pba_offset: u32::MAX - 7, ..MSIX },
        MsixLayout { pba_bar: 1, ..MSIX },
    ];
    for layout in layouts {
        let mut config = ConfigSpace::new(&IDENTITY);
        config.add_bar(0, BarKind::Memory64, 0x4000).unwrap();
        assert_eq!(config.add_msix(&layout), Err(ConfigError::BadMsix(layout)));
    }
    assert!(config.add_capability(9, &[0; 0xb2], &[]).is_ok(), "0x4c to the end");
    assert_eq!(config.add_capability(9, &[], &[]), Err(ConfigError::NoRoom { id: 9, len: 2 }));
}

#[test]
fn there_is_nothing_behind_256_bytes() {
    let mut config = function();
    let _ = config.write(0x100, &[0xff; 8]);
    assert_eq!(read32(&config, 0x100), 0);
    assert_eq!(read32(&config, 0xffe), 0xffff_0000);
    assert_eq!(read32(&config, usize::MAX - 1), u32::MAX);
}

proptest! {
    /// Whatever is written: what is not writable stays, and BARs are aligned.
    #[test]
    fn any_writes_keep_what_is_not_the_guests(
        writes in prop::collection::vec((0usize..0x110, prop::collection::vec(any::<u8>(), 0..9)), 0..200),
    ) {
        let fresh = function();
        let mut config = function();
        for (offset, data) in writes {
            let before = config.bar_addresses();
            let written = config.write(offset, &data);
            prop_assert_eq!(written.bars, before != config.bar_addresses());
            for (at, byte) in config.bytes.iter().enumerate() {
                prop_assert_eq!((byte ^ fresh.bytes[at]) & !config.writable[at], 0);
            }
            for (bar, address) in (0..).zip(config.bar_addresses()) {
                if let (Some(address), Some((_, len))) = (address, config.bar(bar)) {
                    prop_assert_eq!(address % len, 0);
                }
            }
        }
    }

    #[test]
    fn any_access_is_survived(offset: usize, mut data in prop::collection::vec(any::<u8>(), 0..9)) {
        let mut config = function();
        let _ = config.write(offset, &data);
        config.read(offset, &mut data);
    }

    /// What a guest made of it is restored as it was, and nothing that it could not have made.
    #[test]
    fn what_a_guest_can_write_is_restored_and_nothing_else(
        writes in prop::collection::vec((0usize..260, prop::collection::vec(any::<u8>(), 0..5)), 0..20),
        at in 0usize..256, bit in 0u8..8,
    ) {
        let mut config = function();
        for (offset, data) in writes {
            let _ = config.write(offset, &data);
        }
        let saved = config.save();
        let mut new = function();
        prop_assert_eq!(new.restore(&saved), Ok(config.read_msix_control().unwrap()));
        prop_assert_eq!(new.save(), saved.clone());
        prop_assert_eq!(new.bar_address(0), config.bar_address(0));
        let mut spoilt = saved;
        spoilt.0[at] ^= 1 << bit;
        let writable = new.writable[at] & 1 << bit != 0;
        prop_assert_eq!(function().restore(&spoilt).is_ok(), writable);
    }
}
