//! Which pages of the guest's RAM a snapshot's memory file holds.
//!
//! Pages are counted over all of RAM, the regions packed one after the other, and a page's number times its size is its offset in
//! the file. In the index's file they are one section of an [`Envelope`], `memory-index`, with the runs as hexadecimal digits: a
//! pair of little-endian `u32` each, the first page and how many (the top bit set where they are zero). Files are hostile:
//! [`Index`] is only ever one that makes sense.

use std::fmt::Write as _;
use std::path::Path;

use arch::layout;
use devices::storage::Storage;
use serde::{Deserialize, Serialize};

use super::super::envelope::{Envelope, EnvelopeError, Problem};
use super::super::manifest::Sum;

/// A page, in bytes.
pub const PAGE: u64 = 4096;
/// The largest RAM there can be, in pages: 4 TiB.
const MOST_PAGES: u32 = 1 << 30;
/// The bit of a run's count that says that its pages are zero.
const ZERO: u32 = 1 << 31;
const KIND: &str = "memory-index";
const VERSION: u32 = 1;

/// What pages hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// What is in the file at their place.
    Data,
    /// Nothing but zeros, and the file has a hole.
    Zero,
}

/// Pages that lie side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The number of the first.
    pub first: u32,
    /// How many; at least 1.
    pub count: u32,
    /// What they hold.
    pub content: Content,
}

impl Run {
    /// The page behind the last.
    #[must_use]
    pub fn end(&self) -> u32 {
        // Only runs that lie in RAM are ever made.
        self.first.saturating_add(self.count)
    }
}

/// Why an index makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Pages of another size than [`PAGE`].
    #[error("its pages have {0} bytes, not {PAGE}")]
    PageSize(u64),
    /// Not a size that a VM's RAM can have, in bytes.
    #[error("it is of {0} bytes of RAM")]
    Size(u64),
    /// RAM lies elsewhere in the guest than it would be put.
    #[error("its RAM lies elsewhere in the guest")]
    Regions,
    /// The runs are no pairs of numbers.
    #[error("its runs are no hexadecimal digits, sixteen each")]
    Digits,
    /// A run is empty, outside of RAM, or not behind the one before it.
    #[error("its run {0} is empty, beyond the RAM or not behind the one before")]
    Run(usize),
}

/// Which pages a memory file holds, and what they must add up to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Wire", try_from = "Wire")]
pub struct Index {
    pages: u32,
    runs: Vec<Run>,
    crc32: u32,
}

/// An index as it is written.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Wire {
    page_size: u64,
    size: u64,
    regions: Vec<(u64, u64)>,
    crc32: u32,
    runs: String,
}

impl Index {
    /// Of `size` bytes of RAM, with `runs` in rising order and the CRC-32 (IEEE) of the data of those that have some, in that order.
    ///
    /// # Errors
    /// If that makes no sense.
    pub fn new(size: u64, runs: Vec<Run>, crc32: u32) -> Result<Self, IndexError> {
        let pages = u32::try_from(size / PAGE).ok().filter(|pages| (1..=MOST_PAGES).contains(pages));
        let pages = pages.filter(|_| size.is_multiple_of(PAGE)).ok_or(IndexError::Size(size))?;
        let mut end = 0;
        for (at, run) in runs.iter().enumerate() {
            let next = run.first.checked_add(run.count).filter(|next| *next <= pages);
            end = next.filter(|_| run.count > 0 && run.first >= end).ok_or(IndexError::Run(at))?;
        }
        Ok(Self { pages, runs, crc32 })
    }

    /// The RAM's size in pages.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The RAM's size in bytes: that of the memory file, too.
    #[must_use]
    pub fn size(&self) -> u64 {
        u64::from(self.pages) * PAGE
    }

    /// In rising order, without overlaps.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The CRC-32 (IEEE) of the data of all runs that have some, in their order.
    #[must_use]
    pub fn crc32(&self) -> u32 {
        self.crc32
    }

    /// How much data the memory file holds, in bytes.
    #[must_use]
    pub fn stored(&self) -> u64 {
        let data = self.runs.iter().filter(|run| run.content == Content::Data);
        data.map(|run| u64::from(run.count) * PAGE).sum()
    }

    /// Write it as the new file `path`, durably but for the file's name. Returns what the file must be.
    ///
    /// # Errors
    /// If there is such a file, or the host fails.
    pub fn write(&self, storage: &dyn Storage, path: &Path) -> Result<Sum, EnvelopeError> {
        let mut envelope = Envelope::new();
        let added = envelope.add(KIND, VERSION, "", self);
        added.map_err(|problem| EnvelopeError { path: path.to_owned(), problem })?;
        envelope.write(storage, path)
    }

    /// Read the file `path`.
    ///
    /// # Errors
    /// If the host fails, or what the file holds is not right.
    pub fn read(storage: &dyn Storage, path: &Path) -> Result<Self, EnvelopeError> {
        let index: Result<Self, Problem> = Envelope::read(storage, path)?.one(KIND, VERSION);
        index.map_err(|problem| EnvelopeError { path: path.to_owned(), problem })
    }
}

