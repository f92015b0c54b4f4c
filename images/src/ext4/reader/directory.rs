//! [`Name`]: what is in a directory.

use rustix::fs::FileType;

use super::{Inode, ReadError, Reader, damaged, u16_at, u32_at};

/// The largest directory that is read, in bytes: millions of names.
const LARGEST: u64 = 128 << 20;
/// An entry without its name, in bytes.
const ENTRY: usize = 8;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// It: without a slash or a zero, and neither `.` nor `..`.
    pub name: Vec<u8>,
    /// The number of the inode that it leads to.
    pub inode: u32,
}

impl Reader<'_> {
    /// The names in a directory, in order. Its index is not looked at: it lies in blocks without names.
    ///
    /// # Errors
    /// If it is no directory, or cannot be read.
    pub fn names(&mut self, directory: &Inode) -> Result<Vec<Name>, ReadError> {
        let block = self.shape.block;
        if directory.kind != FileType::Directory || !directory.size.is_multiple_of(block) {
            return Err(damaged("a directory"));
        }
        if directory.size > LARGEST {
            return Err(ReadError::Unsupported("a directory of more than 128 MiB"));
        }
        let mut names = Vec::new();
        let mut content = self.content(directory)?;
        // At most 64 KiB.
        let mut bytes = vec![0; usize::try_from(block).unwrap_or_default()];
        for _ in 0..directory.size.checked_div(block).unwrap_or_default() {
            content.fill(&mut bytes)?;
            parse(&bytes, &mut names)?;
        }
        names.sort();
        Ok(names)
    }
}

/// The names in a block.
fn parse(block: &[u8], names: &mut Vec<Name>) -> Result<(), ReadError> {
    let wrong = || damaged("a directory");
    let mut rest = block;
    // A hole: no sound directory has one, but it has no names either.
    if block.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    while !rest.is_empty() {
        let inode = u32_at(rest, 0)?;
        let length = match u16_at(rest, 4)? {
            // Blocks of 64 KiB have entries that are too long for the field.
            0 | 0xffff => rest.len(),
            length => usize::from(length),
        };
        // Without kinds in directories, this is the higher byte of a name's length, and always zero.
        let name = usize::from(*rest.get(6).ok_or_else(wrong)?);
        if length < ENTRY || !length.is_multiple_of(4) || ENTRY.saturating_add(name) > length {
            return Err(wrong());
        }
        let entry = rest.get(..length).ok_or_else(wrong)?;
        rest = rest.get(length..).unwrap_or_default();
        let name = entry.get(ENTRY..ENTRY.saturating_add(name)).ok_or_else(wrong)?;
        if inode == 0 || matches!(name, b"." | b"..") {
            continue;
        }
        if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err(damaged("a name in a directory"));
        }
        names.push(Name { name: name.to_vec(), inode });
    }
    Ok(())
}
