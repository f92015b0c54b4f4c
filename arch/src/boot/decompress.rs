//! Unpacks the payload of a bzImage on the host, so that the guest need not do it itself.
//!
//! Every format that the kernel's build offers is recognised by its magic. The build appends the unpacked
//! size to each (gzip has it by itself), which bounds what a hostile file can make the host allocate.
//! Debian 12's cloud kernel uses lz4 and unpacks in some 50 ms; one in xz takes most of a second, which is
//! worth a cache: see [`super::Kernel::from_parts`].

use std::io::{self, Read};

/// The most that a kernel may unpack to.
pub const MAX_UNPACKED: usize = 1 << 30;
/// The most that one lz4 legacy block unpacks to (lz4 frame format, "Legacy frame").
const LZ4_BLOCK: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184c_2102u32.to_le_bytes();

/// How a payload is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Not packed: an ELF file.
    Elf,
    /// RFC 1952.
    Gzip,
    /// xz, with the x86 filter.
    Xz,
    /// The legacy frame of lz4.
    Lz4,
    /// RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
    /// LZMA without a container.
    Lzma,
    /// lzop; not supported.
    Lzo,
}

impl Format {
    /// Recognise a packed or unpacked payload by its first bytes.
    #[must_use]
    pub fn detect(data: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Format); 8] = [
            (b"\x7fELF", Format::Elf),
            (b"\x1f\x8b", Format::Gzip),
            (b"\xfd7zXZ\0", Format::Xz),
            (&LZ4_LEGACY_MAGIC, Format::Lz4),
            (b"\x28\xb5\x2f\xfd", Format::Zstd),
            (b"BZh", Format::Bzip2),
            // The properties byte that every lzma encoder writes, and the low bytes of a dictionary size.
            (b"\x5d\0\0", Format::Lzma),
            (b"\x89LZO", Format::Lzo),
        ];
        MAGICS.iter().find(|(magic, _)| data.starts_with(magic)).map(|&(_, format)| format)
    }

    /// The format's usual name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Elf => "ELF",
            Format::Gzip => "gzip",
            Format::Xz => "xz",
            Format::Lz4 => "lz4",
            Format::Zstd => "zstd",
            Format::Bzip2 => "bzip2",
            Format::Lzma => "lzma",
            Format::Lzo => "lzo",
        }
    }
}

/// A payload could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// No known magic.
    #[error("its payload is packed in no known way (it starts with {0:02x?})")]
    UnknownFormat(Vec<u8>),
    /// A format that is known but cannot be unpacked here.
    #[error("its payload is packed with {0}, which skiff cannot unpack; rebuild it with CONFIG_KERNEL_ZSTD")]
    Unsupported(&'static str),
    /// The payload is cut short.
    #[error("its payload is too short")]
    Truncated,
    /// The size it claims to unpack to.
    #[error("its payload claims to unpack to {0} bytes; at most 1 GiB is accepted")]
    TooLarge(u64),
    /// It unpacks to something longer or shorter than it claims.
    #[error("its payload does not unpack to the {expected} bytes it claims")]
    WrongSize {
        /// What it claims.
        expected: usize,
    },
    /// The decoder's own complaint.
    #[error("its {format} payload is damaged")]
    Damaged {
        /// The format's name.
        format: &'static str,
        /// What the decoder said.
        #[source]
        source: io::Error,
    },
}

/// Unpack a bzImage's payload, whose last four bytes are the unpacked size.
///
/// # Errors
/// If the format is unknown, the data damaged, or the size not what the payload says.
pub fn unpack(payload: &[u8]) -> Result<Vec<u8>, DecompressError> {
    let head = || payload.iter().take(6).copied().collect();
    let format = Format::detect(payload).ok_or_else(|| DecompressError::UnknownFormat(head()))?;
    if format == Format::Elf {
        return Ok(payload.to_vec());
    }
    let (body, size) = payload.split_last_chunk::<4>().ok_or(DecompressError::Truncated)?;
    let size = u32::from_le_bytes(*size) as usize;
    if size > MAX_UNPACKED {
        return Err(DecompressError::TooLarge(size as u64));
    }
    let damaged = |source| DecompressError::Damaged { format: format.name(), source };
    let data = match format {
        Format::Elf | Format::Lzo => return Err(DecompressError::Unsupported(format.name())),
        // gzip's trailer is its own: it is checked with the whole file.
        Format::Gzip => read_all(flate2::bufread::GzDecoder::new(payload), size),
        Format::Xz => read_all(liblzma::bufread::XzDecoder::new(body), size),
        Format::Lzma => liblzma::stream::Stream::new_lzma_decoder(u64::MAX)
            .map_err(io::Error::from)
            .and_then(|stream| read_all(liblzma::bufread::XzDecoder::new_stream(body, stream), size)),
        Format::Bzip2 => read_all(bzip2::bufread::BzDecoder::new(body), size),
        Format::Zstd => zstd::stream::read::Decoder::with_buffer(body)
            // The kernel's build compresses with a window as large as the kernel (zstd -22 --ultra).
            .and_then(|mut d| d.window_log_max(30).map(|()| d))
            .and_then(|decoder| read_all(decoder.single_frame(), size)),
        Format::Lz4 => unpack_lz4(body, size),
    };
    let data = data.map_err(damaged)?;
    if data.len() != size {
        return Err(DecompressError::WrongSize { expected: size });
    }
    Ok(data)
}

