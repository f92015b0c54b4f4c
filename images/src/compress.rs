//! [`Reader`]: what stands in a file that may be compressed, recognised by its content and never by its name.

use std::fmt;
use std::io::{self, BufReader, Cursor, Read};

use liblzma::stream::{CONCATENATED, Stream};

/// How much memory an xz stream may ask for, in bytes: what its highest preset needs, and some more.
const XZ_MEMORY: u64 = 256 << 20;
/// The longest of the marks that formats begin with.
const MARK: usize = 6;
/// How much is read at once.
const BUFFER: usize = 128 << 10;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// It is not.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz file format, version 1.
    Xz,
    /// By bzip2.
    Bzip2,
}

impl Format {
    /// By the first bytes of a file.
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "not compressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        })
    }
}

type Source<R> = BufReader<io::Chain<Cursor<Vec<u8>>, R>>;

/// Reads what a file holds. Several compressed streams in a row are read as one, as their programs do. Damaged or truncated streams
/// are errors. How much comes out is not bounded here: whoever reads counts.
pub struct Reader<R: Read> {
    format: Format,
    decoder: Decoder<R>,
}

enum Decoder<R: Read> {
    None(Source<R>),
    Gzip(flate2::bufread::MultiGzDecoder<Source<R>>),
    Zstd(Box<zstd::Decoder<'static, Source<R>>>),
    Xz(liblzma::bufread::XzDecoder<Source<R>>),
    Bzip2(bzip2::bufread::MultiBzDecoder<Source<R>>),
}

impl<R: Read> Reader<R> {
    /// Looks at how `from` begins.
    ///
    /// # Errors
    /// If it cannot be read, or there is no memory for the decoder.
    pub fn new(mut from: R) -> io::Result<Self> {
        let mut start = Vec::with_capacity(MARK);
        from.by_ref().take(MARK as u64).read_to_end(&mut start)?;
        let format = Format::of(&start);
        let source = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(from));
        let decoder = match format {
            Format::None => Decoder::None(source),
            Format::Gzip => Decoder::Gzip(flate2::bufread::MultiGzDecoder::new(source)),
            Format::Zstd => Decoder::Zstd(Box::new(zstd::Decoder::with_buffer(source)?)),
            Format::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)?;
                Decoder::Xz(liblzma::bufread::XzDecoder::new_stream(source, stream))
            }
            Format::Bzip2 => Decoder::Bzip2(bzip2::bufread::MultiBzDecoder::new(source)),
        };
        Ok(Self { format, decoder })
    }

    /// How it is compressed.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.decoder {
            Decoder::None(source) => source.read(into),
            Decoder::Gzip(decoder) => decoder.read(into),
            Decoder::Zstd(decoder) => decoder.read(into),
            Decoder::Xz(decoder) => decoder.read(into),
            Decoder::Bzip2(decoder) => decoder.read(into),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn compressed(format: Format, bytes: &[u8]) -> Vec<u8> {
        match format {
            Format::None => bytes.to_vec(),
            Format::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Format::Zstd => zstd::encode_all(bytes, 1).unwrap(),
            Format::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Format::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    const ALL: [Format; 5] = [Format::None, Format::Gzip, Format::Zstd, Format::Xz, Format::Bzip2];

    fn read(bytes: &[u8]) -> io::Result<(Format, Vec<u8>)> {
        let mut reader = Reader::new(bytes)?;
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        Ok((reader.format(), content))
    }

    #[test]
    fn each_format_is_known_by_its_content_and_streams_in_a_row_are_one() {
        for format in ALL {
            let two = [compressed(format, b"one, "), compressed(format, b"two")].concat();
            assert_eq!(read(&two).unwrap(), (format, b"one, two".to_vec()));
        }
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        for format in ALL.into_iter().filter(|format| *format != Format::None) {
            let whole = compressed(format, &[7; 10_000]);
            assert!(read(&whole[..whole.len() - 5]).is_err(), "{format}");
        }
    }

    #[test]
    fn what_is_shorter_than_a_mark_is_itself() {
        for bytes in [&b""[..], b"B", b"BZh", b"\x1f\x8b"] {
            assert_eq!(read(bytes).unwrap(), (Format::None, bytes.to_vec()));
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_end(start in 0..5_usize, tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = compressed(ALL[start], b"some text to begin with");
            bytes.truncate(12);
            bytes.extend(tail);
            let mut content = Vec::new();
            if let Ok(reader) = Reader::new(&bytes[..]) {
                let _ = reader.take(1 << 20).read_to_end(&mut content);
            }
        }
    }
}
