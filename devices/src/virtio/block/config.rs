//! The features and the configuration space of virtio-blk (virtio 1.2, 5.2.3 and 5.2.4), as pure functions.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::disk::SECTOR;

/// The most that one range of a discard covers, in sectors: 1 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// The most that one range of a write-zeroes covers, in sectors: 32 MiB, for a host may have to write them all.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 16;
/// The most ranges of one discard.
pub(super) const MAX_DISCARD_RANGES: u32 = 16;
/// The most ranges of one write-zeroes.
pub(super) const MAX_ZERO_RANGES: u32 = 4;

/// The length of the configuration space up to `write_zeroes_may_unmap` and its padding, in bytes.
pub(super) const CONFIG_LEN: usize = 60;

/// What the guest is told about its disk, and what never changes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub readonly: bool,
    /// Bytes, a power of two.
    pub logical_block: u32,
    /// Bytes, a power of two, at least `logical_block`.
    pub physical_block: u32,
    pub queues: u16,
    pub queue_size: u16,
}

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Whether `feature` is among `features`.
pub(super) fn has(features: u64, feature: u32) -> bool {
    features & bit(feature) != 0
}

/// What the device offers.
pub(super) fn features(geometry: &Geometry) -> u64 {
    let mut features = bit(VIRTIO_BLK_F_SEG_MAX)
        | bit(VIRTIO_BLK_F_BLK_SIZE)
        | bit(VIRTIO_BLK_F_TOPOLOGY)
        | bit(VIRTIO_BLK_F_FLUSH)
        | bit(VIRTIO_RING_F_INDIRECT_DESC)
        | bit(VIRTIO_RING_F_EVENT_IDX);
    if geometry.readonly {
        features |= bit(VIRTIO_BLK_F_RO);
    } else {
        features |= bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES);
    }
    if geometry.queues > 1 {
        features |= bit(VIRTIO_BLK_F_MQ);
    }
    features
}

/// The configuration space of a disk of `size` bytes. Fields whose feature is not offered are zero.
pub(super) fn space(geometry: &Geometry, size: u64) -> [u8; CONFIG_LEN] {
    let mut space = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = space.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, &(size / SECTOR).to_le_bytes());
    // Header and status take a descriptor each.
    put(12, &u32::from(geometry.queue_size.saturating_sub(2).max(1)).to_le_bytes());
    put(20, &geometry.logical_block.to_le_bytes());
    let blocks = (geometry.physical_block / geometry.logical_block.max(1)).max(1);
    // physical_block_exp; alignment_offset stays 0; min_io_size in logical blocks.
    put(24, &[blocks.ilog2() as u8]);
    put(26, &u16::try_from(blocks).unwrap_or(1).to_le_bytes());
    put(34, &geometry.queues.to_le_bytes());
    if !geometry.readonly {
        let aligned = geometry.physical_block / SECTOR as u32;
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_DISCARD_RANGES.to_le_bytes());
        put(44, &aligned.to_le_bytes());
        put(48, &MAX_ZERO_SECTORS.to_le_bytes());
        put(52, &MAX_ZERO_RANGES.to_le_bytes());
        put(56, &[1]);
    }
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 3 << 20;
    const PLAIN: Geometry =
        Geometry { readonly: false, logical_block: 512, physical_block: 4096, queues: 4, queue_size: 256 };

    #[test]
    fn every_field_is_where_the_specification_puts_it() {
        let space = space(&PLAIN, SIZE);
        let u32_at = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
        let u16_at = |at: usize| u16::from_le_bytes(space[at..at + 2].try_into().unwrap());
        assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), 6144);
        assert_eq!(u32_at(8), 0, "size_max");
        assert_eq!(u32_at(12), 254, "seg_max");
        assert_eq!(u32_at(20), 512, "blk_size");
        assert_eq!((space[24], space[25], u16_at(26), u32_at(28)), (3, 0, 8, 0), "topology");
        assert_eq!(u16_at(34), 4, "num_queues");
        assert_eq!((u32_at(36), u32_at(40), u32_at(44)), (1 << 21, 16, 8), "discard");
        assert_eq!((u32_at(48), u32_at(52), space[56]), (1 << 16, 4, 1), "write zeroes");
    }

    #[test]
    fn a_read_only_disk_offers_nothing_that_writes() {
        let geometry = Geometry { readonly: true, queues: 1, ..PLAIN };
        let features = features(&geometry);
        assert!(has(features, VIRTIO_BLK_F_RO));
        for feature in [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_F_MQ] {
            assert!(!has(features, feature));
        }
        assert_eq!(space(&geometry, SIZE)[36..], [0; 24]);
    }

    #[test]
    fn a_writable_disk_with_queues_says_so() {
        let features = features(&PLAIN);
        for feature in [VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_F_MQ]
        {
            assert!(has(features, feature));
        }
        assert!(!has(features, VIRTIO_BLK_F_RO));
    }
}
