//! Partition tables: GPT (UEFI 2.10, chapter 5) and MBR with logical partitions.

use std::io;

use devices::disk::SECTOR;

use super::bytes::{Fields, Guid, Stored};

/// What partitions are listed in, at most, in bytes: 8192 of the usual ones.
const MAX_ARRAY: u64 = 1 << 20;
/// The most logical partitions that are followed.
const MAX_LOGICAL: u32 = 64;
const GPT_MAGIC: &[u8] = b"EFI PART";
const GPT_HEADER: usize = 92;

/// A partition, inside the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// As Linux counts: `vda1` is 1.
    pub number: u32,
    /// In bytes.
    pub start: u64,
    /// In bytes.
    pub len: u64,
    /// As `root=PARTUUID=` takes it.
    pub uuid: String,
    /// Its type says that it is Linux' root (the Discoverable Partitions Specification).
    pub is_root: bool,
}

/// What is on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// No table: perhaps a file system.
    None,
    /// These partitions, by their numbers.
    Partitions(Vec<Partition>),
    /// There is a GPT of which no copy is whole.
    Damaged,
}

const ROOT_X86_64: Guid = Guid::new(0x4F68_BCE3, 0xE8CD, 0x4DB1, 0x96E7, 0xFBCA_F984_B709);

/// Read the table of a disk of `size` bytes.
///
/// # Errors
/// If it cannot be read.
pub(super) fn read(disk: &impl Stored, size: u64) -> io::Result<Table> {
    if size < 2 * SECTOR {
        return Ok(Table::None);
    }
    let mbr = disk.bytes(0, SECTOR as usize, "the first sector")?;
    let fields = Fields::new(&mbr, "the first sector");
    let marked = fields.u16(510)? == 0xaa55;
    let protective = (0..4_usize).any(|entry| mbr.get(446 + entry * 16 + 4) == Some(&0xee));
    // The one at the end counts only where there was one at the start: a file system may lie over it.
    for sector in [1, size / SECTOR - 1] {
        if (sector == 1 || marked && protective)
            && let Some(found) = gpt(disk, size, sector)?
        {
            return Ok(Table::Partitions(found));
        }
    }
    if marked && protective {
        return Ok(Table::Damaged);
    }
    if !marked {
        return Ok(Table::None);
    }
    Ok(match mbr_partitions(disk, size, &mbr)? {
        // A file system's own boot sector has the same mark.
        found if found.is_empty() => Table::None,
        found => Table::Partitions(found),
    })
}

/// The partitions of the GPT whose header is in that sector; `None` if it is none, or not whole.
fn gpt(disk: &impl Stored, size: u64, sector: u64) -> io::Result<Option<Vec<Partition>>> {
    let header = disk.bytes(sector * SECTOR, SECTOR as usize, "the partition table")?;
    let fields = Fields::new(&header, "the partition table");
    let len = fields.u32(12)? as usize;
    if !header.starts_with(GPT_MAGIC) || !(GPT_HEADER..=SECTOR as usize).contains(&len) {
        return Ok(None);
    }
    let mut summed = fields.part(0, len)?.to_vec();
    if let Some(place) = summed.get_mut(16..20) {
        place.fill(0);
    }
    let (first, count, entry) = (fields.u64(72)?, u64::from(fields.u32(80)?), u64::from(fields.u32(84)?));
    let sound = crc32fast::hash(&summed) == fields.u32(16)? && fields.u64(24)? == sector;
    let array = count.saturating_mul(entry);
    if !sound || entry < 128 || !entry.is_multiple_of(8) || array > MAX_ARRAY {
        return Ok(None);
    }
    let Some(at) = first.checked_mul(SECTOR).filter(|at| at.saturating_add(array) <= size) else {
        return Ok(None);
    };
    let bytes = disk.bytes(at, array as usize, "the partition table")?;
    if crc32fast::hash(&bytes) != fields.u32(88)? {
        return Ok(None);
    }
    let mut found = Vec::new();
    for (index, entry) in bytes.chunks_exact(entry as usize).enumerate() {
        let fields = Fields::new(entry, "the partition table");
        let (kind, uuid) = (fields.guid(0)?, fields.guid(16)?);
        let (first, last) = (fields.u64(32)?, fields.u64(40)?);
        if kind == Guid::NIL {
            continue;
        }
        // At most 8192 entries.
        let number = index as u32 + 1;
        let sectors = last.checked_sub(first).and_then(|len| len.checked_add(1));
        let is_root = kind == ROOT_X86_64;
        found.extend(inside(size, first, sectors.unwrap_or(0)).map(|(start, len)| Partition {
            number,
            start,
            len,
            uuid: uuid.to_string(),
            is_root,
        }));
    }
    Ok(Some(found))
}

