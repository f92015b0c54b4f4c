//! Headers, regions and metadata.

use std::io;

use devices::disk::SECTOR;

use super::super::bytes::{Fields, Guid, Stored};
use super::super::error::Malformed;
use super::super::raw::bounded;

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER: usize = 4096;
const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE: usize = 64 << 10;
/// Entries of a region or metadata table (2.2.3.1, 2.6.1.1).
const MAX_ENTRIES: usize = 2047;
const ENTRY: usize = 32;

const BAT: Guid = Guid::new(0x2DC2_7766, 0xF623, 0x4200, 0x9D64, 0x115E_9BFD_4A08);
const METADATA: Guid = Guid::new(0x8B7C_A206, 0x4790, 0x4B9A, 0xB8FE, 0x575F_050F_886E);

const FILE_PARAMETERS: Guid = Guid::new(0xCAA1_6737, 0xFA36, 0x4D43, 0xB3B6, 0x33F0_AA44_E76B);
const DISK_SIZE: Guid = Guid::new(0x2FA5_4224, 0xCD1B, 0x4876, 0xB211, 0x5DBE_D83B_F4B8);
const LOGICAL_SECTOR: Guid = Guid::new(0x8141_BF1D, 0xA96F, 0x4709, 0xBA47, 0xF233_A8FA_AB5F);
const PHYSICAL_SECTOR: Guid = Guid::new(0xCDA3_48C7, 0x445D, 0x4471, 0x9CC9, 0xE988_5251_C556);
const DISK_ID: Guid = Guid::new(0xBECA_12AB, 0xB2E6, 0x4523, 0x93EF, 0xC309_E000_C746);
const PARENT: Guid = Guid::new(0xA8D3_5F2D, 0xB30B, 0x454D, 0xABF7, 0xD3D8_4834_AB0C);

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub offset: u64,
    pub len: u64,
}

/// The parts that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Regions {
    pub bat: Region,
    pub metadata: Region,
}

/// What a disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Of the disk in bytes.
    pub size: u64,
    /// Of a block in bytes, a power of two.
    pub block: u64,
    /// Blocks before each bitmap's entry.
    pub chunk: u64,
}

impl Geometry {
    /// How many entries the BAT of a disk without a parent has (2.5).
    pub(super) fn bat_entries(&self) -> u64 {
        let blocks = self.size.div_ceil(self.block);
        blocks + blocks.saturating_sub(1) / self.chunk
    }
}

