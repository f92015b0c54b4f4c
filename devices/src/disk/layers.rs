//! The frozen part of a chain, as one: where each piece of the disk is, whichever file has it.
//!
//! Looking through many files costs as much as looking through one: what was found is kept, in slices of 512 pieces (granules), each as
//! large as the smallest cluster of the chain. Frozen files do not change, so nothing that is kept is ever wrong.
//!
//! Any thread may call. Two locks, never held together; the one of the slices is held while tables are read, never while data is.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::lru::Lru;
use super::member::{Body, Member};
use super::qcow2::{CLUSTER_BITS, Mapping};

/// How many granules a slice has.
const SLICE: usize = 512;
/// How many slices are kept: at 4 KiB each, for 64 KiB clusters, 128 cover 4 GiB.
const SLICES: usize = 128;

/// Where a piece of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// No file has it: it reads as zeroes.
    Absent,
    /// It was made zeroes.
    Zero,
    /// At this offset of the file of that number, counted from the base.
    Data { member: usize, offset: u64 },
    /// Packed, in the file of that number.
    Packed { member: usize },
}

/// A granule's place in 8 bytes: what it is in bits 0 to 2, the file's number from bit 54 on, between them the offset in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const OPEN: Self = Self(7);
    const ABSENT: Self = Self(0);
    const ZERO: Self = Self(1);
    const DATA: u64 = 2;
    const PACKED: u64 = 3;
    /// Its table says something impossible.
    const DAMAGED: u64 = 4;

    fn new(kind: u64, member: usize, offset: u64) -> Self {
        // Offsets are below 2^60, and there are at most 512 files.
        Self(kind | (offset >> 9) << 3 | (member as u64) << 54)
    }

    fn kind(self) -> u64 {
        self.0 & 7
    }

    fn member(self) -> usize {
        (self.0 >> 54) as usize
    }

    fn offset(self) -> u64 {
        (self.0 >> 3 & ((1 << 51) - 1)) << 9
    }
}

/// The cluster that was unpacked last: guests read on.
#[derive(Debug)]
struct Unpacked {
    member: usize,
    cluster: u64,
    bytes: Vec<u8>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Layers {
    /// The base first.
    members: Vec<Arc<Member>>,
    /// Of each: up to where what it has can be seen, in bytes. A file that is shorter than those above it ends in zeroes.
    limits: Vec<u64>,
    granule_bits: u32,
    slices: Mutex<Lru<Box<[Entry; SLICE]>>>,
    unpacked: Mutex<Option<Unpacked>>,
}

impl Layers {
    /// A chain, its base first.
    pub(super) fn new(members: Vec<Arc<Member>>) -> Self {
        let mut limit = u64::MAX;
        let mut limits: Vec<u64> = members
            .iter()
            .rev()
            .map(|member| {
                limit = limit.min(member.size());
                limit
            })
            .collect();
        limits.reverse();
        let bits = members.iter().filter_map(|member| member.image()).map(|image| image.header.cluster_bits);
        Self {
            granule_bits: bits.min().unwrap_or(CLUSTER_BITS),
            limits,
            members,
            slices: Mutex::new(Lru::new(SLICES)),
            unpacked: Mutex::new(None),
        }
    }

    /// The files, the base first.
    pub(super) fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// How large the disk is without what is above, in bytes; 0 if there is nothing.
    pub(super) fn size(&self) -> u64 {
        self.members.last().map_or(0, |member| member.size())
    }

    /// Where the disk's byte at `offset` is, and how many of the `len` bytes from there on are one piece with it.
    ///
    /// # Errors
    /// If a table is damaged, or the host fails.
    pub(super) fn find(&self, offset: u64, len: u64) -> io::Result<(Place, u64)> {
        if let [base] = self.members.as_slice()
            && let Body::Raw { size, .. } = &base.body
        {
            return Ok(match size.checked_sub(offset) {
                None | Some(0) => (Place::Zero, len),
                Some(rest) => (Place::Data { member: 0, offset }, len.min(rest)),
            });
        }
        if self.members.is_empty() {
            return Ok((Place::Absent, len));
        }
        let granule = offset >> self.granule_bits;
        let within = offset & ((1 << self.granule_bits) - 1);
        let len = len.min((1 << self.granule_bits) - within);
        let entry = self.entry(granule)?;
        let member = entry.member();
        match entry.kind() {
            0 => Ok((Place::Absent, len)),
            Entry::DATA | Entry::PACKED => {
                let limit = self.limits.get(member).copied().unwrap_or(0);
                let Some(seen @ 1..) = limit.checked_sub(offset) else { return Ok((Place::Zero, len)) };
                let len = len.min(seen);
                if entry.kind() == Entry::PACKED {
                    return Ok((Place::Packed { member }, len));
                }
                let place = entry.offset() + within;
                let end = self.members.get(member).map_or(0, |member| member.content_end());
                match end.checked_sub(place) {
                    // The last cluster of a file may be cut off where it holds zeroes.
                    None | Some(0) => Ok((Place::Zero, len)),
                    Some(there) => Ok((Place::Data { member, offset: place }, len.min(there))),
                }
            }
            Entry::DAMAGED => {
                let path = self.members.get(member).map_or("".as_ref(), |member| member.path());
                let text =
                    format!("the tables of {} are damaged: look at it with `qemu-img check`", path.display());
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
            _ => Ok((Place::Zero, len)),
        }
    }

    fn entry(&self, granule: u64) -> io::Result<Entry> {
        let (key, index) = (granule / SLICE as u64, (granule % SLICE as u64) as usize);
        let mut slices = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slice) = slices.get(key) {
            return Ok(slice[index]);
        }
        let slice = self.slice(key * SLICE as u64)?;
        Ok(slices.insert(key, slice, |_| true)[index])
    }

