//! [`Writer`]: an archive in POSIX's format.

use std::io::{self, Read, Write};

use super::header::BLOCK;
use super::{Entry, Kind};

/// An archive that is being written.
pub struct Writer<W> {
    into: W,
}

impl<W: Write> Writer<W> {
    pub fn new(into: W) -> Self {
        Self { into }
    }

    /// Writes an entry with as many bytes as it says: what `data` has too few of is zeroes, so that a file which shrinks meanwhile
    /// spoils nothing behind it.
    pub fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> io::Result<()> {
        let records = records(entry);
        if !records.is_empty() {
            let length = records.len() as u64;
            self.into.write_all(&block(b"pax", b'x', length, entry))?;
            self.into.write_all(&records)?;
            self.fill(length)?;
        }
        let kind = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
            Kind::Device | Kind::Other => return Err(io::ErrorKind::Unsupported.into()),
        };
        self.into.write_all(&block(&entry.path, kind, entry.stored, entry))?;
        let copied = io::copy(&mut data.take(entry.stored), &mut self.into)?;
        io::copy(&mut io::repeat(0).take(entry.stored.saturating_sub(copied)), &mut self.into)?;
        self.fill(entry.stored)
    }

    /// Writes the end.
    pub fn finish(mut self) -> io::Result<()> {
        self.into.write_all(&[0; 2 * BLOCK])?;
        self.into.flush()
    }

    /// Fills up to a block.
    fn fill(&mut self, length: u64) -> io::Result<()> {
        let used = usize::try_from(length % BLOCK as u64).unwrap_or_default();
        let rest = if used == 0 { 0 } else { BLOCK - used };
        self.into.write_all([0; BLOCK].get(..rest).unwrap_or_default())
    }
}

/// A header. What does not fit is cut off, and stands in records before it.
fn block(path: &[u8], kind: u8, size: u64, entry: &Entry) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, width: usize, bytes: &[u8]| {
        let bytes = bytes.get(..width).unwrap_or(bytes);
        if let Some(field) = block.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, 100, path);
    put(100, 8, &octal(u64::from(entry.mode), 7));
    put(108, 8, &octal(u64::from(entry.uid), 7));
    put(116, 8, &octal(u64::from(entry.gid), 7));
    put(124, 12, &octal(size, 11));
    put(136, 12, &octal(u64::try_from(entry.mtime.0).unwrap_or_default(), 11));
    put(148, 8, b"        ");
    put(156, 1, &[kind]);
    put(157, 100, &entry.link);
    put(257, 8, b"ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    if let Some(field) = block.get_mut(148..155) {
        field.copy_from_slice(&[&octal(sum, 6)[..], b"\0"].concat());
    }
    block
}

/// So many octal digits, or zero if the number has more.
fn octal(value: u64, digits: usize) -> Vec<u8> {
    let fits = value.checked_shr(3 * digits as u32).is_none_or(|rest| rest == 0);
    format!("{:0digits$o}", if fits { value } else { 0 }).into_bytes()
}

/// Records for what has no place in a header.
fn records(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut put = |key: &[u8], value: &[u8]| record(&mut records, key, value);
    // A header has no place for the zero behind a name of its whole width; all readers know that, but not all writers' paths.
    if entry.path.len() > 100 {
        put(b"path", &entry.path);
    }
    if entry.link.len() > 100 {
        put(b"linkpath", &entry.link);
    }
    if entry.stored >> 33 != 0 {
        put(b"size", entry.stored.to_string().as_bytes());
    }
    for (key, id) in [(b"uid", entry.uid), (b"gid", entry.gid)] {
        if id >> 21 != 0 {
            put(key, id.to_string().as_bytes());
        }
    }
    let (seconds, nanoseconds) = entry.mtime;
    match (seconds, nanoseconds) {
        (0..=0o777_7777_7777, 0) => {}
        (0.., nanoseconds) => put(b"mtime", format!("{seconds}.{nanoseconds:09}").as_bytes()),
        (_, 0) => put(b"mtime", seconds.to_string().as_bytes()),
        // Nanoseconds count upwards, the digits of a negative number do not.
        (_, nanoseconds) => {
            let text = format!("-{}.{:09}", -(seconds + 1), 1_000_000_000_u32.saturating_sub(nanoseconds));
            put(b"mtime", text.as_bytes());
        }
    }
    for (name, value) in &entry.xattrs {
        put(&[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    records
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.extend_from_slice(&[b" ", key, b"=", value, b"\n"].concat());
}
