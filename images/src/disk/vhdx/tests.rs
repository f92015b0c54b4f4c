use super::*;

use super::super::bytes::Guid;
use super::super::tests::{all_of, look_into, put};
use super::tables::crc32c;

/// Where the sample has its regions, in bytes.
const METADATA: usize = 1 << 20;
const BAT: usize = 2 << 20;

/// Write the checksums that fit, as whoever forges a file does.
fn seal(file: &mut [u8]) {
    for (at, len) in [(64 << 10, 4096), (128 << 10, 4096), (192 << 10, 64 << 10), (256 << 10, 64 << 10)] {
        put(file, at + 4, &[0; 4]);
        let sum = crc32c(&file[at..at + len]);
        put(file, at + 4, &sum.to_le_bytes());
    }
}

/// A disk of 3 MiB in blocks of 1 MiB, of which the second one is in the file.
fn sample() -> Vec<u8> {
    let mut file = vec![0; 4 << 20];
    put(&mut file, 0, MAGIC);
    for (at, sequence) in [(64 << 10, 1_u64), (128 << 10, 2)] {
        put(&mut file, at, b"head");
        put(&mut file, at + 8, &sequence.to_le_bytes());
        put(&mut file, at + 66, &1_u16.to_le_bytes());
    }
    let regions = [
        (Guid::new(0x2DC2_7766, 0xF623, 0x4200, 0x9D64, 0x115E_9BFD_4A08), BAT),
        (Guid::new(0x8B7C_A206, 0x4790, 0x4B9A, 0xB8FE, 0x575F_050F_886E), METADATA),
    ];
    for at in [192 << 10, 256 << 10] {
        put(&mut file, at, b"regi");
        put(&mut file, at + 8, &2_u32.to_le_bytes());
        for (number, (guid, place)) in regions.iter().enumerate() {
            let entry = at + 16 + number * 32;
            put(&mut file, entry, &guid.0);
            put(&mut file, entry + 16, &(*place as u64).to_le_bytes());
            put(&mut file, entry + 24, &(1_u32 << 20).to_le_bytes());
            put(&mut file, entry + 28, &1_u32.to_le_bytes());
        }
    }
    put(&mut file, METADATA, b"metadata");
    let items: [(Guid, &[u8]); 3] = [
        (Guid::new(0xCAA1_6737, 0xFA36, 0x4D43, 0xB3B6, 0x33F0_AA44_E76B), &[0, 0, 16, 0, 0, 0, 0, 0]),
        (Guid::new(0x2FA5_4224, 0xCD1B, 0x4876, 0xB211, 0x5DBE_D83B_F4B8), &[0, 0, 48, 0, 0, 0, 0, 0]),
        (Guid::new(0x8141_BF1D, 0xA96F, 0x4709, 0xBA47, 0xF233_A8FA_AB5F), &[0, 2, 0, 0]),
    ];
    put(&mut file, METADATA + 10, &3_u16.to_le_bytes());
    for (number, (guid, value)) in items.iter().enumerate() {
        let (entry, place) = (METADATA + 32 + number * 32, (64 << 10) + number * 16);
        put(&mut file, entry, &guid.0);
        put(&mut file, entry + 16, &(place as u32).to_le_bytes());
        put(&mut file, entry + 20, &(value.len() as u32).to_le_bytes());
        put(&mut file, entry + 24, &4_u32.to_le_bytes());
        put(&mut file, METADATA + place, value);
    }
    put(&mut file, BAT + 8, &(3_u64 << 20 | 6).to_le_bytes());
    file[3 << 20..4 << 20].fill(7);
    seal(&mut file);
    file
}

/// Read all of it.
fn read(file: Vec<u8>) -> io::Result<Vec<u8>> {
    all_of(&mut Vhdx::open(file)?)
}

fn refused(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut file = sample();
    change(&mut file);
    seal(&mut file);
    read(file).unwrap_err().to_string()
}

#[test]
fn blocks_are_found() {
    let content = read(sample()).unwrap();
    assert_eq!(content.len(), 3 << 20);
    assert!(content[1 << 20..2 << 20].iter().all(|byte| *byte == 7));
    assert!(content[..1 << 20].iter().chain(&content[2 << 20..]).all(|byte| *byte == 0));
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn what_is_not_whole_by_itself_is_refused() {
    let item = |number: usize| METADATA + (64 << 10) + number * 16;
    assert!(refused(|file| file[item(0) + 4] = 2).contains("another file"));
    let parent = Guid::new(0xA8D3_5F2D, 0xB30B, 0x454D, 0xABF7, 0xD3D8_4834_AB0C);
    let with_parent = |file: &mut Vec<u8>| {
        put(file, METADATA + 10, &4_u16.to_le_bytes());
        put(file, METADATA + 32 + 3 * 32, &parent.0);
    };
    assert!(refused(with_parent).contains("another file"));
    assert!(refused(|file| file[BAT] = 7).contains("another file"));
    assert!(refused(|file| file[(128 << 10) + 48] = 1).contains("log is not replayed"));
    // The header with the lower number does not count.
    let mut file = sample();
    file[(64 << 10) + 48] = 1;
    seal(&mut file);
    read(file).unwrap();
    assert!(refused(|file| put(file, BAT, &(4_u64 << 20 | 6).to_le_bytes())).contains("outside the file"));
    assert!(refused(|file| put(file, BAT, &6_u64.to_le_bytes())).contains("outside the file"));
    assert!(refused(|file| put(file, item(1), &(1_u64 << 60).to_le_bytes())).contains("no such disk"));
    assert!(
        refused(|file| put(file, item(1), &(1_u64 << 42).to_le_bytes())).contains("block allocation table")
    );
    assert!(refused(|file| put(file, item(2), &4096_u32.to_le_bytes())).contains("4096"));
    assert!(refused(|file| put(file, item(0), &3_u32.to_le_bytes())).contains("block size"));
}

#[test]
fn sums_are_looked_at() {
    let mut file = sample();
    file[(64 << 10) + 100] ^= 1;
    file[(192 << 10) + 100] ^= 1;
    assert!(read(file.clone()).is_ok(), "the second copies are whole");
    file[(128 << 10) + 100] ^= 1;
    assert!(read(file).unwrap_err().to_string().contains("headers"));
}

proptest::proptest! {
    #[test]
    fn hostile_files_end(changes in proptest::collection::vec((0_usize..400, 0_u8..), 1..12), place in 0_usize..6) {
        let mut file = sample();
        let start = [64 << 10, 192 << 10, METADATA, METADATA + (64 << 10), BAT, 0][place];
        for (at, byte) in changes {
            file[start + at] = byte;
        }
        seal(&mut file);
        // A size that was changed may be large: what counts is that opening it and looking into it end well.
        if let Ok(mut disk) = Vhdx::open(file) {
            let size = disk.size();
            look_into(&mut disk, &[0, 1 << 20, size / 2, size - 512]);
        }
    }
}
