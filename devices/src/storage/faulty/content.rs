//! What a file holds: as long as may be, but only the pages that were written take memory.

use std::collections::BTreeMap;
use std::io;

const PAGE: u64 = 4096;
/// What is written at once or not at all when the power fails, in bytes.
pub(super) const SECTOR: u64 = 512;

type Page = Box<[u8; PAGE as usize]>;

/// Sparse bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub len: u64,
    pages: BTreeMap<u64, Page>,
}

impl Content {
    pub(super) fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = (at % PAGE) as usize;
            let (piece, after) = rest.split_at_mut(rest.len().min(PAGE as usize - within));
            match self.pages.get(&(at / PAGE)) {
                Some(page) => piece.copy_from_slice(&page[within..within + piece.len()]),
                None => piece.fill(0),
            }
            at += piece.len() as u64;
            rest = after;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = (at % PAGE) as usize;
            let (piece, after) = rest.split_at(rest.len().min(PAGE as usize - within));
            let page = self.pages.entry(at / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[within..within + piece.len()].copy_from_slice(piece);
            at += piece.len() as u64;
            rest = after;
        }
        self.len = self.len.max(at);
    }

    /// Make it `len` bytes long; what is cut off is gone, should it grow again.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.pages.retain(|page, _| page * PAGE < len);
            let within = (len % PAGE) as usize;
            if let Some(page) = self.pages.get_mut(&(len / PAGE)) {
                page[within..].fill(0);
            }
        }
        self.len = len;
    }

    /// Make a part of it zeroes, without making it longer.
    pub(super) fn erase(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.len);
        let mut at = offset;
        while at < end {
            let within = (at % PAGE) as usize;
            let piece = (end - at).min(PAGE - at % PAGE);
            if piece == PAGE {
                self.pages.remove(&(at / PAGE));
            } else if let Some(page) = self.pages.get_mut(&(at / PAGE)) {
                page[within..within + piece as usize].fill(0);
            }
            at += piece;
        }
    }

    /// All of it.
    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len).map_err(io::Error::other)?];
        self.read(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// The pages that are there, in order: where each starts, and its bytes up to the end of the file.
    pub(super) fn written(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.pages.iter().map(|(page, bytes)| {
            let start = page * PAGE;
            (start, &bytes[..self.len.saturating_sub(start).min(PAGE) as usize])
        })
    }
}