/// Everything `reader` yields, but no more than one byte beyond `size`.
fn read_all(reader: impl Read, size: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(size.saturating_add(1));
    reader.take(size as u64 + 1).read_to_end(&mut data)?;
    Ok(data)
}

/// The legacy frame: a magic, then blocks of at most 8 MiB, each behind its packed length.
fn unpack_lz4(body: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0; size];
    let mut rest = body.get(LZ4_LEGACY_MAGIC.len()..).unwrap_or_default();
    let mut done = 0usize;
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        // Frames may be concatenated; each begins with the magic again.
        if *len == LZ4_LEGACY_MAGIC {
            rest = tail;
            continue;
        }
        let len = u32::from_le_bytes(*len) as usize;
        let block = tail.get(..len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let end = done.saturating_add(LZ4_BLOCK).min(size);
        let into = data.get_mut(done..end).unwrap_or_default();
        let count = lz4_flex::block::decompress_into(block, into).map_err(io::Error::other)?;
        done = done.saturating_add(count);
        rest = tail.get(len..).unwrap_or_default();
    }
    data.truncate(done);
    Ok(data)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// `data` packed as the kernel's build does it, with its size behind it.
    pub fn pack(format: Format, data: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        match format {
            Format::Elf => return data.to_vec(),
            Format::Gzip => {
                let mut e = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
                e.write_all(data).unwrap();
                e.finish().unwrap();
                return packed;
            }
            Format::Xz => {
                let mut options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
                options.dict_size(1 << 20);
                let mut filters = liblzma::stream::Filters::new();
                filters.x86().lzma2(&options);
                let stream =
                    liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32)
                        .unwrap();
                liblzma::read::XzEncoder::new_stream(data, stream).read_to_end(&mut packed).unwrap();
            }
            Format::Lzma => {
                let options = liblzma::stream::LzmaOptions::new_preset(1).unwrap();
                let stream = liblzma::stream::Stream::new_lzma_encoder(&options).unwrap();
                liblzma::read::XzEncoder::new_stream(data, stream).read_to_end(&mut packed).unwrap();
            }
            Format::Bzip2 => {
                bzip2::read::BzEncoder::new(data, bzip2::Compression::fast())
                    .read_to_end(&mut packed)
                    .unwrap();
            }
            Format::Zstd => packed = zstd::encode_all(data, 1).unwrap(),
            Format::Lz4 => {
                packed.extend(LZ4_LEGACY_MAGIC);
                for block in data.chunks(LZ4_BLOCK) {
                    let block = lz4_flex::block::compress(block);
                    packed.extend((block.len() as u32).to_le_bytes());
                    packed.extend(block);
                }
            }
            Format::Lzo => packed.extend(b"\x89LZO\0\r\n\x1a\n"),
        }
        packed.extend((data.len() as u32).to_le_bytes());
        packed
    }

    pub const FORMATS: [Format; 6] =
        [Format::Gzip, Format::Xz, Format::Lz4, Format::Zstd, Format::Bzip2, Format::Lzma];

    fn sample(len: usize) -> Vec<u8> {
        // Relative calls, which is what the x86 filter of xz is about.
        (0..len).map(|i| if i % 7 == 0 { 0xe8 } else { ((i * i) >> 5) as u8 }).collect()
    }

    #[test]
    fn every_format_comes_back_whole() {
        let data = sample(300_000);
        for format in FORMATS {
            let packed = pack(format, &data);
            assert_eq!(Format::detect(&packed), Some(format));
            assert!(unpack(&packed).unwrap() == data, "{format:?}");
        }
        let elf = b"\x7fELF and so on";
        assert_eq!(unpack(elf).unwrap(), elf);
    }

    #[test]
    fn lz4_blocks_follow_one_another() {
        let data = sample(LZ4_BLOCK * 2 + 77);
        assert!(unpack(&pack(Format::Lz4, &data)).unwrap() == data);
    }

    #[test]
    fn a_size_that_is_not_true_is_refused() {
        let data = sample(10_000);
        for format in FORMATS {
            for claim in [0u32, 9_999, 10_001] {
                let mut packed = pack(format, &data);
                let at = packed.len() - 4;
                packed[at..].copy_from_slice(&claim.to_le_bytes());
                assert!(unpack(&packed).is_err(), "{format:?} {claim}");
            }
            let mut packed = pack(format, &data);
            let at = packed.len() - 4;
            packed[at..].copy_from_slice(&u32::MAX.to_le_bytes());
            assert!(matches!(unpack(&packed), Err(DecompressError::TooLarge(_))), "{format:?}");
        }
    }

    #[test]
    fn cut_short_or_unknown_is_an_error() {
        let data = sample(10_000);
        for format in FORMATS {
            let packed = pack(format, &data);
            for len in [0, 3, 5, 20, packed.len() / 2] {
                assert!(unpack(&packed[..len]).is_err(), "{format:?} {len}");
            }
        }
        assert!(matches!(unpack(&pack(Format::Lzo, &data)), Err(DecompressError::Unsupported("lzo"))));
        assert!(matches!(unpack(b"hello, world"), Err(DecompressError::UnknownFormat(_))));
    }
}
