//! An image that is written: the top of a chain.
//!
//! What makes a write durable, and in which order, so that a crash at any moment leaves at most clusters that are counted and not
//! used:
//!
//! ```text
//! write to a cluster that has no place yet:  data ─► file     refcount, L2, L1 ─► memory
//! flush:  refcounts ─► file ─► sync (data too) ─► L2, L1 ─► file ─► sync
//! ```
//! A write to a cluster that has its place changes no table, and goes to the file past this type.
//!
//! Any thread may call. Lock order: `places`, then `order`, then `meta`; `meta` is never held while data is read or written, and `order`
//! only by those who write tables back.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::cache::{Class, Pages};
use super::check;
use super::entry::{COPIED, Mapping, ZERO};
use super::error::Malformed;
use super::image::{Image, decode};
use super::refcount::Refcounts;

/// The most that gets its place at once, in bytes.
const MAX_RUN: u64 = 1 << 20;

/// What is below the top: where the rest of a cluster comes from when a part of it is written.
pub(in crate::disk) trait Below {
    /// Fill `data` with what the disk has at `offset` below the top.
    ///
    /// # Errors
    /// If the host fails.
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Whether all of it is zeroes as far as the tables say.
    ///
    /// # Errors
    /// If the host fails.
    fn is_zero(&self, offset: u64, len: u64) -> io::Result<bool>;
}

