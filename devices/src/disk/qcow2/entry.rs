//! Entries of L1 and L2 tables.

/// The reference count of what it points at is exactly one, so it may be written in place.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Of a standard L2 entry of version 3: reads as zeroes.
pub(super) const ZERO: u64 = 1;
/// Bits 9 to 55: where in the file.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where a cluster of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::disk) enum Mapping {
    /// Not here: in the backing file, or zeroes if there is none.
    Absent,
    /// Zeroes. The place in the file, if it keeps one.
    Zero(Option<u64>),
    /// At this offset of the file.
    Data(u64),
    /// Packed, at this offset of the file and not longer than that many bytes.
    Packed(u64, u64),
}

impl Mapping {
    /// Read an L2 entry. Nothing is checked but its form.
    pub(super) fn parse(entry: u64, version: u32, cluster_bits: u32) -> Self {
        if entry & COMPRESSED != 0 {
            // Below bit x is the offset, then the number of further sectors.
            let x = 62 - (cluster_bits - 8);
            let offset = entry & ((1 << x) - 1);
            let sectors = ((entry & (COMPRESSED - 1)) >> x) + 1;
            return Self::Packed(offset, sectors * 512 - offset % 512);
        }
        let offset = entry & OFFSET;
        match (offset, version >= 3 && entry & ZERO != 0) {
            (0, true) => Self::Zero(None),
            (offset, true) => Self::Zero(Some(offset)),
            (0, false) => Self::Absent,
            (offset, false) => Self::Data(offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_the_format_says() {
        let parse = |entry| Mapping::parse(entry, 3, 16);
        assert_eq!(parse(0), Mapping::Absent);
        assert_eq!(parse(1), Mapping::Zero(None));
        assert_eq!(parse(COPIED | 0x5_0001), Mapping::Zero(Some(0x5_0000)));
        assert_eq!(parse(COPIED | 0x5_0000), Mapping::Data(0x5_0000));
        assert_eq!(Mapping::parse(0x5_0001, 2, 16), Mapping::Data(0x5_0000), "version 2 has no such bit");
        // x = 54: three further sectors from 0x12345 on.
        assert_eq!(parse(COMPRESSED | 3 << 54 | 0x1_2345), Mapping::Packed(0x1_2345, 4 * 512 - 0x145));
        // 2 MiB clusters: x = 49; a full field does not overflow.
        assert_eq!(Mapping::parse(u64::MAX, 3, 21), Mapping::Packed((1 << 49) - 1, (1 << 22) - 511));
    }
}