/// CRC-32C (Castagnoli), bit by bit: a few hundred KiB are summed.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    let table: [u32; 256] = std::array::from_fn(|byte| {
        (0..8).fold(byte as u32, |sum, _| if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 })
    });
    let step = |sum: u32, byte: &u8| {
        // An index of 8 bits.
        (sum >> 8) ^ table.get(((sum ^ u32::from(*byte)) & 0xff) as usize).copied().unwrap_or(0)
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// Whether the checksum at byte 4 is that of all, with zeroes in its own place.
fn is_sound(bytes: &[u8], signature: &[u8]) -> bool {
    let fields = Fields::new(bytes, "");
    let mut copy = bytes.to_vec();
    if let Some(place) = copy.get_mut(4..8) {
        place.fill(0);
    }
    bytes.starts_with(signature) && fields.u32(4) == Ok(crc32c(&copy))
}

/// Look at both headers.
///
/// # Errors
/// If none is whole, or the one that counts has a log.
pub(super) fn check_headers(file: &impl Stored) -> io::Result<()> {
    let mut newest: Option<(u64, Vec<u8>)> = None;
    for place in HEADERS {
        let bytes = file.bytes(place, HEADER, "a header")?;
        let sequence = Fields::new(&bytes, "a header").u64(8)?;
        let newer = newest.as_ref().is_none_or(|(newest, _)| sequence > *newest);
        if is_sound(&bytes, b"head") && newer {
            newest = Some((sequence, bytes));
        }
    }
    let (_, bytes) = newest.ok_or(Malformed::Damaged { what: "each of its headers", offset: 64 << 10 })?;
    let fields = Fields::new(&bytes, "the header");
    if fields.guid(48)? != Guid::NIL {
        return Err(Malformed::Unclean("its log is not replayed").into());
    }
    match fields.u16(66)? {
        1 => Ok(()),
        version => Err(Malformed::Value { what: "version", value: version.into() }.into()),
    }
}

/// Where the BAT and the metadata are.
///
/// # Errors
/// If no region table is whole, one of them is missing, or there is another that must be known.
pub(super) fn regions(file: &impl Stored, len: u64) -> io::Result<Regions> {
    let mut table = None;
    for place in REGION_TABLES {
        let bytes = file.bytes(place, REGION_TABLE, "a region table")?;
        if is_sound(&bytes, b"regi") {
            table = Some(bytes);
            break;
        }
    }
    let bytes = table.ok_or(Malformed::Damaged { what: "each of its region tables", offset: 192 << 10 })?;
    let fields = Fields::new(&bytes, "the region table");
    let count = fields.u32(8)?;
    if count as usize > MAX_ENTRIES {
        return Err(Malformed::Value { what: "number of regions", value: count.into() }.into());
    }
    let (mut bat, mut metadata) = (None, None);
    for at in (0..count as usize).map(|entry| 16 + entry * ENTRY) {
        let region = Region { offset: fields.u64(at + 16)?, len: fields.u32(at + 24)?.into() };
        let kind = match fields.guid(at)? {
            BAT => &mut bat,
            METADATA => &mut metadata,
            _ if fields.u32(at + 28)? & 1 == 1 => {
                return Err(Malformed::Unsupported("a region that skiff does not know").into());
            }
            _ => continue,
        };
        let aligned = region.offset.is_multiple_of(1 << 20) && region.offset >= 1 << 20;
        if !aligned || kind.is_some() {
            return Err(Malformed::Value { what: "place of a region", value: region.offset }.into());
        }
        if region.offset.checked_add(region.len).is_none_or(|end| end > len) {
            return Err(Malformed::Outside { what: "a region", offset: region.offset }.into());
        }
        *kind = Some(region);
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok(Regions { bat, metadata }),
        _ => Err(Malformed::Damaged { what: "the region table", offset: 192 << 10 }.into()),
    }
}

/// What the metadata say.
///
/// # Errors
/// If something is missing, cannot be, or there is something that must be known.
pub(super) fn geometry(file: &impl Stored, metadata: Region) -> io::Result<Geometry> {
    let table_len = (MAX_ENTRIES + 1) * ENTRY;
    if metadata.len < table_len as u64 {
        return Err(Malformed::Value { what: "metadata's length", value: metadata.len }.into());
    }
    let bytes = file.bytes(metadata.offset, table_len, "the metadata")?;
    let fields = Fields::new(&bytes, "the metadata");
    let count = usize::from(fields.u16(10)?);
    if fields.part(0, 8)? != b"metadata" || count > MAX_ENTRIES {
        return Err(Malformed::Damaged { what: "the metadata", offset: metadata.offset }.into());
    }
    let (mut block, mut size, mut sector) = (None, None, None);
    for at in (1..=count).map(|entry| entry * ENTRY) {
        let (offset, flags) = (u64::from(fields.u32(at + 16)?), fields.u32(at + 24)?);
        // Items lie behind the table (2.6.1.2).
        let item = |len: usize| {
            if offset < table_len as u64 || offset.saturating_add(len as u64) > metadata.len {
                return Err(Malformed::Outside { what: "an item of the metadata", offset }.into());
            }
            file.bytes(metadata.offset + offset, len, "an item of the metadata")
        };
        match fields.guid(at)? {
            FILE_PARAMETERS => block = Some(file_parameters(&item(8)?)?),
            DISK_SIZE => size = Some(Fields::new(&item(8)?, "the disk's size").u64(0)?),
            LOGICAL_SECTOR => sector = Some(Fields::new(&item(4)?, "the sector size").u32(0)?),
            PARENT => return Err(Malformed::NeedsFile("the disk that it was made from".to_owned()).into()),
            PHYSICAL_SECTOR | DISK_ID => {}
            _ if flags & 4 != 0 => {
                return Err(Malformed::Unsupported("metadata that skiff does not know").into());
            }
            _ => {}
        }
    }
    let (Some(block), Some(size), Some(sector)) = (block, size, sector) else {
        return Err(Malformed::Damaged { what: "the metadata", offset: metadata.offset }.into());
    };
    if size == 0 || !size.is_multiple_of(SECTOR) {
        return Err(Malformed::Value { what: "size", value: size }.into());
    }
    match sector {
        512 => {}
        4096 => return Err(Malformed::Unsupported("sectors of 4096 bytes").into()),
        other => return Err(Malformed::Value { what: "sector size", value: other.into() }.into()),
    }
    Ok(Geometry { size: bounded(size)?, block, chunk: (u64::from(sector) << 23) / block })
}

/// Returns the block size.
fn file_parameters(bytes: &[u8]) -> Result<u64, Malformed> {
    let fields = Fields::new(bytes, "the file parameters");
    let (block, flags) = (fields.u32(0)?, fields.u32(4)?);
    if flags & 2 != 0 {
        return Err(Malformed::NeedsFile("the disk that it was made from".to_owned()));
    }
    if !block.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block) {
        return Err(Malformed::Value { what: "block size", value: block.into() });
    }
    Ok(block.into())
}
