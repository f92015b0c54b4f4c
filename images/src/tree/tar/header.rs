//! [`Header`]: the block of 512 bytes before every entry.

use super::Kind;

/// What everything in an archive is a multiple of, in bytes.
pub const BLOCK: usize = 512;

/// A block whose checksum is right.
pub struct Header([u8; BLOCK]);

impl Header {
    /// `None` if the checksum is not that of the block: the sum of its bytes, with the checksum itself taken as spaces. Some old
    /// programs took bytes as signed.
    pub fn parse(block: [u8; BLOCK]) -> Option<Self> {
        let header = Self(block);
        let stored = number(header.field(148, 8))?;
        let bytes = || {
            header.0.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte })
        };
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        (stored == unsigned || i64::try_from(stored).ok() == Some(signed)).then_some(header)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn field(&self, at: usize, length: usize) -> &[u8] {
        self.0.get(at..at + length).unwrap_or_default()
    }

    fn text(&self, at: usize, length: usize) -> &[u8] {
        self.field(at, length).split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Of the data that follows.
    pub fn size(&self) -> Option<u64> {
        number(self.field(124, 12))
    }

    pub fn mode(&self) -> Option<u64> {
        // Some programs put the kind of the file into it, and a number of that size may be negative in theirs.
        number(self.field(100, 8)).map(|mode| mode & 0o7777)
    }

    pub fn uid(&self) -> Option<u64> {
        number(self.field(108, 8))
    }

    pub fn gid(&self) -> Option<u64> {
        number(self.field(116, 8))
    }

    /// A time that is none is that of 1970.
    pub fn mtime(&self) -> i64 {
        number(self.field(136, 12)).and_then(|time| i64::try_from(time).ok()).unwrap_or_default()
    }

    /// The byte that says what it is.
    pub fn kind(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or_default()
    }

    /// What this byte, and the name, mean for an entry.
    pub fn entry_kind(&self, path: &[u8]) -> Kind {
        match self.kind() {
            // Before POSIX a directory was a file whose name ends in a slash.
            b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => Kind::Other,
        }
    }

    /// The name, with what POSIX puts before it.
    pub fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = self.text(345, 155);
        if self.field(257, 6) != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }
}

/// Octal digits, or GNU's way for what is too large for them: the highest bit, then the number with its highest byte first.
pub fn number(field: &[u8]) -> Option<u64> {
    if let Some((first @ 0x80..=0xbf, rest)) = field.split_first() {
        let mut value = u64::from(first & 0x3f);
        for byte in rest {
            value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        return Some(value);
    }
    let digits: Vec<u8> = field.iter().copied().skip_while(|byte| *byte == b' ').collect();
    let mut value = 0_u64;
    for (at, byte) in digits.iter().enumerate() {
        match byte {
            b'0'..=b'7' => value = value.checked_mul(8)?.checked_add(u64::from(byte - b'0'))?,
            0 | b' ' => {
                return digits.get(at..)?.iter().all(|byte| matches!(byte, 0 | b' ')).then_some(value);
            }
            _ => return None,
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"77777777777\0"), Some(0o77777777777));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]), Some((2 << 32) + 1));
        assert_eq!(number(&[0xff; 12]), None, "negative");
        assert_eq!(number(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), None, "more than 64 bits");
        assert_eq!(number(b"12x4567\0"), None);
        assert_eq!(number(b"12 4567\0"), None);
    }
}
