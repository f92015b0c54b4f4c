//! Reads a bzImage: its setup header and where its payload lies.
//!
//! Linux, Documentation/arch/x86/boot.rst. Offsets of header fields are those in the file, which are also
//! those in the zero page.

use super::bytes::{u16_at, u32_at};

/// Where the setup header starts, in the file and in the zero page.
pub const SETUP_HEADER: usize = 0x1f1;
/// The zero page keeps other things from here on.
const SETUP_HEADER_END: usize = 0x290;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_LEN: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const CMDLINE_SIZE: usize = 0x238;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first protocol that says where the payload is (Linux 2.6.26).
const MIN_VERSION: u16 = 0x208;

/// A bzImage cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BzImageError {
    /// The boot protocol is older than 2.08.
    #[error("its boot protocol is {}.{:02}; skiff needs 2.08 (Linux 2.6.26) or later", .0 >> 8, .0 & 0xff)]
    TooOld(u16),
    /// A zImage, to be loaded below 1 MiB.
    #[error("it is a zImage; rebuild it as a bzImage")]
    LoadedLow,
    /// The file ends before its headers do.
    #[error("the bzImage is cut short or damaged: {0} lies outside of it")]
    OutOfFile(&'static str),
}

/// A bzImage's setup header: what the kernel says of itself, and what the loader answers, from
/// `setup_sects` (0x1f1) to its end, which the header itself names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupHeader {
    bytes: Vec<u8>,
}

impl SetupHeader {
    /// Whether `file` has a setup header.
    #[must_use]
    pub fn is_in(file: &[u8]) -> bool {
        u16_at(file, BOOT_FLAG) == Some(0xaa55) && file.get(MAGIC..).is_some_and(|f| f.starts_with(b"HdrS"))
    }

    /// Read the header of a whole bzImage.
    ///
    /// # Errors
    /// If the header is cut short or of a protocol before 2.08.
    pub fn parse(file: &[u8]) -> Result<Self, BzImageError> {
        let end = file.get(JUMP_LEN).map_or(0, |&len| MAGIC + usize::from(len)).min(SETUP_HEADER_END);
        Self::from_bytes(file.get(SETUP_HEADER..end).unwrap_or_default())
    }

    /// Take a header as [`Self::as_bytes`] returned it.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BzImageError> {
        let header = Self { bytes: bytes.to_vec() };
        let field = || BzImageError::OutOfFile("its setup header");
        if bytes.len() > SETUP_HEADER_END - SETUP_HEADER {
            return Err(field());
        }
        let version = u16_at(bytes, VERSION - SETUP_HEADER).ok_or_else(field)?;
        if version < MIN_VERSION {
            return Err(BzImageError::TooOld(version));
        }
        // The last field that every such protocol has.
        header.word(PAYLOAD_LENGTH).ok_or_else(field)?;
        if bytes.get(LOADFLAGS - SETUP_HEADER).is_some_and(|flags| flags & 1 == 0) {
            return Err(BzImageError::LoadedLow);
        }
        Ok(header)
    }

    /// The header's bytes, from `setup_sects` on.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The payload in `file`, of which this is the header.
    ///
    /// # Errors
    /// If it lies outside of the file.
    pub fn payload<'a>(&self, file: &'a [u8]) -> Result<&'a [u8], BzImageError> {
        // boot.rst: a setup_sects of 0 means 4; the boot sector itself comes on top.
        let sectors = match self.bytes.first() {
            Some(0) | None => 4,
            Some(&sectors) => usize::from(sectors),
        };
        let start = (sectors + 1) * 512;
        let find = || {
            let offset = usize::try_from(self.word(PAYLOAD_OFFSET)?).ok()?;
            let len = usize::try_from(self.word(PAYLOAD_LENGTH)?).ok()?;
            file.get(start..)?.get(offset..)?.get(..len)
        };
        find().ok_or(BzImageError::OutOfFile("its payload"))
    }

    /// The highest address that the initrd may take.
    #[must_use]
    pub fn initrd_addr_max(&self) -> u64 {
        self.word(INITRD_ADDR_MAX).map_or(u64::from(u32::MAX), u64::from)
    }

    /// The longest command line the kernel takes, without its terminating zero.
    #[must_use]
    pub fn cmdline_size(&self) -> usize {
        self.word(CMDLINE_SIZE).map_or(usize::MAX, |size| size as usize)
    }

    fn word(&self, at: usize) -> Option<u32> {
        u32_at(&self.bytes, at.checked_sub(SETUP_HEADER)?)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A bzImage around `payload`.
    pub fn build(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0u8; 1024 + 0x20];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(SETUP_HEADER, &[1]);
        put(BOOT_FLAG, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(MAGIC, b"HdrS\x0f\x02");
        put(LOADFLAGS, &[1]);
        put(INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
        put(CMDLINE_SIZE, &2047u32.to_le_bytes());
        put(PAYLOAD_OFFSET, &0x20u32.to_le_bytes());
        put(PAYLOAD_LENGTH, &(payload.len() as u32).to_le_bytes());
        file.extend(payload);
        file
    }

    #[test]
    fn header_and_payload_are_found() {
        let file = build(b"payload");
        assert!(SetupHeader::is_in(&file));
        let header = SetupHeader::parse(&file).unwrap();
        assert_eq!(header.as_bytes().len(), 0x202 + 0x6a - 0x1f1);
        assert_eq!(header.payload(&file).unwrap(), b"payload");
        assert_eq!((header.initrd_addr_max(), header.cmdline_size()), (0x7fff_ffff, 2047));
        assert_eq!(SetupHeader::from_bytes(header.as_bytes()).unwrap(), header);
    }

    #[test]
    fn old_low_and_short_images_are_refused() {
        let file = build(b"payload");
        let with = |at: usize, value: u8| {
            let mut file = file.clone();
            file[at] = value;
            file
        };
        assert_eq!(SetupHeader::parse(&with(VERSION, 7)), Err(BzImageError::TooOld(0x207)));
        assert_eq!(
            BzImageError::TooOld(0x207).to_string().split(';').next().unwrap(),
            "its boot protocol is 2.07"
        );
        assert_eq!(SetupHeader::parse(&with(LOADFLAGS, 0)), Err(BzImageError::LoadedLow));
        assert!(matches!(SetupHeader::parse(&with(JUMP_LEN, 8)), Err(BzImageError::OutOfFile(_))));
        assert!(matches!(SetupHeader::parse(&file[..0x240]), Err(BzImageError::OutOfFile(_))));
        for (at, value) in
            [(PAYLOAD_LENGTH, 8), (PAYLOAD_OFFSET + 3, 0xff), (SETUP_HEADER, 200), (SETUP_HEADER, 0)]
        {
            let file = with(at, value);
            let header = SetupHeader::parse(&file).unwrap();
            assert_eq!(header.payload(&file), Err(BzImageError::OutOfFile("its payload")));
        }
    }

    proptest! {
        #[test]
        fn a_mutated_image_never_panics(
            changes in prop::collection::vec((0x1f1usize..0x260, any::<u8>()), 1..12),
            len in 0usize..1100,
        ) {
            let mut file = build(b"payload");
            for (at, value) in changes {
                file[at] = value;
            }
            file.truncate(len);
            let _ = SetupHeader::is_in(&file);
            if let Ok(header) = SetupHeader::parse(&file) {
                let _ = header.payload(&file);
            }
        }
    }
}