/// The tables as they are in memory.
#[derive(Debug)]
pub(super) struct Meta {
    pub pages: Pages,
    pub refcounts: Refcounts,
    pub l1_offset: u64,
    pub l1_size: u64,
    /// Copies of pages are on their way to the file.
    writing: bool,
    /// Clusters that lose a use once the tables without it are durable.
    pub unused: Vec<Range<u64>>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::disk) struct Top {
    pub(in crate::disk) image: Image,
    /// Of the disk in bytes.
    size: AtomicU64,
    /// Held by whoever gives a cluster another place, or zeroes, from its look at the tables to their change.
    places: Mutex<()>,
    /// Held while tables are written back.
    order: Mutex<()>,
    meta: Mutex<Meta>,
    closed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked left tables in memory that are at worst leaks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Top {
    /// Take an image whose file is open for writing, and repair what a crash may have left.
    ///
    /// # Errors
    /// If it must not be written, is damaged, or the host fails.
    pub(in crate::disk) fn new(image: Image) -> Result<Self, Malformed> {
        let checked = check::prepare(&image)?;
        let path = image.path.display();
        if checked.too_low > 0 {
            log::warn!("{path}: {} counts were too low: what wrote it last has an error", checked.too_low);
        } else if checked.repaired > 0 {
            log::info!("{path}: put {} counts right that a crash had left", checked.repaired);
        }
        let meta = Meta {
            pages: Pages::new(image.header.cluster()),
            refcounts: checked.refcounts,
            l1_offset: image.header.l1_offset,
            l1_size: image.header.l1_size.into(),
            writing: false,
            unused: Vec::new(),
        };
        let size = AtomicU64::new(image.header.size);
        let (places, order, meta) = (Mutex::new(()), Mutex::new(()), Mutex::new(meta));
        Ok(Self { image, size, places, order, meta, closed: AtomicBool::new(false) })
    }

    /// The disk's size in bytes.
    pub(in crate::disk) fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::SeqCst);
    }

    pub(super) fn meta(&self) -> MutexGuard<'_, Meta> {
        lock(&self.meta)
    }

    pub(super) fn lock_places(&self) -> MutexGuard<'_, ()> {
        lock(&self.places)
    }

    pub(in crate::disk) fn cluster(&self) -> u64 {
        self.image.header.cluster()
    }

    /// Where a cluster of the disk is now.
    ///
    /// # Errors
    /// If the host fails.
    pub(in crate::disk) fn lookup(&self, cluster: u64) -> io::Result<Mapping> {
        let mut entry = [0];
        self.entries(cluster, &mut entry)?;
        Ok(self.image.mapping(entry[0], u64::MAX)?)
    }

    /// The L2 entries of the clusters from `first` on, as far as the disk has them; the others are left alone.
    ///
    /// # Errors
    /// If the host fails.
    pub(in crate::disk) fn entries(&self, first: u64, entries: &mut [u64]) -> io::Result<()> {
        let per_table = self.image.header.l2_entries();
        let file = &*self.image.file;
        let mut meta = self.meta();
        let (mut cluster, mut rest) = (first, entries);
        while !rest.is_empty() && cluster / per_table < meta.l1_size {
            let within = cluster % per_table;
            // A page is as much as can be looked at, and never reaches behind its table.
            let count = (per_table - within).min(512 - within % 512).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(count);
            match self.table(&mut meta, cluster)? {
                None => part.fill(0),
                Some(table) => {
                    meta.pages.look(file, table + within * 8, Class::Mapping, |bytes| decode(bytes, part))?;
                }
            }
            rest = after;
            cluster += count as u64;
        }
        Ok(())
    }

    /// The L2 table that has a cluster's entry.
    fn table(&self, meta: &mut Meta, cluster: u64) -> io::Result<Option<u64>> {
        let index = cluster / self.image.header.l2_entries();
        if index >= meta.l1_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let entry = meta.pages.get(&*self.image.file, meta.l1_offset + index * 8, Class::Mapping)?;
        Ok(self.image.table(entry, u64::MAX)?)
    }

    /// Write `data`, giving clusters that have no place one. The range lies inside the disk.
    ///
    /// # Errors
    /// If the host fails. A cluster is then as before, or partly written.
    pub(in crate::disk) fn write(&self, below: &dyn Below, offset: u64, data: &[u8]) -> io::Result<()> {
        let _places = lock(&self.places);
        self.write_placed(below, offset, data)
    }

    fn write_placed(&self, below: &dyn Below, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            self.make_room()?;
            let run = self.run(at, rest.len() as u64)?;
            // A part of `rest`.
            let (piece, after) = rest.split_at(run.len as usize);
            match run.first {
                Mapping::Data(place) => self.image.file.write_all_at(piece, place + at % self.cluster())?,
                _ => self.write_run(below, &run, at, piece)?,
            }
            rest = after;
            at += run.len;
        }
        Ok(())
    }

    /// The clusters from the one at `at` on that can be written the same way, at most `len` bytes.
    fn run(&self, at: u64, len: u64) -> io::Result<Run> {
        let (cluster, bits) = (self.cluster(), self.image.header.cluster_bits);
        let start = at >> bits;
        let first = self.lookup(start)?;
        let mut run = Run { first, last: first, clusters: 1, len: len.min(cluster - at % cluster) };
        let fresh = |mapping| matches!(mapping, Mapping::Absent | Mapping::Zero(None) | Mapping::Packed(..));
        // Not across tables, so that the entries are one piece.
        let most = (self.image.header.l2_entries() - start % self.image.header.l2_entries())
            .min((MAX_RUN >> bits).max(1));
        while fresh(run.first) && run.len < len && run.clusters < most {
            let next = self.lookup(start + run.clusters)?;
            if !fresh(next) {
                break;
            }
            run.last = next;
            run.clusters += 1;
            run.len = len.min(run.len + cluster);
        }
        Ok(run)
    }

    /// Give a run of clusters their places and write them.
    fn write_run(&self, below: &dyn Below, run: &Run, at: u64, data: &[u8]) -> io::Result<()> {
        let (cluster, bits) = (self.cluster(), self.image.header.cluster_bits);
        let kept = match run.first {
            Mapping::Zero(place) => place,
            _ => None,
        };
        let place = match kept {
            Some(place) => place,
            None => self.take(run.clusters)?,
        };
        let before = at % cluster;
        let mut head = vec![0; before as usize];
        let end = at + run.len;
        let mut tail = vec![0; (end.next_multiple_of(cluster) - end) as usize];
        let written = (|| {
            self.old(below, run.first, at - before, &mut head)?;
            self.old(below, run.last, end, &mut tail)?;
            self.write_whole(place, [&head, data, &tail], kept.is_some())
        })();
        if written.is_err() && kept.is_none() {
            self.give_back(place, run.clusters);
        }
        written?;
        // If it fails some may point there already: the rest is a leak, and nobody else's.
        self.link(at >> bits, place, run)
    }

    /// Write what makes up whole clusters from `place` on. In a new place what is not written reads as zeroes.
    fn write_whole(&self, place: u64, parts: [&[u8]; 3], all: bool) -> io::Result<()> {
        let file = &self.image.file;
        let [head, data, tail] = parts;
        let needed = |part: &[u8]| !part.is_empty() && (all || part.iter().any(|byte| *byte != 0));
        let around = needed(head) || needed(tail);
        if around && head.len() + data.len() + tail.len() <= 2 * self.cluster() as usize {
            return file.write_all_at(&parts.concat(), place);
        }
        let middle = place + head.len() as u64;
        if needed(head) {
            file.write_all_at(head, place)?;
        }
        if needed(tail) {
            file.write_all_at(tail, middle + data.len() as u64)?;
        }
        file.write_all_at(data, middle)
    }

    /// What a part of a cluster holds before it gets another place.
    fn old(&self, below: &dyn Below, mapping: Mapping, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match mapping {
            _ if data.is_empty() => Ok(()),
            Mapping::Absent => below.read(offset, data),
            Mapping::Zero(_) => {
                data.fill(0);
                Ok(())
            }
            Mapping::Data(place) => self.image.file.read_exact_at(data, place + offset % self.cluster()),
            Mapping::Packed(place, len) => {
                let mut whole = vec![0; self.cluster() as usize];
                self.image.unpack(place, len, &mut whole)?;
                let within = (offset % self.cluster()) as usize;
                data.copy_from_slice(whole.get(within..within + data.len()).unwrap_or_default());
                Ok(())
            }
        }
    }

    fn take(&self, clusters: u64) -> io::Result<u64> {
        self.grow_refcounts(clusters)?;
        let meta = &mut *self.meta();
        meta.refcounts.take(&mut meta.pages, &*self.image.file, clusters)
    }

    /// What was taken is not used after all. Best effort: what stays is a leak that the next opening repairs.
    fn give_back(&self, place: u64, clusters: u64) {
        let meta = &mut *self.meta();
        let first = place >> self.image.header.cluster_bits;
        let file = &*self.image.file;
        let released = meta.refcounts.release(&mut meta.pages, file, first, first + clusters);
        // Cut off, because a new place must read as zeroes.
        if released.is_ok() && meta.refcounts.next == first + clusters && file.set_len(place).is_ok() {
            meta.refcounts.next = first;
            meta.refcounts.file_len = place;
        }
    }

    /// Point the tables, in memory, at the new places of a run.
    fn link(&self, first: u64, place: u64, run: &Run) -> io::Result<()> {
        let entry = |index| (place + (index << self.image.header.cluster_bits)) | COPIED;
        self.relink(first, run.clusters, entry)
    }

    /// Change the L2 entries of clusters in one table, in memory.
    fn relink(&self, first: u64, clusters: u64, entry: impl Fn(u64) -> u64) -> io::Result<()> {
        let per_table = self.image.header.l2_entries();
        let meta = &mut *self.meta();
        let table = match self.table(meta, first)? {
            Some(table) => table,
            None => self.make_table(meta, first / per_table)?,
        };
        for index in 0..clusters {
            let at = table + (first + index) % per_table * 8;
            let old = meta.pages.get(&*self.image.file, at, Class::Mapping)?;
            meta.pages.set(&*self.image.file, at, Class::Mapping, entry(index))?;
            if let Mapping::Packed(offset, len) = self.image.mapping(old, u64::MAX)? {
                let bits = self.image.header.cluster_bits;
                meta.unused.push(offset >> bits..((offset + len - 1) >> bits) + 1);
            }
        }
        Ok(())
    }

    /// An empty L2 table. It is durable before an L1 entry that points at it is written.
    fn make_table(&self, meta: &mut Meta, index: u64) -> io::Result<u64> {
        let file = &*self.image.file;
        let table = meta.refcounts.take(&mut meta.pages, file, 1)?;
        file.write_all_at(&vec![0; self.cluster() as usize], table)?;
        meta.pages.set(file, meta.l1_offset + index * 8, Class::Mapping, table | COPIED)?;
        Ok(table)
    }

    /// Write tables back if many wait.
    fn make_room(&self) -> io::Result<()> {
        // A guard in the condition would last through the body.
        let full = self.meta().pages.is_full();
        if full { self.write_back(false) } else { Ok(()) }
    }

    /// Make a part of the disk zeroes. With `hint` a part that would need a place is left alone.
    ///
    /// # Errors
    /// If the host fails; a part may be done.
    pub(in crate::disk) fn erase(&self, below: &dyn Below, range: Range<u64>, hint: bool) -> io::Result<()> {
        let _places = lock(&self.places);
        let cluster = self.cluster();
        let mut at = range.start;
        // Clusters whose places are one piece are erased at once.
        let mut piece = 0..0;
        while at < range.end {
            self.make_room()?;
            let end = range.end.min((at / cluster + 1) * cluster);
            let mapping = self.lookup(at / cluster)?;
            if let Mapping::Data(place) = mapping {
                let place = place + at % cluster;
                if piece.end != place {
                    self.erase_places(piece)?;
                    piece = place..place;
                }
                piece.end += end - at;
            } else {
                self.erase_unplaced(below, mapping, at..end, hint)?;
            }
            at = end;
        }
        self.erase_places(piece)
    }

    fn erase_places(&self, places: Range<u64>) -> io::Result<()> {
        if places.is_empty() {
            Ok(())
        } else {
            self.image.file.erase(places.start, places.end - places.start)
        }
    }

    /// Make a part of a cluster zeroes that is not simply in its place.
    fn erase_unplaced(
        &self,
        below: &dyn Below,
        mapping: Mapping,
        range: Range<u64>,
        hint: bool,
    ) -> io::Result<()> {
        let (cluster, len) = (self.cluster(), range.end - range.start);
        let whole = range.start.is_multiple_of(cluster) && (len == cluster || range.end >= self.size());
        match mapping {
            Mapping::Zero(_) => Ok(()),
            Mapping::Absent if below.is_zero(range.start, len)? => Ok(()),
            _ if whole && self.image.header.version >= 3 => {
                self.grow_refcounts(1)?;
                self.relink(range.start / cluster, 1, |_| ZERO)
            }
            _ if hint => Ok(()),
            _ => self.write_placed(below, range.start, &vec![0; len as usize]),
        }
    }

    /// Whether a flush has more to do than to sync the file.
    pub(in crate::disk) fn is_dirty(&self) -> bool {
        let meta = self.meta();
        meta.writing || meta.pages.is_dirty()
    }

    /// Make everything durable that was written before.
    ///
    /// # Errors
    /// If the host fails: then the tables are tried again with the next flush.
    pub(in crate::disk) fn flush(&self) -> io::Result<()> {
        self.write_back(true)
    }

    pub(super) fn write_back(&self, durable: bool) -> io::Result<()> {
        let _order = lock(&self.order);
        let mut meta = self.meta();
        let (refcounts, mappings) = meta.pages.take();
        let unused = if durable { std::mem::take(&mut meta.unused) } else { Vec::new() };
        meta.writing = true;
        drop(meta);
        let written = self.write_in_order(&refcounts, &mappings, durable);
        let meta = &mut *self.meta();
        meta.writing = false;
        meta.pages.written(written.is_ok());
        if written.is_err() {
            meta.unused.extend(unused);
            return written;
        }
        for cluster in unused.into_iter().flatten() {
            let count = meta.refcounts.get(&mut meta.pages, &*self.image.file, cluster)?;
            let fewer = count.saturating_sub(1);
            meta.refcounts.set(&mut meta.pages, &*self.image.file, cluster, fewer)?;
        }
        Ok(())
    }

    fn write_in_order(
        &self,
        refcounts: &[(u64, Box<[u8]>)],
        mappings: &[(u64, Box<[u8]>)],
        durable: bool,
    ) -> io::Result<()> {
        let file = &self.image.file;
        let write = |(offset, bytes): &(u64, Box<[u8]>)| file.write_all_at(bytes, *offset);
        refcounts.iter().try_for_each(write)?;
        if !refcounts.is_empty() || !mappings.is_empty() {
            file.sync()?;
        }
        mappings.iter().try_for_each(write)?;
        if durable && (!mappings.is_empty() || refcounts.is_empty()) { file.sync() } else { Ok(()) }
    }

    /// Nothing will be written any more: make everything durable, give the end of the file back, and forget the tables.
    ///
    /// # Errors
    /// If the host fails; it may be tried again.
    pub(in crate::disk) fn close(&self) -> io::Result<()> {
        let _places = lock(&self.places);
        if self.is_closed() {
            return Ok(());
        }
        self.write_back(true)?;
        // Clusters that lost their use with it.
        if self.is_dirty() {
            self.write_back(true)?;
        }
        let meta = &mut *self.meta();
        let end = meta.refcounts.next << self.image.header.cluster_bits;
        if meta.refcounts.file_len != end {
            self.image.file.set_len(end)?;
            meta.refcounts.file_len = end;
        }
        meta.pages.clear();
        self.closed.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// What is in it is not needed any more: its end writes nothing.
    pub(in crate::disk) fn abandon(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Whether [`Top::close`] is done.
    pub(in crate::disk) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

/// Clusters one behind the other that get their places together.
#[derive(Debug)]
struct Run {
    first: Mapping,
    last: Mapping,
    clusters: u64,
    /// Bytes of them that are written.
    len: u64,
}
