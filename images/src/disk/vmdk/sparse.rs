//! A sparse file: its header, and how its grains are found.

use std::io;

use devices::disk::SECTOR;
use devices::disk::layer::Source;

use super::super::bytes::{Fields, Stored};
use super::super::error::Malformed;
use super::super::raw::bounded;
use super::descriptor::{Descriptor, Kind};
use super::{MAGIC, MAX_DESCRIPTOR};

const HAS_ZERO_GRAINS: u32 = 1 << 2;
const PACKED: u32 = 1 << 16;
/// The directory's place is in the second header.
const AT_END: u64 = u64::MAX;
/// The largest grain, in sectors: 2 MiB.
const MAX_GRAIN: u64 = 4096;
/// The longest table, in entries; 512 is what is written.
const MAX_TABLE: u32 = 4096;
/// Before a packed grain: where it belongs (8 bytes) and its length (4).
const MARKER: u64 = 12;

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Of the disk, in bytes.
    pub size: u64,
    /// In bytes, a power of two.
    pub grain: u64,
    /// Entries of a grain table.
    pub per_table: u32,
    /// Of the directory, in bytes; [`AT_END`].
    pub directory: u64,
    /// Where the descriptor is and how long, in bytes; 0: nowhere.
    pub descriptor: (u64, u64),
    pub packed: bool,
    pub zero_grains: bool,
}

fn value(what: &'static str, value: impl Into<u64>) -> Malformed {
    Malformed::Value { what, value: value.into() }
}

impl Header {
    /// Check the first sector, or the last but one.
    ///
    /// # Errors
    /// If it is no header that can be read.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let fields = Fields::new(bytes, "the header");
        if fields.part(0, 4)? != MAGIC {
            return Err(value("magic", fields.u32(0)?));
        }
        let (version, flags, pack) = (fields.u32(4)?, fields.u32(8)?, fields.u16(77)?);
        let (sectors, grain, per_table) = (fields.u64(12)?, fields.u64(20)?, fields.u32(44)?);
        let in_bytes = |what, sectors: u64| sectors.checked_mul(SECTOR).ok_or(value(what, sectors));
        if !(1..=3).contains(&version) {
            return Err(value("version", version));
        }
        if fields.part(72, 1)? != [0] {
            return Err(Malformed::Unclean("its mark of an unclean shutdown is set"));
        }
        if !grain.is_power_of_two() || grain > MAX_GRAIN {
            return Err(value("grain size", grain));
        }
        if per_table == 0 || per_table > MAX_TABLE {
            return Err(value("length of grain tables", per_table));
        }
        if pack > 1 || (pack == 1) != (flags & PACKED != 0) {
            return Err(value("compression", pack));
        }
        let size = in_bytes("capacity", sectors)?;
        if size == 0 {
            return Err(value("capacity", sectors));
        }
        let directory = match fields.u64(56)? {
            AT_END => AT_END,
            0 => return Err(value("grain directory's place", 0_u64)),
            sector => in_bytes("grain directory's place", sector)?,
        };
        let descriptor = in_bytes("descriptor's place", fields.u64(28)?)?;
        let descriptor_len = in_bytes("descriptor's length", fields.u64(36)?)?;
        Ok(Self {
            size: bounded(size)?,
            grain: grain * SECTOR,
            per_table,
            directory,
            descriptor: (descriptor, descriptor_len),
            packed: flags & PACKED != 0,
            zero_grains: flags & HAS_ZERO_GRAINS != 0,
        })
    }
}

/// An open sparse file.
#[derive(Debug)]
pub(super) struct Sparse<F> {
    file: F,
    len: u64,
    header: Header,
    /// The table that was read last, by its number: disks are read from front to back.
    table: Option<(u64, Vec<u32>)>,
    /// The grain that was unpacked last.
    unpacked: Option<(u64, Vec<u8>)>,
}

/// Where a grain is.
enum Grain {
    Zero,
    /// In the file, in bytes.
    At(u64),
}

impl<F: Stored> Sparse<F> {
    /// Take an open file.
    ///
    /// # Errors
    /// If it is not whole by itself, is damaged, or the host fails.
    pub(super) fn open(file: F) -> io::Result<Self> {
        let len = file.length()?;
        let mut header = Header::parse(&file.bytes(0, SECTOR as usize, "the header")?)?;
        let (at, text_len) = header.descriptor;
        if at != 0 {
            if text_len > MAX_DESCRIPTOR {
                return Err(value("descriptor's length", text_len).into());
            }
            let text = file.bytes(at, text_len as usize, "the descriptor")?;
            // Its name is that of the file when it was made: this file, by now perhaps with another name.
            if let Kind::Flat { name, .. } = Descriptor::parse(&text)?.kind {
                return Err(Malformed::NeedsFile(name).into());
            }
        }
        if header.directory == AT_END {
            // The last sector is the end of the stream, before it stands the header again.
            let place =
                len.checked_sub(2 * SECTOR).ok_or(Malformed::Outside { what: "the footer", offset: len })?;
            let footer = Header::parse(&file.bytes(place, SECTOR as usize, "the footer")?)?;
            let same = (footer.size, footer.grain, footer.per_table, footer.packed)
                == (header.size, header.grain, header.per_table, header.packed);
            if footer.directory == AT_END || !same {
                return Err(Malformed::Damaged { what: "the footer", offset: place }.into());
            }
            header = footer;
        }
        let grains = header.size.div_ceil(header.grain);
        let directory = grains.div_ceil(header.per_table.into()) * 4;
        if header.directory.checked_add(directory).is_none_or(|end| end > len) {
            return Err(Malformed::Outside { what: "the grain directory", offset: header.directory }.into());
        }
        Ok(Self { file, len, header, table: None, unpacked: None })
    }

