//! The tables of an image that is written: pages of them in memory, written back in the order that keeps the file whole.
//!
//! A page is part of one table: it is as large as a cluster, or 4 KiB if clusters are larger. Two classes are told apart. Refcounts are
//! made durable before the tables that point at what they count are written at all.

use std::io;

use super::super::lru::Lru;
use crate::storage::StoredFile;

/// How many pages are kept: of 4 KiB, for disks with 64 KiB clusters, 96 cover 3 GiB.
const PAGES: usize = 96;
/// How many may wait to be written.
const MAX_DIRTY: usize = 64;

/// What a page is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The refcount table or a refcount block.
    Refcount,
    /// The L1 table or an L2 table.
    Mapping,
}

#[derive(Debug)]
struct Page {
    bytes: Box<[u8]>,
    class: Class,
    /// Differs from the file.
    dirty: bool,
    /// A copy is on its way to the file.
    writing: bool,
}

/// Pages that were taken to be written: where they go, and their bytes.
pub(super) type Batch = Vec<(u64, Box<[u8]>)>;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Pages {
    lru: Lru<Page>,
    size: u64,
    dirty: usize,
}

impl Pages {
    pub(super) fn new(cluster: u64) -> Self {
        Self { lru: Lru::new(PAGES), size: cluster.min(4096), dirty: 0 }
    }

    /// Whether anything waits to be written.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty > 0
    }

    /// Whether so much waits that it should be written before there is more.
    pub(super) fn is_full(&self) -> bool {
        self.dirty >= MAX_DIRTY
    }

    fn page(&mut self, file: &dyn StoredFile, offset: u64, class: Class) -> io::Result<(&mut Page, usize)> {
        let key = offset / self.size;
        // Smaller than a page.
        let within = (offset % self.size) as usize;
        // Looked up twice when it is there: the borrow of the first would last.
        if self.lru.get(key).is_none() {
            let mut bytes = vec![0; self.size as usize].into_boxed_slice();
            file.read_exact_at(&mut bytes, key * self.size)?;
            let page = Page { bytes, class, dirty: false, writing: false };
            self.lru.insert(key, page, |page| !page.dirty && !page.writing);
        }
        match self.lru.get(key) {
            Some(page) => Ok((page, within)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The big-endian number at `offset` of the file.
    ///
    /// # Errors
    /// If the host fails.
    pub(super) fn get(&mut self, file: &dyn StoredFile, offset: u64, class: Class) -> io::Result<u64> {
        let (page, within) = self.page(file, offset, class)?;
        let bytes = page.bytes.get(within..within + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_be_bytes).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// Change the number at `offset`, in memory.
    ///
    /// # Errors
    /// If the host fails.
    pub(super) fn set(
        &mut self,
        file: &dyn StoredFile,
        offset: u64,
        class: Class,
        value: u64,
    ) -> io::Result<()> {
        self.change(file, offset, class, |bytes| {
            if let Some(place) = bytes.get_mut(..8) {
                place.copy_from_slice(&value.to_be_bytes());
            }
        })
    }

    /// Change what follows `offset` in its page, in memory.
    ///
    /// # Errors
    /// If the host fails.
    pub(super) fn change(
        &mut self,
        file: &dyn StoredFile,
        offset: u64,
        class: Class,
        change: impl FnOnce(&mut [u8]),
    ) -> io::Result<()> {
        let (page, within) = self.page(file, offset, class)?;
        change(page.bytes.get_mut(within..).unwrap_or_default());
        if !std::mem::replace(&mut page.dirty, true) {
            self.dirty += 1;
        }
        Ok(())
    }

    /// Look at what follows `offset` in its page.
    ///
    /// # Errors
    /// If the host fails.
    pub(super) fn look<T>(
        &mut self,
        file: &dyn StoredFile,
        offset: u64,
        class: Class,
        look: impl FnOnce(&[u8]) -> T,
    ) -> io::Result<T> {
        let (page, within) = self.page(file, offset, class)?;
        Ok(look(page.bytes.get(within..).unwrap_or_default()))
    }

    /// Take copies of what waits to be written: refcounts, and the other tables. [`Pages::written`] must follow.
    pub(super) fn take(&mut self) -> (Batch, Batch) {
        let (mut refcounts, mut mappings) = (Vec::new(), Vec::new());
        for (key, page) in self.lru.iter_mut().filter(|(_, page)| page.dirty) {
            page.dirty = false;
            page.writing = true;
            let batch = if page.class == Class::Refcount { &mut refcounts } else { &mut mappings };
            batch.push((key * self.size, page.bytes.clone()));
        }
        self.dirty = 0;
        refcounts.sort_unstable_by_key(|(offset, _)| *offset);
        mappings.sort_unstable_by_key(|(offset, _)| *offset);
        (refcounts, mappings)
    }

    /// What was taken has been written, or must be again.
    pub(super) fn written(&mut self, done: bool) {
        for (_, page) in self.lru.iter_mut().filter(|(_, page)| page.writing) {
            page.writing = false;
            if !done && !std::mem::replace(&mut page.dirty, true) {
                self.dirty += 1;
            }
        }
    }

    /// Forget everything, which must not be dirty any more.
    pub(super) fn clear(&mut self) {
        self.lru.clear();
        self.dirty = 0;
    }
}
