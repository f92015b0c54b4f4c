//! Bytes for streams that host and guests agree on, and a hash of what came.
//!
//! The bytes of a stream are those of a 64-bit counter run through a mixer, so that a lost, doubled or moved piece changes
//! every one after it. The hash is no cryptography: it has to keep up with a network on an emulated processor.

use std::io::{self, Read, Write};

/// How much is handed over at once.
const CHUNK: usize = 64 * 1024;

/// The stream with this seed, endless.
#[derive(Debug)]
pub struct Noise {
    counter: u64,
    left: [u8; 8],
    used: usize,
}

impl Noise {
    /// From its start.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { counter: seed << 32, left: [0; 8], used: 8 }
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        let mixed = self.counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ mixed >> 29
    }

    /// The next bytes of it.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            if self.used == 0 || self.used == 8 {
                let whole = bytes.len() / 8 * 8;
                let (words, rest) = bytes.split_at_mut(whole);
                for word in words.chunks_exact_mut(8) {
                    word.copy_from_slice(&self.next().to_le_bytes());
                }
                bytes = rest;
                if bytes.is_empty() {
                    return;
                }
                self.left = self.next().to_le_bytes();
                self.used = 0;
            }
            let count = bytes.len().min(8 - self.used);
            bytes[..count].copy_from_slice(&self.left[self.used..self.used + count]);
            self.used += count;
            bytes = &mut bytes[count..];
        }
    }
}

/// A running hash.
#[derive(Debug, Default)]
pub struct Hash {
    state: u64,
    length: u64,
    word: u64,
}

impl Hash {
    /// Take more bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            if self.length.is_multiple_of(8) {
                let (words, rest) = bytes.split_at(bytes.len() / 8 * 8);
                for word in words.chunks_exact(8) {
                    let mut whole = [0; 8];
                    whole.copy_from_slice(word);
                    self.mix(u64::from_le_bytes(whole));
                }
                self.length += words.len() as u64;
                bytes = rest;
                if bytes.is_empty() {
                    return;
                }
            }
            self.word |= u64::from(bytes[0]) << (8 * (self.length % 8));
            self.length += 1;
            bytes = &bytes[1..];
            if self.length.is_multiple_of(8) {
                let word = std::mem::take(&mut self.word);
                self.mix(word);
            }
        }
    }

    fn mix(&mut self, word: u64) {
        self.state = (self.state ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31);
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        let mut end = Self { ..*self };
        end.mix(self.word ^ self.length);
        end.state
    }

    /// How many bytes there were.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// Write `length` bytes of the stream with this seed.
///
/// # Errors
/// If `to` does not take them.
pub fn send(to: &mut impl Write, seed: u64, length: u64) -> io::Result<u64> {
    let (mut noise, mut hash) = (Noise::new(seed), Hash::default());
    let mut buffer = vec![0; CHUNK];
    let mut left = length;
    while left > 0 {
        let piece = &mut buffer[..left.min(CHUNK as u64) as usize];
        noise.fill(piece);
        hash.add(piece);
        to.write_all(piece)?;
        left -= piece.len() as u64;
    }
    to.flush()?;
    Ok(hash.value())
}

/// Read to the end.
///
/// # Errors
/// If `from` breaks.
pub fn receive(from: &mut impl Read) -> io::Result<Hash> {
    let mut hash = Hash::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hash),
            Ok(count) => hash.add(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_no_difference() {
        let mut whole = vec![0; 1000];
        Noise::new(7).fill(&mut whole);
        let (mut noise, mut hash) = (Noise::new(7), Hash::default());
        let mut pieces = vec![0; 1000];
        let mut at = 0;
        for size in (1..).take(44) {
            let end = (at + size).min(1000);
            noise.fill(&mut pieces[at..end]);
            hash.add(&pieces[at..end]);
            at = end;
        }
        assert_eq!(at, 990);
        noise.fill(&mut pieces[at..]);
        hash.add(&pieces[at..]);
        assert_eq!(pieces, whole);
        let mut again = Hash::default();
        again.add(&whole);
        assert_eq!(hash.value(), again.value());
        assert_eq!(send(&mut io::sink(), 7, 1000).unwrap(), again.value());
        assert_eq!(receive(&mut whole.as_slice()).unwrap().value(), again.value());
    }

    #[test]
    fn what_is_lost_or_moved_shows() {
        let hash = |bytes: &[u8]| receive(&mut &*bytes).unwrap().value();
        let mut bytes = vec![0; 4096];
        Noise::new(1).fill(&mut bytes);
        let right = hash(&bytes);
        assert_ne!(hash(&bytes[..4095]), right);
        assert_ne!(hash(&bytes[8..]), right);
        bytes.swap(8, 16);
        assert_ne!(hash(&bytes), right);
        assert_ne!(hash(&[]), hash(&[0]));
    }
}
