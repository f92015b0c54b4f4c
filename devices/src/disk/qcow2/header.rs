//! The header and its extensions: read into a checked value, and written.

use std::path::{Path, PathBuf};

use super::error::Malformed;
use crate::disk::SECTOR;
use crate::storage::StoredFile;

/// The first bytes of every image.
pub(in crate::disk) const MAGIC: [u8; 4] = *b"QFI\xfb";

const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
/// The most of a header with its extensions that is looked at, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// The longest backing file name, in bytes.
const MAX_NAME: usize = 1023;
/// The largest tables, in bytes: what QEMU takes.
pub(super) const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// The largest disk, in bytes.
const MAX_SIZE: u64 = 1 << 56;

pub(super) const DIRTY: u64 = 1;
pub(super) const CORRUPT: u64 = 2;
const EXTERNAL_DATA: u64 = 4;
const COMPRESSION: u64 = 8;
const EXTENDED_L2: u64 = 16;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_BITMAPS: u32 = 0x2385_2875;

/// The format of a file in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A disk's offset is the file's.
    Raw,
    /// An image with tables.
    Qcow2,
}

impl Format {
    /// As it is called in headers and by `qemu-img`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of a file that starts with `head`.
    pub(in crate::disk) fn probe(head: &[u8]) -> Self {
        if head.starts_with(&MAGIC) { Self::Qcow2 } else { Self::Raw }
    }
}

/// How clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disk) enum Packing {
    Deflate,
    Zstd,
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::disk) struct Header {
    /// 2 or 3.
    pub version: u32,
    /// 9 to 21.
    pub cluster_bits: u32,
    /// Of the disk in bytes, a multiple of [`SECTOR`].
    pub size: u64,
    /// Entries of the L1 table. It covers the disk.
    pub l1_size: u32,
    pub l1_offset: u64,
    pub refcount_offset: u64,
    pub refcount_clusters: u32,
    /// Each refcount takes `1 << refcount_order` bits; 0 to 6.
    pub refcount_order: u32,
    pub packing: Packing,
    pub incompatible: u64,
    /// As it is written in the file.
    pub backing: Option<PathBuf>,
    pub backing_format: Option<Format>,
    /// What forbids to write to it.
    pub keeps: Option<&'static str>,
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> Result<u32, Malformed> {
        let bytes = self.0.get(at..at.saturating_add(4)).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or(Malformed::Outside { what: "the header", offset: at as u64 })
    }

    fn u64(&self, at: usize) -> Result<u64, Malformed> {
        let bytes = self.0.get(at..at.saturating_add(8)).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_be_bytes).ok_or(Malformed::Outside { what: "the header", offset: at as u64 })
    }
}

fn value(what: &'static str, value: impl Into<u64>) -> Malformed {
    Malformed::Value { what, value: value.into() }
}

impl Header {
    /// Read and check the header of `file`.
    ///
    /// # Errors
    /// If it is none, or uses what is not supported.
    pub(in crate::disk) fn read(file: &dyn StoredFile) -> Result<Self, Malformed> {
        let file_len = file.len()?;
        let mut head = vec![0; usize::try_from(file_len).unwrap_or(MAX_HEAD).min(MAX_HEAD)];
        file.read_exact_at(&mut head, 0)?;
        Self::parse(&head, file_len)
    }

