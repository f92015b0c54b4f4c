//! Extended attributes: behind an inode, and in a block of their own.

use super::{Inode, ReadError, Reader, damaged, u16_at, u32_at};

/// What attributes begin with, wherever they are.
const MAGIC: u32 = 0xea02_0000;
/// What a block of attributes begins with, in bytes.
const HEADER: usize = 32;
/// An entry without its name, in bytes.
const ENTRY: usize = 16;

/// An attribute's name and value.
pub type Attribute = (Vec<u8>, Vec<u8>);

impl Reader<'_> {
    /// A file's attributes of users, and its capabilities. Others mean something to a host alone, and large values that have an inode of their own
    /// are left out.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn attributes(&mut self, inode: &Inode) -> Result<Vec<Attribute>, ReadError> {
        let mut found = Vec::new();
        let behind = &inode.behind;
        if behind.len() >= 4 && u32_at(behind, 0)? == MAGIC {
            let entries = behind.get(4..).unwrap_or_default();
            parse(entries, entries, &mut found)?;
        }
        if inode.attributes != 0 {
            let block = self.block(inode.attributes)?;
            if u32_at(&block, 0)? != MAGIC {
                return Err(damaged("attributes of a file"));
            }
            parse(block.get(HEADER..).unwrap_or_default(), &block, &mut found)?;
        }
        found.sort();
        Ok(found)
    }
}

/// Entries; `values` is what the places of their values count from.
fn parse(mut entries: &[u8], values: &[u8], found: &mut Vec<Attribute>) -> Result<(), ReadError> {
    let wrong = || damaged("attributes of a file");
    while entries.len() >= 4 && u32_at(entries, 0)? != 0 {
        let name_len = usize::from(*entries.first().ok_or_else(wrong)?);
        let prefix: Option<&[u8]> = match entries.get(1) {
            Some(1) => Some(b"user."),
            Some(6) => Some(b"security."),
            _ => None,
        };
        let end = ENTRY.saturating_add(name_len);
        let name = entries.get(ENTRY..end).ok_or_else(wrong)?;
        let elsewhere = u32_at(entries, 4)? != 0;
        if let Some(prefix) = prefix.filter(|_| !elsewhere) {
            let name = [prefix, name].concat();
            let start = usize::from(u16_at(entries, 2)?);
            let len = usize::try_from(u32_at(entries, 8)?).map_err(|_| wrong())?;
            let value = start.checked_add(len).and_then(|end| values.get(start..end)).ok_or_else(wrong)?;
            if name.contains(&0) {
                return Err(wrong());
            }
            if crate::tree::is_kept(&name, true) {
                found.push((name, value.to_vec()));
            }
        }
        entries = entries.get(end.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}
