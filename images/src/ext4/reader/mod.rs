//! [`Reader`]: an ext2, ext3 or ext4 file system on a disk, read here and by no other program, without being root and without a copy of it.
//!
//! ```text
//! superblock ─► group descriptors ─► inodes ─┬─ blocks: extents, or the older lists of blocks ─► data, names
//!                                            └─ attributes: behind the inode, and in a block of their own
//! ```
//! Whoever made the file system may have made it to harm: every number is checked before it is used, what is read for one file system is
//! bounded by its own size (no block of a sound one belongs to two files), and there is no recursion without a limit. Checksums are not looked
//! at: they tell damage, not malice. The layout is that of the Linux kernel's Documentation/filesystems/ext4. All of it runs on the
//! caller's thread.

mod attributes;
mod blocks;
mod directory;
mod inode;

use std::io;

use devices::disk::layer::Source;

pub use blocks::Content;
pub use directory::Name;
pub use inode::Inode;

/// The inode of the root directory.
pub const ROOT: u32 = 2;
/// Where the superblock is, in bytes.
const SUPERBLOCK: u64 = 1024;
/// Kinds of file systems that are read: names with kinds, journal (which has nothing left to say), descriptors in their groups, extents,
/// 64 bits, mount protection, flexible groups, large attributes (left out), checksum seeds, large directories, data in inodes and encryption (refused
/// where a file has them), and names without case.
const KNOWN: u32 =
    0x2 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
/// The journal has to be replayed first.
const RECOVER: u32 = 0x4;
const META_BG: u32 = 0x10;
const WIDE: u32 = 0x80;
/// Not every group has a copy of the superblock.
const SPARSE_SUPER: u32 = 0x1;
/// Two groups at most have one.
const SPARSE_SUPER2: u32 = 0x200;

/// A file system cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk cannot be read.
    #[error("the disk cannot be read")]
    Disk(#[from] io::Error),
    /// It contradicts itself.
    #[error("the file system is damaged ({what}): repair it in the guest with fsck.ext4")]
    Damaged {
        /// What cannot be.
        what: &'static str,
    },
    /// It has something that is not read here.
    #[error("the file system has {0}, which skiff does not read")]
    Unsupported(&'static str),
    /// It was in use when it was last written.
    #[error("the file system's journal has not been replayed")]
    Unclean,
}

pub(super) fn damaged(what: &'static str) -> ReadError {
    ReadError::Damaged { what }
}

/// A file system, to be read.
pub struct Reader<'a> {
    disk: &'a mut dyn Source,
    /// Where it begins on the disk, in bytes.
    start: u64,
    shape: Shape,
    /// How much of what files have may still be read, in bytes.
    left: u64,
}

/// What its superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    block: u64,
    blocks: u64,
    free: u64,
    first_block: u64,
    blocks_per_group: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_size: usize,
    descriptor: u64,
    incompat: u32,
    ro_compat: u32,
    compat: u32,
    first_meta: u64,
    backups: [u32; 2],
}

impl<'a> Reader<'a> {
    /// The file system that begins `start` bytes into `disk`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(disk: &'a mut dyn Source, start: u64) -> Result<Self, ReadError> {
        let mut bytes = [0; 1024];
        let at = start.checked_add(SUPERBLOCK).ok_or_else(|| damaged("its place on the disk"))?;
        if at.checked_add(1024).is_none_or(|end| end > disk.size()) {
            return Err(damaged("it is shorter than its superblock"));
        }
        disk.read(at, &mut bytes)?;
        let shape = Shape::parse(&bytes)?;
        let size = shape.blocks.checked_mul(shape.block).filter(|size| *size <= disk.size() - start);
        let left = size.ok_or_else(|| damaged("it is larger than its disk"))?;
        Ok(Self { disk, start, shape, left })
    }

    /// How much of it is in use, in bytes.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.shape.blocks.saturating_sub(self.shape.free).saturating_mul(self.shape.block)
    }

    /// How much is read of a file system's blocks at once: what is read so often belongs to several files.
    fn spend(&mut self, bytes: u64) -> Result<(), ReadError> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| damaged("blocks belong to several files"))?;
        Ok(())
    }

    /// Fill `into` with what is `offset` bytes into the file system.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        let size = self.shape.blocks.saturating_mul(self.shape.block);
        if offset.checked_add(into.len() as u64).is_none_or(|end| end > size) {
            return Err(damaged("a block lies behind its end"));
        }
        // Both lie on the disk.
        self.disk.read(self.start.saturating_add(offset), into)?;
        Ok(())
    }

    /// A whole block.
    fn block(&mut self, number: u64) -> Result<Vec<u8>, ReadError> {
        // At most 64 KiB.
        let mut bytes = vec![0; usize::try_from(self.shape.block).unwrap_or_default()];
        let offset = number.checked_mul(self.shape.block).ok_or_else(|| damaged("the number of a block"))?;
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Where the table of a group's inodes begins, in blocks.
    fn inode_table(&mut self, group: u64) -> Result<u64, ReadError> {
        let offset = self.shape.descriptor_at(group).ok_or_else(|| damaged("the number of a group"))?;
        let mut bytes = [0; 64];
        let wide = self.shape.descriptor >= 64;
        let part = bytes.get_mut(..if wide { 64 } else { 32 }).unwrap_or_default();
        self.read(offset, part)?;
        let high = if wide { u64::from(u32_at(&bytes, 0x28)?) << 32 } else { 0 };
        Ok(high | u64::from(u32_at(&bytes, 8)?))
    }
}