    /// Check the first bytes of a file of `file_len` bytes.
    pub(super) fn parse(head: &[u8], file_len: u64) -> Result<Self, Malformed> {
        let fields = Fields(head);
        if !head.starts_with(&MAGIC) {
            return Err(value("magic", fields.u32(0)?));
        }
        let version = match fields.u32(4)? {
            version @ (2 | 3) => version,
            other => return Err(value("version", other)),
        };
        let cluster_bits = match fields.u32(20)? {
            bits @ 9..=21 => bits,
            other => return Err(value("cluster size", other)),
        };
        if fields.u32(32)? != 0 {
            return Err(Malformed::Unsupported("encryption"));
        }
        let mut header = Self {
            version,
            cluster_bits,
            size: fields.u64(24)?,
            l1_size: fields.u32(36)?,
            l1_offset: fields.u64(40)?,
            refcount_offset: fields.u64(48)?,
            refcount_clusters: fields.u32(56)?,
            refcount_order: 4,
            packing: Packing::Deflate,
            incompatible: 0,
            backing: None,
            backing_format: None,
            keeps: (fields.u32(60)? > 0).then_some("internal snapshots"),
        };
        let mut header_len = V2_LEN;
        if version == 3 {
            header_len = header.parse_v3(&fields)?;
        }
        header.check_tables(file_len)?;
        header.parse_extensions(&fields, header_len)?;
        header.parse_backing(head, &fields)?;
        Ok(header)
    }

    /// The fields of version 3. Returns the header's length.
    fn parse_v3(&mut self, fields: &Fields) -> Result<usize, Malformed> {
        self.incompatible = fields.u64(72)?;
        self.refcount_order = fields.u32(96)?;
        let len = fields.u32(100)?;
        if self.incompatible & EXTERNAL_DATA != 0 {
            return Err(Malformed::Unsupported("an external data file"));
        }
        if self.incompatible & EXTENDED_L2 != 0 {
            return Err(Malformed::Unsupported("extended L2 entries"));
        }
        let unknown = self.incompatible & !(DIRTY | CORRUPT | COMPRESSION);
        if unknown != 0 {
            return Err(Malformed::Unknown(unknown));
        }
        if self.refcount_order > 6 {
            return Err(value("refcount order", self.refcount_order));
        }
        let header_len = usize::try_from(len).unwrap_or(usize::MAX);
        if header_len < V3_LEN || !header_len.is_multiple_of(8) || header_len > self.cluster() as usize {
            return Err(value("header length", len));
        }
        let packing = if header_len > V3_LEN { fields.0.get(V3_LEN).copied().unwrap_or(0) } else { 0 };
        self.packing = match (self.incompatible & COMPRESSION != 0, packing) {
            (_, 0) => Packing::Deflate,
            (true, 1) => Packing::Zstd,
            (_, other) => return Err(value("compression type", other)),
        };
        Ok(header_len)
    }

    fn check_tables(&self, file_len: u64) -> Result<(), Malformed> {
        if self.size == 0 || !self.size.is_multiple_of(SECTOR) || self.size > MAX_SIZE {
            return Err(value("size", self.size));
        }
        if u64::from(self.l1_size) < self.l1_needed(self.size) || u64::from(self.l1_size) * 8 > MAX_L1 {
            return Err(value("L1 table's length", self.l1_size));
        }
        let inside = |what, offset: u64, len: u64| {
            if offset == 0 || !offset.is_multiple_of(self.cluster()) {
                return Err(value(what, offset));
            }
            match offset.checked_add(len) {
                Some(end) if end <= file_len => Ok(()),
                _ => Err(Malformed::Outside { what, offset }),
            }
        };
        inside("the L1 table", self.l1_offset, u64::from(self.l1_size) * 8)?;
        let refcounts = u64::from(self.refcount_clusters) * self.cluster();
        if refcounts == 0 || refcounts > MAX_REFCOUNT_TABLE {
            return Err(value("refcount table's length", self.refcount_clusters));
        }
        inside("the refcount table", self.refcount_offset, refcounts)
    }

