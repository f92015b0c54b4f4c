//! The newest bytes of a stream, bounded.

use std::collections::VecDeque;

/// Keeps the last bytes that were pushed, and forgets older ones.
#[derive(Debug)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    most: usize,
    forgets: bool,
}

impl Ring {
    /// An empty one that keeps `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { bytes: VecDeque::new(), most, forgets: false }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let kept = bytes.get(bytes.len().saturating_sub(self.most)..).unwrap_or_default();
        let excess = (self.bytes.len() + kept.len()).saturating_sub(self.most);
        self.forgets |= excess > 0 || kept.len() < bytes.len();
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    /// All that is kept, oldest first.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.bytes.iter().copied().collect()
    }

    /// All that is kept, from the start of a line: half a line may begin in the middle of a character or of an escape
    /// sequence. Without any line's end, all of it.
    pub(super) fn whole_lines(&self) -> Vec<u8> {
        let mut bytes = self.bytes();
        if self.forgets
            && let Some(end) = bytes.iter().position(|&byte| byte == b'\n')
        {
            bytes.drain(..=end);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bytes_are_kept_and_no_more() {
        let mut ring = Ring::new(8);
        for piece in ["abc", "defgh", "", "ij"] {
            ring.push(piece.as_bytes());
        }
        assert_eq!(ring.bytes(), b"cdefghij");
        ring.push(b"0123456789");
        assert_eq!(ring.bytes(), b"23456789");
    }

    #[test]
    fn a_line_whose_start_is_forgotten_is_left_out() {
        let mut ring = Ring::new(8);
        ring.push(b"ab\ncd\n");
        assert_eq!(ring.whole_lines(), b"ab\ncd\n");
        ring.push(b"efg");
        assert_eq!(ring.whole_lines(), b"cd\nefg");
        ring.push(b"hijklmno");
        assert_eq!(ring.whole_lines(), b"hijklmno");
    }
}