impl Shape {
    fn parse(bytes: &[u8]) -> Result<Self, ReadError> {
        if u16_at(bytes, 0x38)? != 0xef53 {
            return Err(damaged("it has no superblock"));
        }
        let log = u32_at(bytes, 0x18)?;
        let block = 1024_u64
            .checked_shl(log)
            .filter(|_| log <= 6)
            .ok_or_else(|| damaged("the size of its blocks"))?;
        let old = u32_at(bytes, 0x4c)? == 0;
        let incompat = if old { 0 } else { u32_at(bytes, 0x60)? };
        if incompat & RECOVER != 0 {
            return Err(ReadError::Unclean);
        }
        if incompat & !(KNOWN) != 0 {
            return Err(ReadError::Unsupported("features that are not known"));
        }
        let wide = incompat & WIDE != 0;
        let joined = |low: usize, high: usize| -> Result<u64, ReadError> {
            let high = if wide { u64::from(u32_at(bytes, high)?) << 32 } else { 0 };
            Ok(high | u64::from(u32_at(bytes, low)?))
        };
        let descriptor = if wide { u64::from(u16_at(bytes, 0xfe)?) } else { 32 };
        let inode_size = if old { 128 } else { usize::from(u16_at(bytes, 0x58)?) };
        let shape = Self {
            block,
            blocks: joined(0x4, 0x150)?,
            free: joined(0xc, 0x158)?,
            first_block: u64::from(u32_at(bytes, 0x14)?),
            blocks_per_group: u64::from(u32_at(bytes, 0x20)?),
            inodes: u32_at(bytes, 0)?,
            inodes_per_group: u32_at(bytes, 0x28)?,
            inode_size,
            descriptor,
            incompat,
            ro_compat: if old { 0 } else { u32_at(bytes, 0x64)? },
            compat: if old { 0 } else { u32_at(bytes, 0x5c)? },
            first_meta: u64::from(u32_at(bytes, 0x104)?),
            backups: [u32_at(bytes, 0x24c)?, u32_at(bytes, 0x250)?],
        };
        let sound = shape.blocks_per_group != 0
            && shape.inodes_per_group != 0
            && (128..=block as usize).contains(&inode_size)
            && inode_size.is_power_of_two()
            && (32..=1024).contains(&descriptor)
            && descriptor.is_power_of_two();
        if sound { Ok(shape) } else { Err(damaged("the sizes in its superblock")) }
    }

    /// Where a group's descriptor is, in bytes.
    fn descriptor_at(&self, group: u64) -> Option<u64> {
        let in_block = self.block.checked_div(self.descriptor)?;
        let (table, entry) = (group.checked_div(in_block)?, group.checked_rem(in_block)?);
        let block = if self.incompat & META_BG != 0 && table >= self.first_meta {
            let first = table.checked_mul(in_block)?;
            let at = first.checked_mul(self.blocks_per_group)?.checked_add(self.first_block)?;
            // Behind the copy of the superblock, if there is one.
            let copy = u64::from(self.has_superblock(first));
            if table == 0 { self.superblock().checked_add(1)? } else { at.checked_add(copy)? }
        } else {
            self.superblock().checked_add(1)?.checked_add(table)?
        };
        block.checked_mul(self.block)?.checked_add(entry.checked_mul(self.descriptor)?)
    }

    /// The block of the superblock. With blocks of 1 KiB that is the second one, in the first group or before it.
    fn superblock(&self) -> u64 {
        SUPERBLOCK.checked_div(self.block).unwrap_or_default()
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_superblock(&self, group: u64) -> bool {
        let is_power = |of: u64| {
            let mut rest = group;
            while rest > 1 && rest.is_multiple_of(of) {
                rest /= of;
            }
            rest == 1
        };
        if group <= 1 && (group == 0 || self.compat & SPARSE_SUPER2 == 0) {
            return true;
        }
        if self.compat & SPARSE_SUPER2 != 0 {
            return self.backups.iter().any(|backup| u64::from(*backup) == group);
        }
        self.ro_compat & SPARSE_SUPER == 0 || [3, 5, 7].into_iter().any(is_power)
    }
}

/// Two bytes of a table.
fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ReadError> {
    let part = at.checked_add(2).and_then(|end| bytes.get(at..end)).and_then(|part| part.try_into().ok());
    part.map(u16::from_le_bytes).ok_or_else(|| damaged("a table is cut off"))
}

/// Four bytes of a table.
fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ReadError> {
    let part = at.checked_add(4).and_then(|end| bytes.get(at..end)).and_then(|part| part.try_into().ok());
    part.map(u32::from_le_bytes).ok_or_else(|| damaged("a table is cut off"))
}

#[cfg(test)]
mod tests;