/// An extent of sectors in bytes, if it lies in the disk.
fn inside(size: u64, first: u64, sectors: u64) -> Option<(u64, u64)> {
    let (start, len) = (first.checked_mul(SECTOR)?, sectors.checked_mul(SECTOR)?);
    (len > 0 && start > 0 && start.checked_add(len)? <= size).then_some((start, len))
}

fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

/// The type, first sector and length of an entry of an MBR or of one of the extended tables.
fn mbr_entry(sector: &[u8], number: usize) -> Option<(u8, u64, u64)> {
    let fields = Fields::new(sector.get(446 + number * 16..)?, "the first sector");
    let kind = fields.part(4, 1).ok()?.first().copied()?;
    Some((kind, fields.u32(8).ok()?.into(), fields.u32(12).ok()?.into()))
}

fn mbr_partitions(disk: &impl Stored, size: u64, mbr: &[u8]) -> io::Result<Vec<Partition>> {
    let signature = Fields::new(mbr, "the first sector").u32(440)?;
    let partition = |number: u32, (start, len): (u64, u64)| Partition {
        number,
        start,
        len,
        uuid: format!("{signature:08x}-{number:02x}"),
        is_root: false,
    };
    let (mut found, mut extended) = (Vec::new(), None);
    for number in 0..4_usize {
        let Some((kind, first, sectors)) = mbr_entry(mbr, number) else { continue };
        match kind {
            0 => {}
            kind if is_extended(kind) => extended = extended.or(Some(first)),
            _ => found.extend(inside(size, first, sectors).map(|at| partition(number as u32 + 1, at))),
        }
    }
    let Some(base) = extended else { return Ok(found) };
    // Each extended table has one partition, from its own place on, and the next table, from the first one's. Tables that lead back
    // would be a loop.
    let mut table = base;
    for number in 5..5 + MAX_LOGICAL {
        let Some((at, _)) = inside(size, table, 1) else { break };
        let sector = disk.bytes(at, SECTOR as usize, "an extended partition table")?;
        if Fields::new(&sector, "an extended partition table").u16(510)? != 0xaa55 {
            break;
        }
        let Some((kind, first, sectors)) = mbr_entry(&sector, 0) else { break };
        if kind != 0 {
            found.extend(inside(size, table.saturating_add(first), sectors).map(|at| partition(number, at)));
        }
        match mbr_entry(&sector, 1) {
            Some((kind, next, _)) if is_extended(kind) && base.saturating_add(next) > table => {
                table = base.saturating_add(next);
            }
            _ => break,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 << 20;

    fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn mbr_put(disk: &mut [u8], sector: usize, number: usize, kind: u8, first: u32, sectors: u32) {
        let at = sector * 512 + 446 + number * 16;
        disk[at + 4] = kind;
        put(disk, at + 8, &first.to_le_bytes());
        put(disk, at + 12, &sectors.to_le_bytes());
        put(disk, sector * 512 + 510, &[0x55, 0xaa]);
    }

    /// A disk with a GPT of two partitions, and its copy at the end.
    fn gpt_disk() -> Vec<u8> {
        let mut disk = vec![0; 1 << 20];
        let last = disk.len() as u64 / 512 - 1;
        mbr_put(&mut disk, 0, 0, 0xee, 1, u32::MAX);
        let mut array = vec![0; 128 * 128];
        for (number, (first, end)) in [(40_u64, 99_u64), (100, 199)].into_iter().enumerate() {
            let at = number * 128 * 2;
            put(&mut array, at, &ROOT_X86_64.0);
            put(&mut array, at + 16, &Guid::new(1, 2, 3, 4, 5).0);
            put(&mut array, at + 32, &first.to_le_bytes());
            put(&mut array, at + 40, &end.to_le_bytes());
        }
        for (own, other, entries) in [(1, last, 2), (last, 1, last - 32)] {
            let mut header = vec![0; 92];
            put(&mut header, 0, GPT_MAGIC);
            put(&mut header, 12, &92_u32.to_le_bytes());
            put(&mut header, 24, &own.to_le_bytes());
            put(&mut header, 32, &other.to_le_bytes());
            put(&mut header, 72, &entries.to_le_bytes());
            put(&mut header, 80, &128_u32.to_le_bytes());
            put(&mut header, 84, &128_u32.to_le_bytes());
            put(&mut header, 88, &crc32fast::hash(&array).to_le_bytes());
            let sum = crc32fast::hash(&header);
            put(&mut header, 16, &sum.to_le_bytes());
            put(&mut disk, own as usize * 512, &header);
            put(&mut disk, entries as usize * 512, &array);
        }
        disk
    }

    fn partitions(disk: &Vec<u8>) -> Vec<Partition> {
        match read(disk, disk.len() as u64).unwrap() {
            Table::Partitions(found) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_gpt_is_read_from_whichever_copy_is_whole() {
        let mut disk = gpt_disk();
        let found = partitions(&disk);
        let uuid = "00000001-0002-0003-0004-000000000005".to_owned();
        let first = Partition { number: 1, start: 40 * 512, len: 60 * 512, uuid, is_root: true };
        assert_eq!(found[0], first);
        assert_eq!((found[1].number, found[1].start), (3, 100 * 512), "numbers are places in the table");
        // One bit of the first table, then one of the first header.
        disk[1024 + 130 * 100] ^= 1;
        assert_eq!(partitions(&disk), found);
        disk[512 + 80] ^= 1;
        assert_eq!(partitions(&disk), found);
        let end = disk.len();
        disk[end - 512 + 20] ^= 0;
        disk[end - 512 + 80] ^= 1;
        assert_eq!(read(&disk, end as u64).unwrap(), Table::Damaged);
    }

    #[test]
    fn an_mbr_has_logical_partitions_and_no_loop() {
        let mut disk = vec![0; SIZE as usize];
        put(&mut disk, 440, &0xdead_beef_u32.to_le_bytes());
        mbr_put(&mut disk, 0, 0, 0x83, 2048, 2048);
        mbr_put(&mut disk, 0, 1, 0x0f, 8192, 65536);
        mbr_put(&mut disk, 8192, 0, 0x83, 100, 200);
        mbr_put(&mut disk, 8192, 1, 0x05, 1000, 500);
        mbr_put(&mut disk, 9192, 0, 0x83, 10, 20);
        // Back to the first one.
        mbr_put(&mut disk, 9192, 1, 0x05, 0, 500);
        // Outside.
        mbr_put(&mut disk, 0, 2, 0x83, 100_000, u32::MAX);
        let found: Vec<_> = partitions(&disk).into_iter().map(|it| (it.number, it.start, it.uuid)).collect();
        let expected = [(1, 2048, "deadbeef-01"), (5, 8292, "deadbeef-05"), (6, 9202, "deadbeef-06")];
        assert_eq!(found, expected.map(|(number, at, uuid)| (number, at * 512, uuid.to_owned())));
    }

    proptest::proptest! {
        #[test]
        fn no_table_leads_out_of_the_disk(changes in proptest::collection::vec((0_usize..20_000, 0_u8..), 0..20)) {
            let mut disk = gpt_disk();
            for (at, byte) in changes {
                disk[at] = byte;
            }
            // With sums that fit, since nobody who forges forgets them.
            let sum = crc32fast::hash(&disk[1024..1024 + 128 * 128]);
            put(&mut disk, 512 + 88, &sum.to_le_bytes());
            put(&mut disk, 512 + 16, &[0; 4]);
            let sum = crc32fast::hash(&disk[512..512 + 92]);
            put(&mut disk, 512 + 16, &sum.to_le_bytes());
            if let Table::Partitions(found) = read(&disk, disk.len() as u64).unwrap() {
                for partition in found {
                    assert!(partition.len > 0 && partition.start + partition.len <= disk.len() as u64);
                }
            }
        }
    }
}
