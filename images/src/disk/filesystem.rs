//! What lies in a partition, by its first 68 KiB.

/// The kinds that can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileSystem {
    /// ext2, ext3 or ext4, which are looked into.
    Ext {
        /// Its journal has to be replayed first.
        unclean: bool,
    },
    Xfs,
    Btrfs,
    F2fs,
    /// A physical volume of LVM.
    Lvm,
    Luks,
    Raid,
    Fat,
    Swap,
    Squashfs,
    Unknown,
}

impl FileSystem {
    /// As users call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ext { .. } => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::F2fs => "f2fs",
            Self::Lvm => "LVM",
            Self::Luks => "LUKS (encrypted)",
            Self::Raid => "RAID",
            Self::Fat => "FAT",
            Self::Swap => "swap",
            Self::Squashfs => "squashfs",
            Self::Unknown => "unknown content",
        }
    }
}

/// The kind of what starts with `head`.
pub(super) fn of(head: &[u8]) -> FileSystem {
    let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if has(1024 + 0x38, &[0x53, 0xef]) {
        // `s_feature_incompat`, EXT4_FEATURE_INCOMPAT_RECOVER.
        return FileSystem::Ext { unclean: head.get(1024 + 0x60).is_some_and(|low| low & 4 != 0) };
    }
    let known: [(usize, &[u8], FileSystem); 11] = [
        (0, b"XFSB", FileSystem::Xfs),
        (0x1_0040, b"_BHRfS_M", FileSystem::Btrfs),
        (1024, &[0x10, 0x20, 0xf5, 0xf2], FileSystem::F2fs),
        (512, b"LABELONE", FileSystem::Lvm),
        (0, b"LUKS\xba\xbe", FileSystem::Luks),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], FileSystem::Raid),
        (82, b"FAT32", FileSystem::Fat),
        (54, b"FAT", FileSystem::Fat),
        (4086, b"SWAPSPACE2", FileSystem::Swap),
        (0, b"hsqs", FileSystem::Squashfs),
        (0, b"sqsh", FileSystem::Squashfs),
    ];
    known.iter().find(|(at, magic, _)| has(*at, magic)).map_or(FileSystem::Unknown, |(_, _, kind)| *kind)
}
