//! Hyper-V's disks (MS-VHDX 8.0): one file whose content is in blocks of 1 to 256 MiB.
//!
//! ```text
//! 0 K  "vhdxfile"
//! 64 K, 128 K  headers, the one with the higher number counts: is there a log to replay?
//! 192 K, 256 K region tables ─► metadata (sizes), BAT (where each block is)
//! ```
//! A file with a log that was not replayed is refused, and so is one that holds only the differences from another.

mod tables;
#[cfg(test)]
mod tests;

use std::io;

use devices::disk::layer::Source;

use self::tables::{Geometry, Regions};
use super::bytes::{Fields, Stored};
use super::error::Malformed;

/// The first bytes of the file.
pub(super) const MAGIC: &[u8] = b"vhdxfile";
/// What is read of the BAT at a time, in bytes.
const PAGE: u64 = 64 << 10;

/// An open file.
#[derive(Debug)]
pub(super) struct Vhdx<F> {
    file: F,
    len: u64,
    geometry: Geometry,
    bat: tables::Region,
    /// The part of the BAT that was read last, by its number.
    page: Option<(u64, Vec<u8>)>,
}

/// Where a block is.
enum Block {
    Zero,
    /// In the file, in bytes.
    At(u64),
}

impl<F: Stored> Vhdx<F> {
    /// Take an open file.
    ///
    /// # Errors
    /// If it is not whole by itself, is damaged, or the host fails.
    pub(super) fn open(file: F) -> io::Result<Self> {
        let len = file.length()?;
        tables::check_headers(&file)?;
        let Regions { bat, metadata } = tables::regions(&file, len)?;
        let geometry = tables::geometry(&file, metadata)?;
        if geometry.bat_entries().checked_mul(8).is_none_or(|needed| needed > bat.len) {
            return Err(Malformed::Value { what: "block allocation table's length", value: bat.len }.into());
        }
        Ok(Self { file, len, geometry, bat, page: None })
    }

    /// The BAT's entry of that number.
    fn entry(&mut self, number: u64) -> io::Result<u64> {
        let at = number * 8;
        let page = at / PAGE;
        if self.page.as_ref().is_none_or(|(read, _)| *read != page) {
            let len = PAGE.min(self.bat.len - page * PAGE);
            let bytes =
                self.file.bytes(self.bat.offset + page * PAGE, len as usize, "the block allocation table")?;
            self.page = Some((page, bytes));
        }
        let bytes = self.page.as_ref().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default();
        Ok(Fields::new(bytes, "the block allocation table").u64((at % PAGE) as usize)?)
    }

    fn block(&mut self, number: u64) -> io::Result<Block> {
        // After each chunk of blocks stands the entry of a bitmap, which only differences need (2.5.1).
        let entry = self.entry(number + number / self.geometry.chunk)?;
        let place = entry & !0xf_ffff;
        match entry & 7 {
            0..=3 => Ok(Block::Zero),
            6 if place.checked_add(self.geometry.block).is_some_and(|end| end <= self.len) && place != 0 => {
                Ok(Block::At(place))
            }
            6 => Err(Malformed::Outside { what: "a block", offset: place }.into()),
            7 => Err(Malformed::NeedsFile("the disk that it was made from".to_owned()).into()),
            state => Err(Malformed::Value { what: "state of a block", value: state }.into()),
        }
    }
}

impl<F: Stored> Source for Vhdx<F> {
    fn size(&self) -> u64 {
        self.geometry.size
    }

    fn extent(&mut self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        let block = self.geometry.block;
        let number = offset / block;
        let zero = matches!(self.block(number)?, Block::Zero);
        Ok((zero, ((number + 1) * block - offset).min(len)))
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let block = self.geometry.block;
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let within = at % block;
            let len = rest.len().min((block - within) as usize);
            let (part, after) = rest.split_at_mut(len);
            match self.block(at / block)? {
                Block::Zero => part.fill(0),
                Block::At(place) => self.file.fill(part, place + within)?,
            }
            at += len as u64;
            rest = after;
        }
        Ok(())
    }
}