    fn parse_extensions(&mut self, fields: &Fields, from: usize) -> Result<(), Malformed> {
        let backing = usize::try_from(fields.u64(8)?).unwrap_or(usize::MAX);
        let end = if backing == 0 { self.cluster() as usize } else { backing };
        let end = end.min(fields.0.len());
        let mut at = from;
        while at.saturating_add(8) <= end {
            let (kind, len) = (fields.u32(at)?, fields.u32(at + 4)?);
            let data = at + 8;
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            let content = data.checked_add(len).filter(|after| *after <= end);
            let content = content.and_then(|after| fields.0.get(data..after));
            match kind {
                EXT_END => break,
                EXT_BACKING_FORMAT => {
                    let name = content.ok_or(value("backing format's length", len as u64))?;
                    self.backing_format = Some(match name {
                        b"raw" | b"host_device" | b"file" => Format::Raw,
                        b"qcow2" => Format::Qcow2,
                        other => {
                            let name = String::from_utf8_lossy(other.get(..16).unwrap_or(other));
                            return Err(Malformed::BackingFormat(name.escape_default().to_string()));
                        }
                    });
                }
                EXT_BITMAPS => self.keeps = Some("dirty bitmaps"),
                _ if content.is_none() => return Err(value("header extension's length", len as u64)),
                _ => {}
            }
            at = data.saturating_add(len.next_multiple_of(8));
        }
        Ok(())
    }

    fn parse_backing(&mut self, head: &[u8], fields: &Fields) -> Result<(), Malformed> {
        use std::os::unix::ffi::OsStrExt;
        let (offset, len) = (fields.u64(8)?, fields.u32(16)?);
        if offset == 0 {
            return Ok(());
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let end = start.checked_add(len).filter(|end| *end <= self.cluster() as usize);
        let name = end.and_then(|end| head.get(start..end)).filter(|name| name.len() <= MAX_NAME);
        match name {
            None => Err(value("backing file name's place", offset)),
            Some(b"") => Ok(()),
            Some(name) if name.contains(&0) => Err(value("backing file name's place", offset)),
            Some(name) => {
                let name = name.strip_prefix(b"file:").unwrap_or(name);
                if name.starts_with(b"json:") {
                    return Err(Malformed::Unsupported("a backing file described in JSON"));
                }
                self.backing = Some(Path::new(std::ffi::OsStr::from_bytes(name)).to_owned());
                Ok(())
            }
        }
    }

    /// The cluster size in bytes.
    pub(in crate::disk) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many entries an L2 table has.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster() / 8
    }

    /// How many L1 entries a disk of `size` bytes needs.
    pub(super) fn l1_needed(&self, size: u64) -> u64 {
        size.div_ceil(self.cluster() * self.l2_entries())
    }

    /// The header of version 3 for a new file, with its extensions and the backing file's name: the first bytes of the file.
    ///
    /// # Errors
    /// If the name is too long.
    pub(super) fn encode(&self) -> Result<Vec<u8>, Malformed> {
        use std::os::unix::ffi::OsStrExt;
        let name = self.backing.as_deref().map(|path| path.as_os_str().as_bytes()).unwrap_or_default();
        if name.len() > MAX_NAME {
            return Err(value("backing file name's length", name.len() as u64));
        }
        let mut bytes = vec![0; V3_LEN];
        let mut extensions = Vec::new();
        if let Some(format) = self.backing_format {
            let text = format.name().as_bytes();
            extensions.extend(EXT_BACKING_FORMAT.to_be_bytes());
            extensions.extend((text.len() as u32).to_be_bytes());
            extensions.extend(text);
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        }
        extensions.extend([0; 8]);
        let name_at = if name.is_empty() { 0 } else { (V3_LEN + extensions.len()) as u64 };
        let mut put = |at: usize, field: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + field.len()) {
                place.copy_from_slice(field);
            }
        };
        put(0, &MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(8, &name_at.to_be_bytes());
        put(16, &(name.len() as u32).to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_size.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcount_offset.to_be_bytes());
        put(56, &self.refcount_clusters.to_be_bytes());
        put(96, &self.refcount_order.to_be_bytes());
        put(100, &(V3_LEN as u32).to_be_bytes());
        bytes.extend(extensions);
        bytes.extend(name);
        Ok(bytes)
    }
}