impl From<Index> for Wire {
    fn from(index: Index) -> Self {
        let mut runs = String::with_capacity(index.runs.len().saturating_mul(16));
        for run in &index.runs {
            let zero = if run.content == Content::Zero { ZERO } else { 0 };
            // Bytes in memory order, so that the digits read as the numbers' little-endian bytes.
            let _ = write!(runs, "{:08x}{:08x}", run.first.swap_bytes(), (run.count | zero).swap_bytes());
        }
        let size = index.size();
        Self { page_size: PAGE, size, regions: layout::ram_regions(size), crc32: index.crc32, runs }
    }
}

impl TryFrom<Wire> for Index {
    type Error = IndexError;

    fn try_from(wire: Wire) -> Result<Self, IndexError> {
        if wire.page_size != PAGE {
            return Err(IndexError::PageSize(wire.page_size));
        }
        let (digits, rest) = wire.runs.as_bytes().as_chunks::<16>();
        if !rest.is_empty() {
            return Err(IndexError::Digits);
        }
        let runs: Option<Vec<Run>> = digits.iter().map(run).collect();
        let index = Self::new(wire.size, runs.ok_or(IndexError::Digits)?, wire.crc32)?;
        if wire.regions != layout::ram_regions(wire.size) {
            return Err(IndexError::Regions);
        }
        Ok(index)
    }
}

fn run(digits: &[u8; 16]) -> Option<Run> {
    let mut value: u64 = 0;
    for digit in digits {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        value = value << 4 | u64::from(digit);
    }
    // The first digits are the first bytes.
    let value = value.swap_bytes();
    let (first, count) = (value as u32, (value >> 32) as u32);
    let content = if count & ZERO != 0 { Content::Zero } else { Content::Data };
    Some(Run { first, count: count & !ZERO, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn run(first: u32, count: u32, content: Content) -> Run {
        Run { first, count, content }
    }

    #[test]
    fn an_index_reads_back_as_it_was_written_and_adds_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index");
        let runs = vec![run(0, 3, Content::Data), run(3, 2, Content::Zero), run(0x1234, 1, Content::Data)];
        let index = Index::new(64 * MIB, runs, 0xdead_beef).unwrap();
        let sum = index.write(&devices::storage::HostStorage, &path).unwrap();
        assert_eq!(sum.len, std::fs::metadata(&path).unwrap().len());
        assert_eq!(Index::read(&devices::storage::HostStorage, &path).unwrap(), index);
        assert_eq!((index.size(), index.pages(), index.stored()), (64 * MIB, 16384, 4 * PAGE));
    }

    /// The form is fixed: files of it are out there.
    #[test]
    fn the_form_of_an_index_stays() {
        let runs = vec![run(1, 2, Content::Data), run(0x1234, 0x0203, Content::Zero)];
        let text = serde_json::to_string(&Index::new(64 * MIB, runs, 7).unwrap()).unwrap();
        let expected = r#"{"page-size":4096,"size":67108864,"regions":[[0,67108864]],"crc32":7,"runs":"01000000020000003412000003020080"}"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn an_index_that_makes_no_sense_is_refused() {
        let wrong = |runs: &[(u32, u32)]| {
            let runs = runs.iter().map(|(first, count)| run(*first, *count, Content::Data)).collect();
            Index::new(MIB, runs, 0).unwrap_err()
        };
        assert_eq!(wrong(&[(0, 0)]), IndexError::Run(0));
        assert_eq!(wrong(&[(0, 2), (1, 1)]), IndexError::Run(1));
        assert_eq!(wrong(&[(5, 1), (0, 1)]), IndexError::Run(1));
        assert_eq!(wrong(&[(0, 1), (256, 1)]), IndexError::Run(1));
        assert_eq!(wrong(&[(255, 2)]), IndexError::Run(0));
        assert_eq!(wrong(&[(u32::MAX, u32::MAX)]), IndexError::Run(0));
        for size in [0, 1, PAGE + 1, u64::MAX, (u64::from(MOST_PAGES) + 1) * PAGE] {
            assert_eq!(Index::new(size, Vec::new(), 0), Err(IndexError::Size(size)));
        }
    }

    #[test]
    fn what_a_file_says_is_not_believed() {
        let good = r#"{"page-size":4096,"size":67108864,"regions":[[0,67108864]],"crc32":7,"runs":"0100000002000000"}"#;
        let read = |text: &str| serde_json::from_str::<Index>(text).map_err(|error| error.to_string());
        read(good).unwrap();
        for (from, to, why) in [
            ("4096", "16384", "its pages have 16384 bytes"),
            ("[[0,67108864]]", "[[4096,67108864]]", "lies elsewhere"),
            ("[[0,67108864]]", "[]", "lies elsewhere"),
            ("0100000002000000", "010000000200000", "hexadecimal"),
            ("0100000002000000", "0100000002000O00", "hexadecimal"),
            ("0100000002000000", "0100000000000080", "its run 0"),
            ("0100000002000000", "0040000001000000", "its run 0"),
            ("\"size\":67108864", "\"size\":67108865", "67108865 bytes of RAM"),
            ("\"size\":67108864", "\"size\":-1", "invalid value"),
            ("\"crc32\":7,", "", "missing field"),
        ] {
            assert!(good.contains(from), "{from}");
            let error = read(&good.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(why), "{from} -> {to}: {error}");
        }
    }
}
