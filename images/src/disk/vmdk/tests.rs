use super::super::tests::{all_of, look_into, put};
use super::sparse::{Header, Sparse};
use super::*;

use std::io::Write as _;

const GRAIN: usize = 8 * 512;

/// The header of a disk of 10 grains and a half, with tables of 4 entries, its directory in that sector.
fn header(directory: u64, packed: bool) -> Vec<u8> {
    let mut header = vec![0; 512];
    put(&mut header, 0, MAGIC);
    put(&mut header, 4, &3_u32.to_le_bytes());
    put(&mut header, 8, &(4_u32 | if packed { 3 << 16 } else { 0 }).to_le_bytes());
    put(&mut header, 12, &84_u64.to_le_bytes());
    put(&mut header, 20, &8_u64.to_le_bytes());
    put(&mut header, 44, &4_u32.to_le_bytes());
    put(&mut header, 56, &directory.to_le_bytes());
    put(&mut header, 77, &u16::from(packed).to_le_bytes());
    header
}

/// Grains 0 and 10 are there, 1 is zeroes, nothing else is. Tables are in sectors 2 and 3.
fn sample() -> Vec<u8> {
    let mut file = vec![0; 24 * 512];
    put(&mut file, 0, &header(1, false));
    put(&mut file, 512, &2_u32.to_le_bytes());
    put(&mut file, 512 + 8, &3_u32.to_le_bytes());
    put(&mut file, 1024, &8_u32.to_le_bytes());
    put(&mut file, 1024 + 4, &1_u32.to_le_bytes());
    put(&mut file, 1536 + 8, &16_u32.to_le_bytes());
    file[8 * 512..16 * 512].fill(5);
    file[16 * 512..24 * 512].fill(6);
    file
}

/// The same, packed, with the directory's place in the footer.
fn packed() -> Vec<u8> {
    let mut file = header(u64::MAX, true);
    file.resize(8 * 512, 0);
    let mut places = Vec::new();
    for (number, byte, len) in [(0_u64, 5_u8, GRAIN), (10, 6, GRAIN / 2)] {
        places.push((file.len() / 512) as u32);
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&vec![byte; len]).unwrap();
        let bytes = encoder.finish().unwrap();
        file.extend((number * 8).to_le_bytes());
        file.extend((bytes.len() as u32).to_le_bytes());
        file.extend(bytes);
        file.resize(file.len().next_multiple_of(512), 0);
    }
    let directory = file.len() as u64 / 512;
    let mut tables = vec![0; 3 * 512];
    put(&mut tables, 0, &(directory as u32 + 1).to_le_bytes());
    put(&mut tables, 8, &(directory as u32 + 2).to_le_bytes());
    put(&mut tables, 512, &places[0].to_le_bytes());
    put(&mut tables, 512 + 4, &1_u32.to_le_bytes());
    put(&mut tables, 1024 + 8, &places[1].to_le_bytes());
    file.extend(tables);
    file.extend(header(directory, true));
    file.extend([0; 512]);
    file
}

/// Read all of it.
fn read(file: Vec<u8>) -> io::Result<Vec<u8>> {
    all_of(&mut Sparse::open(file)?)
}

#[test]
fn grains_are_found_packed_or_not() {
    for file in [sample(), packed()] {
        let content = read(file).unwrap();
        assert_eq!(content.len(), 84 * 512);
        assert!(content[..GRAIN].iter().all(|byte| *byte == 5));
        assert!(content[GRAIN..10 * GRAIN].iter().all(|byte| *byte == 0));
        assert!(content[10 * GRAIN..].iter().all(|byte| *byte == 6));
    }
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let refused = |at: usize, bytes: &[u8]| {
        let mut header = header(1, false);
        put(&mut header, at, bytes);
        Header::parse(&header).unwrap_err().to_string()
    };
    assert!(refused(4, &[9]).contains("version"));
    assert!(refused(12, &u64::MAX.to_le_bytes()).contains("capacity"));
    assert!(refused(12, &(1_u64 << 40).to_le_bytes()).contains("no such disk"));
    assert!(refused(12, &[0; 8]).contains("capacity"));
    assert!(refused(20, &3_u64.to_le_bytes()).contains("grain size"));
    assert!(refused(20, &(1_u64 << 40).to_le_bytes()).contains("grain size"));
    assert!(refused(44, &u32::MAX.to_le_bytes()).contains("grain tables"));
    assert!(refused(56, &[0; 8]).contains("directory"));
    assert!(refused(72, &[1]).contains("not closed"));
    assert!(refused(77, &[2]).contains("compression"));
    assert!(Header::parse(&header(1, false)[..60]).is_err());
    let mut file = sample();
    put(&mut file, 56, &1000_u64.to_le_bytes());
    assert!(read(file).unwrap_err().to_string().contains("grain directory"));
    let mut file = sample();
    put(&mut file, 1024, &1000_u32.to_le_bytes());
    assert!(read(file).unwrap_err().to_string().contains("a grain at"));
}

#[test]
fn a_packed_grain_must_be_the_one_that_was_looked_for() {
    let mut file = packed();
    file[8 * 512] = 8;
    assert!(read(file).unwrap_err().to_string().contains("packed grain"));
    let mut file = packed();
    put(&mut file, 8 * 512 + 8, &u32::MAX.to_le_bytes());
    assert!(read(file).unwrap_err().to_string().contains("packed grain"));
    let mut file = packed();
    let footer = file.len() - 1024;
    put(&mut file, footer + 20, &16_u64.to_le_bytes());
    assert!(read(file).unwrap_err().to_string().contains("footer"));
}

#[test]
fn a_descriptor_names_one_file_and_no_parent() {
    let parse = |text: &str| Descriptor::parse(text.as_bytes());
    let text = "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n\
                RW 20480 FLAT \"a b-flat.vmdk\" 128\n\nddb.adapterType = \"ide\"\n\0\0trailing";
    let extent = descriptor::Extent { sectors: 20480, offset: 128 };
    assert_eq!(parse(text).unwrap().kind, Kind::Flat { extent, name: "a b-flat.vmdk".to_owned() });
    assert_eq!(
        parse("RW 5 SPARSE \"x.vmdk\"").unwrap().kind,
        Kind::Sparse { sectors: 5, name: "x.vmdk".to_owned() }
    );
    for text in [
        "",
        "RW",
        "RW x FLAT \"a\" 0",
        "RW 1 FLAT \"a",
        "RW 1 FLAT \"a\" x",
        "RW 1 ZERO",
        "RW 1 SPARSE \"a\"\nRW 1 SPARSE \"b\"",
        "parentCID=12345678\nRW 1 SPARSE \"a\"",
        "parentFileNameHint=\"/etc/passwd\"\nRW 1 SPARSE \"a\"",
        "encryption.data = \"x\"\nRW 1 SPARSE \"a\"",
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn hostile_files_end(
        changes in proptest::collection::vec((0_usize..5120, 0_u8..), 1..12),
        is_packed in proptest::bool::ANY,
    ) {
        let mut file = if is_packed { packed() } else { sample() };
        let len = file.len();
        for (at, byte) in changes {
            file[at % len] = byte;
        }
        if let Ok(mut disk) = Sparse::open(file) {
            let size = disk.size();
            look_into(&mut disk, &[0, 4096, size / 2 / 512 * 512, size - 512]);
        }
    }

    #[test]
    fn hostile_descriptors_end(text in "(RW |FLAT |SPARSE |\"|[0-9]{1,20}| |\n|parentCID=|\\PC){0,40}") {
        let _ = Descriptor::parse(text.as_bytes());
    }
}