    /// Look for the granules from `first` on, from the uppermost file down.
    fn slice(&self, first: u64) -> io::Result<Box<[Entry; SLICE]>> {
        let mut slice = Box::new([Entry::OPEN; SLICE]);
        let start = first << self.granule_bits;
        for (number, member) in self.members.iter().enumerate().rev() {
            let limit = self.limits.get(number).copied().unwrap_or(0);
            let seen =
                (limit.saturating_sub(start)).div_ceil(1 << self.granule_bits).min(SLICE as u64) as usize;
            // What lies behind the end of a file is zeroes, whatever the files below it have there.
            close(slice.get_mut(seen..).unwrap_or_default(), |_| Entry::ZERO);
            let rest = slice.get_mut(..seen).unwrap_or_default();
            if !rest.contains(&Entry::OPEN) {
                break;
            }
            match member.image() {
                None => close(rest, |index| {
                    Entry::new(Entry::DATA, number, start + ((index as u64) << self.granule_bits))
                }),
                Some(image) => {
                    let shift = image.header.cluster_bits - self.granule_bits;
                    self.fill(first, rest, number, shift)?;
                }
            }
        }
        close(&mut *slice, |_| Entry::ABSENT);
        Ok(slice)
    }

    /// Close the open ones of `entries`, which start at granule `first`, as far as an image has them.
    fn fill(&self, first: u64, entries: &mut [Entry], number: usize, shift: u32) -> io::Result<()> {
        let Some((member, image)) = self.members.get(number).and_then(|it| Some((it, it.image()?))) else {
            return Ok(());
        };
        let cluster = first >> shift;
        // The first granule is a multiple of SLICE, or lies inside one large cluster.
        let count = (first + entries.len() as u64).div_ceil(1 << shift) - cluster;
        let mut raw = [0; SLICE];
        let raw = raw.get_mut(..count as usize).unwrap_or_default();
        member.entries(cluster, raw)?;
        close(entries, |index| {
            let granule = first + index as u64;
            let entry = raw.get(((granule >> shift) - cluster) as usize).copied().unwrap_or(0);
            let within = (granule & ((1 << shift) - 1)) << self.granule_bits;
            match image.mapping(entry, member.content_end()) {
                Ok(Mapping::Absent) => Entry::OPEN,
                Ok(Mapping::Zero(_)) => Entry::ZERO,
                Ok(Mapping::Data(place)) => Entry::new(Entry::DATA, number, place + within),
                Ok(Mapping::Packed(..)) => Entry::new(Entry::PACKED, number, 0),
                Err(_) => Entry::new(Entry::DAMAGED, number, 0),
            }
        });
        Ok(())
    }

    /// Fill `data` with what lies packed at `offset`.
    ///
    /// # Errors
    /// If the file is damaged, or the host fails.
    pub(super) fn unpack(
        &self,
        number: usize,
        member: &Member,
        offset: u64,
        data: &mut [u8],
    ) -> io::Result<()> {
        let Some(image) = member.image() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let bits = image.header.cluster_bits;
        let (mut at, mut rest) = (offset, data);
        let mut kept = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        while !rest.is_empty() {
            let cluster = at >> bits;
            if kept.as_ref().is_none_or(|kept| (kept.member, kept.cluster) != (number, cluster)) {
                let mut bytes = kept.take().map(|kept| kept.bytes).unwrap_or_default();
                bytes.resize(1 << bits, 0);
                member.read_cluster(cluster, &mut bytes)?;
                *kept = Some(Unpacked { member: number, cluster, bytes });
            }
            let within = (at & ((1 << bits) - 1)) as usize;
            let bytes = kept.as_ref().and_then(|kept| kept.bytes.get(within..)).unwrap_or_default();
            let (part, after) = rest.split_at_mut(rest.len().min(bytes.len()));
            part.copy_from_slice(bytes.get(..part.len()).unwrap_or_default());
            at += part.len() as u64;
            rest = after;
        }
        Ok(())
    }
}

/// Decide what is open.
fn close(entries: &mut [Entry], mut decide: impl FnMut(usize) -> Entry) {
    for (index, entry) in entries.iter_mut().enumerate().filter(|(_, entry)| **entry == Entry::OPEN) {
        *entry = decide(index);
    }
}

impl super::qcow2::Below for Layers {
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (place, len) = self.find(at, rest.len() as u64)?;
            let (part, after) = rest.split_at_mut(len as usize);
            match place {
                Place::Absent | Place::Zero => part.fill(0),
                Place::Data { member, offset } => match self.members.get(member) {
                    Some(member) => member.file().read_exact_at(part, offset)?,
                    None => return Err(io::ErrorKind::InvalidInput.into()),
                },
                Place::Packed { member: number } => match self.members.get(number) {
                    Some(member) => self.unpack(number, member, at, part)?,
                    None => return Err(io::ErrorKind::InvalidInput.into()),
                },
            }
            at += len;
            rest = after;
        }
        Ok(())
    }

    fn is_zero(&self, offset: u64, len: u64) -> io::Result<bool> {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (place, len) = self.find(at, end - at)?;
            if !matches!(place, Place::Absent | Place::Zero) {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }
}
