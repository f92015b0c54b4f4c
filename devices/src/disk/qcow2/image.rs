//! An image that is only read.

use std::path::{Path, PathBuf};

use super::entry::{Mapping, OFFSET};
use super::error::Malformed;
use super::header::Header;
use super::packed;
use crate::storage::StoredFile;

/// An open image with a checked header. What its tables say is checked when they are read.
#[derive(Debug)]
pub(in crate::disk) struct Image {
    pub(in crate::disk) file: Box<dyn StoredFile>,
    pub(in crate::disk) path: PathBuf,
    pub(in crate::disk) header: Header,
    /// When it was opened, in bytes.
    pub(in crate::disk) len: u64,
}

impl Image {
    /// Take an open file.
    ///
    /// # Errors
    /// If it is no image that can be read.
    pub(in crate::disk) fn new(file: Box<dyn StoredFile>, path: &Path) -> Result<Self, Malformed> {
        let header = Header::read(&*file)?;
        let len = file.len()?;
        Ok(Self { file, path: path.to_owned(), header, len })
    }

    /// How many clusters the disk has.
    pub(in crate::disk) fn clusters(&self) -> u64 {
        self.header.size.div_ceil(self.header.cluster())
    }

    /// Where the L2 table at index `l1` is; `None` if there is none.
    ///
    /// # Errors
    /// If the entry points at no place where a table can be.
    pub(super) fn table(&self, entry: u64, file_len: u64) -> Result<Option<u64>, Malformed> {
        let (offset, cluster) = (entry & OFFSET, self.header.cluster());
        if offset == 0 {
            return Ok(None);
        }
        if !offset.is_multiple_of(cluster) {
            return Err(Malformed::Damaged { what: "an L2 table that is not aligned", offset });
        }
        if offset.checked_add(cluster).is_none_or(|end| end > file_len) {
            return Err(Malformed::Outside { what: "an L2 table", offset });
        }
        Ok(Some(offset))
    }

    /// Read the L2 entries of the clusters from `first` on, as far as the disk has them; the others are left alone.
    ///
    /// # Errors
    /// If the tables are damaged, or the host fails.
    pub(in crate::disk) fn entries(&self, first: u64, entries: &mut [u64]) -> Result<(), Malformed> {
        let per_table = self.header.l2_entries();
        let mut bytes = [0; 4096];
        let (mut cluster, mut rest) = (first, entries);
        while !rest.is_empty() && cluster < self.clusters() {
            let within = cluster % per_table;
            // At most what the buffer, the table and the caller have.
            let count = (per_table - within).min(512).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(count);
            match self.table(self.l1_entry(cluster / per_table)?, self.len)? {
                None => part.fill(0),
                Some(table) => {
                    let buffer = bytes.get_mut(..count * 8).unwrap_or_default();
                    self.file.read_exact_at(buffer, table + within * 8)?;
                    decode(buffer, part);
                }
            }
            rest = after;
            cluster += count as u64;
        }
        Ok(())
    }

    fn l1_entry(&self, index: u64) -> Result<u64, Malformed> {
        if index >= u64::from(self.header.l1_size) {
            return Err(Malformed::Value { what: "L1 table's length", value: self.header.l1_size.into() });
        }
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, self.header.l1_offset + index * 8)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// What an L2 entry means, checked.
    ///
    /// # Errors
    /// If it points where no cluster can be in a file of `file_len` bytes.
    pub(in crate::disk) fn mapping(&self, entry: u64, file_len: u64) -> Result<Mapping, Malformed> {
        let mapping = Mapping::parse(entry, self.header.version, self.header.cluster_bits);
        match mapping {
            Mapping::Data(offset) | Mapping::Zero(Some(offset))
                if !offset.is_multiple_of(self.header.cluster()) =>
            {
                Err(Malformed::Damaged { what: "a cluster that is not aligned", offset })
            }
            Mapping::Data(offset) | Mapping::Packed(offset, _) if offset >= file_len => {
                Err(Malformed::Outside { what: "a cluster", offset })
            }
            mapping => Ok(mapping),
        }
    }

    /// Unpack the cluster that lies packed at `offset`, within `len` bytes, into `cluster`.
    ///
    /// # Errors
    /// If it is damaged, or the host fails.
    pub(in crate::disk) fn unpack(&self, offset: u64, len: u64, cluster: &mut [u8]) -> Result<(), Malformed> {
        // The last one may end before its last sector does. It is at most two clusters long by its form.
        let len = len.min(self.file.len()?.saturating_sub(offset)).min(self.header.cluster() * 2);
        let mut packed = vec![0; len as usize];
        self.file.read_exact_at(&mut packed, offset)?;
        packed::unpack(self.header.packing, &packed, cluster)?;
        Ok(())
    }
}

/// Big-endian bytes to numbers.
pub(super) fn decode(bytes: &[u8], entries: &mut [u64]) {
    for (entry, bytes) in entries.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *entry = u64::from_be_bytes(*bytes);
    }
}
