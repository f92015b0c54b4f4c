//! Disks with contents that host and bare-metal guests agree on: a sector is the output of a splitmix64 generator
//! whose seed is the sector's number, plus 0x1000 where the guest wrote it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes in a sector.
pub const SECTOR: usize = 512;

/// The contents of a sector whose generator has this seed.
#[must_use]
pub fn sector(seed: u64) -> Vec<u8> {
    random(seed, SECTOR)
}

/// `len` bytes of the generator with this seed.
#[must_use]
pub fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31).to_le_bytes()
    };
    std::iter::repeat_with(next).take(len.div_ceil(8)).flatten().take(len).collect()
}

/// Make a disk of `sectors` sectors: the first 64 with their pattern, the next 192 full of 0xee, the rest empty.
///
/// # Errors
/// If the file cannot be written.
pub fn make(path: &Path, sectors: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    for number in 0..64 {
        file.write_all(&sector(number))?;
    }
    file.write_all(&[0xee; 192 * SECTOR])?;
    file.set_len(sectors * SECTOR as u64)
}

/// Read `count` sectors.
///
/// # Errors
/// If they are not there.
pub fn read(path: &Path, first: u64, count: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(first * SECTOR as u64))?;
    let mut bytes = vec![0; count * SECTOR];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Whether sectors `first..first + count` hold the pattern of the guest.
///
/// # Errors
/// If they are not there.
pub fn is_written(path: &Path, first: u64, count: usize) -> io::Result<bool> {
    let wanted: Vec<u8> = (first..).take(count).flat_map(|number| sector(0x1000 + number)).collect();
    Ok(read(path, first, count)? == wanted)
}
