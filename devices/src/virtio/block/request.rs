//! A request of the guest, read once from its chain into an owned, checked value (virtio 1.2, 5.2.6).
//!
//! ```text
//! readable: │ type u32 │ reserved u32 │ sector u64 │ data (write, discard, write-zeroes) … │
//! writable: │ data (read, get-id) …                                          │ status u8 │
//! ```
//! How these are cut into descriptors is the guest's business (2.7.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::GuestAddress;

use arch::memory::GuestRam;

use super::config::{MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, MAX_ZERO_RANGES, MAX_ZERO_SECTORS};
use crate::disk::{Erase, Extent, SECTOR};
use crate::virtio::chain::{Chain, Segment, slice};

const HEADER_LEN: u64 = 16;
/// `sector u64`, `num_sectors u32`, `flags u32`.
const RANGE_LEN: u64 = 16;

/// What a request comes to, as its status byte says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    /// The byte that the guest reads.
    pub(super) fn byte(self) -> u8 {
        // 0, 1 and 2.
        (match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }) as u8
    }
}

/// What is to be done. Offsets and lengths are bytes, inside the disk, and whole sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read {
        offset: u64,
        data: Vec<Segment>,
    },
    Write {
        offset: u64,
        data: Vec<Segment>,
    },
    Flush,
    GetId,
    Erase(Vec<Extent>),
    /// Nothing: the answer is known.
    Refused(Status),
}

/// One request, with where its answer goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub head: u16,
    /// Of the status byte: the last writable one.
    pub status: GuestAddress,
    /// How much the guest expects to be written before the status byte, in bytes.
    pub in_len: u64,
    pub kind: Kind,
}

/// What a request may do to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The disk's size in bytes.
    pub size: u64,
    pub readonly: bool,
}

/// A request that cannot even be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a request without its header")]
    Header,
    #[error("a request without room for its status")]
    Status,
}

impl Request {
    /// Read the request that `chain` carries.
    ///
    /// # Errors
    /// If it has no header or no room for the status. All else is answered by a status.
    pub(super) fn parse(ram: &GuestRam, chain: &Chain, bounds: Bounds) -> Result<Self, Malformed> {
        let mut header = [0; HEADER_LEN as usize];
        if chain.read(ram, 0, &mut header) < header.len() {
            return Err(Malformed::Header);
        }
        let last = chain.writable.last().ok_or(Malformed::Status)?;
        // The segment is not empty and lies in RAM: its last byte has an address.
        let status = GuestAddress(last.addr.0 + u64::from(last.len) - 1);
        let in_len = chain.writable_len().saturating_sub(1);
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes(sector);
        let kind = parse_kind(ram, chain, kind, sector, in_len, bounds).unwrap_or_else(Kind::Refused);
        Ok(Self { head: chain.head, status, in_len, kind })
    }

    /// Bytes of payload that are read from the disk.
    pub(super) fn read_len(&self) -> u64 {
        if matches!(self.kind, Kind::Read { .. }) { self.in_len } else { 0 }
    }

    /// Bytes of payload that are written to the disk.
    pub(super) fn write_len(&self) -> u64 {
        match &self.kind {
            Kind::Write { data, .. } => data.iter().map(|segment| u64::from(segment.len)).sum(),
            _ => 0,
        }
    }

    /// What it costs of a limit, in bytes: its payload, and zeroes, for a host may have to write those too.
    pub(super) fn cost(&self) -> u64 {
        let zeroes = match &self.kind {
            Kind::Erase(extents) => {
                extents.iter().filter(|extent| extent.how != Erase::Discard).map(|extent| extent.len).sum()
            }
            _ => 0,
        };
        self.read_len() + self.write_len() + zeroes
    }
}

fn parse_kind(
    ram: &GuestRam,
    chain: &Chain,
    kind: u32,
    sector: u64,
    in_len: u64,
    bounds: Bounds,
) -> Result<Kind, Status> {
    let out_len = chain.readable_len().saturating_sub(HEADER_LEN);
    match kind {
        VIRTIO_BLK_T_IN => {
            let offset = locate(sector, in_len, bounds)?;
            Ok(Kind::Read { offset, data: slice(&chain.writable, 0, in_len).collect() })
        }
        VIRTIO_BLK_T_OUT => {
            writable(bounds)?;
            let offset = locate(sector, out_len, bounds)?;
            Ok(Kind::Write { offset, data: slice(&chain.readable, HEADER_LEN, out_len).collect() })
        }
        VIRTIO_BLK_T_FLUSH => Ok(Kind::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Kind::GetId),
        VIRTIO_BLK_T_DISCARD => parse_ranges(ram, chain, out_len, bounds, discard),
        VIRTIO_BLK_T_WRITE_ZEROES => parse_ranges(ram, chain, out_len, bounds, write_zeroes),
        _ => Err(Status::Unsupported),
    }
}

fn writable(bounds: Bounds) -> Result<(), Status> {
    if bounds.readonly { Err(Status::IoError) } else { Ok(()) }
}

/// Where on the disk `len` bytes from `sector` on lie.
fn locate(sector: u64, len: u64, bounds: Bounds) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    let end = offset.checked_add(len).ok_or(Status::IoError)?;
    if end > bounds.size || !len.is_multiple_of(SECTOR) { Err(Status::IoError) } else { Ok(offset) }
}

/// The rules for one kind of range list: how many, how long, and what its flags mean.
struct Rules {
    ranges: u32,
    sectors: u32,
    how: Erase,
}

/// 5.2.6.2: any flag, `unmap` among them, makes a discard unsupported.
fn discard(flags: u32) -> Result<Rules, Status> {
    match flags {
        0 => Ok(Rules { ranges: MAX_DISCARD_RANGES, sectors: MAX_DISCARD_SECTORS, how: Erase::Discard }),
        _ => Err(Status::Unsupported),
    }
}

fn write_zeroes(flags: u32) -> Result<Rules, Status> {
    let how = match flags {
        0 => Erase::Zero,
        VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Erase::Unmap,
        _ => return Err(Status::Unsupported),
    };
    Ok(Rules { ranges: MAX_ZERO_RANGES, sectors: MAX_ZERO_SECTORS, how })
}

fn parse_ranges(
    ram: &GuestRam,
    chain: &Chain,
    len: u64,
    bounds: Bounds,
    rules: fn(u32) -> Result<Rules, Status>,
) -> Result<Kind, Status> {
    writable(bounds)?;
    let most = u64::from(rules(0)?.ranges);
    if len == 0 || !len.is_multiple_of(RANGE_LEN) || len / RANGE_LEN > most {
        return Err(Status::IoError);
    }
    let mut extents = Vec::new();
    for at in (HEADER_LEN..HEADER_LEN + len).step_by(RANGE_LEN as usize) {
        let mut raw = [0; RANGE_LEN as usize];
        if chain.read(ram, at, &mut raw) < raw.len() {
            return Err(Status::IoError);
        }
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = raw;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let rules = rules(u32::from_le_bytes(flags))?;
        if sectors > rules.sectors {
            return Err(Status::IoError);
        }
        let len = u64::from(sectors) * SECTOR;
        let offset = locate(sector, len, bounds)?;
        if len > 0 {
            // The host refuses to erase nothing.
            extents.push(Extent { offset, len, how: rules.how });
        }
    }
    Ok(Kind::Erase(extents))
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
