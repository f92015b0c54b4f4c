//! [`Inode`]: what there is to know of a file but its name and its data.

use rustix::fs::FileType;

use super::{ReadError, Reader, damaged, u16_at, u32_at};

/// The part of an inode that every one has, in bytes.
const OLD: usize = 128;
/// Its blocks are in a tree of extents.
pub(super) const EXTENTS: u32 = 0x8_0000;
const COMPRESSED: u32 = 0x4;
const ENCRYPTED: u32 = 0x800;
const INLINE: u32 = 0x1000_0000;
/// Targets of links that are shorter are in the inode.
const FAST: u64 = 60;
/// The longest target of a link, in bytes: Linux's.
const TARGET: u64 = 4096;

/// A file of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: FileType,
    /// All twelve bits of its permissions.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last changed: seconds since 1970, and nanoseconds below a second.
    pub mtime: (i64, u32),
    /// How many names it has.
    pub links: u32,
    pub(super) flags: u32,
    /// Extents, blocks, or a link's target.
    pub(super) map: [u8; 60],
    /// The block of its attributes; 0: none.
    pub(super) attributes: u64,
    /// What is behind the fields of the inode: attributes.
    pub(super) behind: Vec<u8>,
}

impl Reader<'_> {
    /// The file of that number.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn inode(&mut self, number: u32) -> Result<Inode, ReadError> {
        let index = number.checked_sub(1).filter(|_| number <= self.shape.inodes);
        let index = index.ok_or_else(|| damaged("the number of an inode"))?;
        let per_group = self.shape.inodes_per_group;
        let (group, entry) = (index.checked_div(per_group), index.checked_rem(per_group));
        let table = self.inode_table(u64::from(group.unwrap_or_default()))?;
        let within = u64::from(entry.unwrap_or_default()).saturating_mul(self.shape.inode_size as u64);
        let at = table.checked_mul(self.shape.block).and_then(|at| at.checked_add(within));
        // At most a block.
        let mut bytes = vec![0; self.shape.inode_size];
        self.read(at.ok_or_else(|| damaged("the place of an inode"))?, &mut bytes)?;
        Inode::parse(&bytes)
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// If that cannot be read, or nothing has so long a name.
    pub fn target(&mut self, link: &Inode) -> Result<Vec<u8>, ReadError> {
        let wrong = || damaged("the target of a link");
        if link.size == 0 || link.size > TARGET {
            return Err(wrong());
        }
        let size = usize::try_from(link.size).map_err(|_| wrong())?;
        let target = if link.size < FAST && link.flags & EXTENTS == 0 {
            link.map.get(..size).ok_or_else(wrong)?.to_vec()
        } else {
            let mut target = vec![0; size];
            self.content(link)?.fill(&mut target)?;
            target
        };
        if target.contains(&0) { Err(wrong()) } else { Ok(target) }
    }
}

impl Inode {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ReadError> {
        let mode = u16_at(bytes, 0)?;
        let links = u16_at(bytes, 0x1a)?;
        let kind = FileType::from_raw_mode(mode.into());
        if links == 0 || kind == FileType::Unknown {
            return Err(damaged("a name of a file that is not there"));
        }
        let extra = if bytes.len() > OLD { usize::from(u16_at(bytes, OLD)?) } else { 0 };
        let fields = OLD.saturating_add(extra);
        if fields > bytes.len() || !extra.is_multiple_of(4) {
            return Err(damaged("the length of an inode"));
        }
        let wide = |low: usize, high: usize| -> Result<u32, ReadError> {
            Ok(u32::from(u16_at(bytes, low)?) | u32::from(u16_at(bytes, high)?) << 16)
        };
        // In the first 32 bits, then two more bits and nanoseconds (since 2.6.23).
        let seconds = i64::from(u32_at(bytes, 0x10)?.cast_signed());
        let more = if extra >= 0x8c - OLD { u32_at(bytes, 0x88)? } else { 0 };
        let nanoseconds = more >> 2;
        let mtime = (seconds.saturating_add(i64::from(more & 3) << 32), nanoseconds.min(999_999_999));
        let inode = Self {
            kind,
            mode: u32::from(mode) & 0o7777,
            uid: wide(0x2, 0x78)?,
            gid: wide(0x18, 0x7a)?,
            size: u64::from(u32_at(bytes, 4)?) | u64::from(u32_at(bytes, 0x6c)?) << 32,
            mtime,
            links: links.into(),
            flags: u32_at(bytes, 0x20)?,
            map: bytes
                .get(0x28..0x64)
                .and_then(|map| map.try_into().ok())
                .ok_or_else(|| damaged("an inode"))?,
            attributes: u64::from(u32_at(bytes, 0x68)?) | u64::from(u16_at(bytes, 0x76)?) << 32,
            behind: bytes.get(fields..).unwrap_or_default().to_vec(),
        };
        for (flag, what) in [
            (COMPRESSED, "compressed files"),
            (ENCRYPTED, "encrypted files"),
            (INLINE, "files within their inodes (inline_data)"),
        ] {
            if inode.flags & flag != 0 {
                return Err(ReadError::Unsupported(what));
            }
        }
        Ok(inode)
    }
}
