//! Numbers in bytes that nobody vouches for, and files that are read at an offset.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use super::error::Malformed;

/// A part of a file, called `what` in messages. All numbers are little-endian, as in every format but qcow2.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub bytes: &'a [u8],
    pub what: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    /// `len` bytes at `at`.
    pub(super) fn part(&self, at: usize, len: usize) -> Result<&'a [u8], Malformed> {
        let part = at.checked_add(len).and_then(|end| self.bytes.get(at..end));
        part.ok_or(Malformed::Outside { what: self.what, offset: at as u64 })
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Malformed> {
        let part = self.part(at, N)?;
        part.try_into().map_err(|_| Malformed::Outside { what: self.what, offset: at as u64 })
    }

    pub(super) fn u16(&self, at: usize) -> Result<u16, Malformed> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&self, at: usize) -> Result<u32, Malformed> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, at: usize) -> Result<u64, Malformed> {
        self.array(at).map(u64::from_le_bytes)
    }

    pub(super) fn guid(&self, at: usize) -> Result<Guid, Malformed> {
        self.array(at).map(Guid)
    }
}

/// A GUID as it lies in a file: its first three parts are little-endian (UEFI 2.10, appendix A).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Guid(pub [u8; 16]);

impl Guid {
    pub(super) const NIL: Self = Self([0; 16]);

    /// Of the five groups of its text.
    pub(super) const fn new(a: u32, b: u16, c: u16, d: u16, e: u64) -> Self {
        let (a, b, c, d, e) =
            (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes(), e.to_be_bytes());
        Self([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], e[2], e[3], e[4], e[5], e[6], e[7]])
    }
}

impl std::fmt::Display for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        for (index, byte) in order.iter().filter_map(|at: &usize| self.0.get(*at)).enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// What is read at offsets: a file, or in tests bytes.
pub(super) trait Stored {
    /// In bytes.
    fn length(&self) -> io::Result<u64>;

    /// Fill `data` from `offset` on; `UnexpectedEof` if there is less.
    fn fill(&self, data: &mut [u8], offset: u64) -> io::Result<()>;

    /// `len` bytes at `offset`, which are called `what` if they are not there. The caller has bounded `len`.
    fn bytes(&self, offset: u64, len: usize, what: &'static str) -> io::Result<Vec<u8>> {
        if offset.checked_add(len as u64).is_none_or(|end| self.length().is_ok_and(|length| end > length)) {
            return Err(Malformed::Outside { what, offset }.into());
        }
        let mut bytes = vec![0; len];
        self.fill(&mut bytes, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Malformed::Outside { what, offset }.into(),
            _ => error,
        })?;
        Ok(bytes)
    }
}

impl Stored for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn fill(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(data, offset)
    }
}

#[cfg(test)]
impl Stored for Vec<u8> {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn fill(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| ErrorKind::UnexpectedEof)?;
        let part = start.checked_add(data.len()).and_then(|end| self.get(start..end));
        data.copy_from_slice(part.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