    /// The entries of a grain table; all of them zero if there is none.
    fn table(&mut self, number: u64) -> io::Result<&[u32]> {
        if self.table.as_ref().is_none_or(|(read, _)| *read != number) {
            let per_table = self.header.per_table as usize;
            let entry = self.file.bytes(self.header.directory + number * 4, 4, "the grain directory")?;
            let sector = Fields::new(&entry, "the grain directory").u32(0)?;
            let entries = if sector == 0 {
                vec![0; per_table]
            } else {
                let bytes = self.file.bytes(u64::from(sector) * SECTOR, per_table * 4, "a grain table")?;
                bytes.as_chunks::<4>().0.iter().map(|entry| u32::from_le_bytes(*entry)).collect()
            };
            self.table = Some((number, entries));
        }
        Ok(self.table.as_ref().map(|(_, entries)| entries.as_slice()).unwrap_or_default())
    }

    fn grain(&mut self, number: u64) -> io::Result<Grain> {
        let (per_table, zero_grains) = (u64::from(self.header.per_table), self.header.zero_grains);
        let table = self.table(number / per_table)?;
        let entry = table.get((number % per_table) as usize).copied().unwrap_or(0);
        match entry {
            0 => Ok(Grain::Zero),
            1 if zero_grains => Ok(Grain::Zero),
            sector => Ok(Grain::At(u64::from(sector) * SECTOR)),
        }
    }

    /// Unpack the grain whose marker is at `place`.
    fn unpack(&mut self, number: u64, place: u64) -> io::Result<()> {
        let grain = self.header.grain;
        let marker = self.file.bytes(place, MARKER as usize, "a packed grain")?;
        let fields = Fields::new(&marker, "a packed grain");
        let (lba, len) = (fields.u64(0)?, u64::from(fields.u32(8)?));
        let damaged = || io::Error::from(Malformed::Damaged { what: "a packed grain", offset: place });
        // What cannot be packed grows by a few bytes for each 16 KiB.
        if lba.checked_mul(SECTOR) != Some(number * grain) || len > grain + grain / 256 + 64 {
            return Err(damaged());
        }
        let packed = self.file.bytes(place + MARKER, len as usize, "a packed grain")?;
        let mut bytes = self.unpacked.take().map(|(_, bytes)| bytes).unwrap_or_default();
        bytes.clear();
        bytes.resize(grain as usize, 0);
        let mut inflate = flate2::Decompress::new(true);
        let status = inflate.decompress(&packed, &mut bytes, flate2::FlushDecompress::Finish);
        // The disk's last grain may be packed as far as the disk goes.
        let wanted = grain.min(self.header.size - number * grain);
        if status.is_err() || inflate.total_out() < wanted {
            return Err(damaged());
        }
        self.unpacked = Some((number, bytes));
        Ok(())
    }
}

impl<F: Stored> Source for Sparse<F> {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn extent(&mut self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        let grain = self.header.grain;
        let table = grain * u64::from(self.header.per_table);
        let mut number = offset / grain;
        let zero = matches!(self.grain(number)?, Grain::Zero);
        let mut end = (number + 1) * grain;
        // No further than the table that is at hand.
        let last = (offset / table + 1) * table;
        while zero && end < last && end < offset.saturating_add(len) {
            number += 1;
            if !matches!(self.grain(number)?, Grain::Zero) {
                break;
            }
            end += grain;
        }
        Ok((zero, (end - offset).min(len)))
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let grain = self.header.grain;
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (number, within) = (at / grain, at % grain);
            let len = rest.len().min((grain - within) as usize);
            let (part, after) = rest.split_at_mut(len);
            match self.grain(number)? {
                Grain::Zero => part.fill(0),
                Grain::At(place) if self.header.packed => {
                    if self.unpacked.as_ref().is_none_or(|(kept, _)| *kept != number) {
                        self.unpack(number, place)?;
                    }
                    let kept = self.unpacked.as_ref().and_then(|(_, bytes)| bytes.get(within as usize..));
                    let kept = kept.and_then(|bytes| bytes.get(..len));
                    part.copy_from_slice(kept.ok_or(io::ErrorKind::UnexpectedEof)?);
                }
                Grain::At(place) => {
                    let place = place + within;
                    if place.checked_add(len as u64).is_none_or(|end| end > self.len) {
                        return Err(Malformed::Outside { what: "a grain", offset: place }.into());
                    }
                    self.file.fill(part, place)?;
                }
            }
            at += len as u64;
            rest = after;
        }
        Ok(())
    }
}
