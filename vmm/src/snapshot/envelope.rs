//! The wrapping of saved files: what every build of skiff can tell of a file, whatever is in it.
//!
//! ```text
//! offset  bytes
//!      0      8  magic: 89 's' 'k' 'i' 'f' 'f' 0d 0a (a transfer as text breaks it, as with PNG)
//!      8      4  version of this wrapping
//!     12      8  processor architecture, ASCII, filled up with zeros
//!     20      8  length of what follows the header
//!     28      4  CRC-32 (IEEE) of the 28 bytes before and of all that follows
//!     32      …  the sections, one JSON object a line: {"kind","version","id","body"}
//! ```
//! All numbers are little-endian. A section's `kind` says what it is about, its `id` which one of several, its `version` what its
//! `body` means: a field may be added with a default, a changed meaning is a new version. `tail -c +33 FILE` shows it all.
//!
//! Values without threads. Files are hostile: nothing is believed before the checksum is right, and little after.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use devices::storage::Storage;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::manifest::Sum;

const MAGIC: [u8; 8] = *b"\x89skiff\r\n";
/// The version of the wrapping that this build writes; it reads this one and all before.
const VERSION: u32 = 1;
const HEADER: usize = 32;
/// Where the checksum is, after all that it covers of the header.
const CHECKSUM: usize = 28;
/// The longest file that is read, in bytes.
pub(super) const MOST: u64 = 1 << 30;

/// A file of skiff's cannot be read or written. The message names it and the fix.
#[derive(Debug, thiserror::Error)]
#[error("{} {problem}", path.display())]
pub struct EnvelopeError {
    /// Which.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

impl EnvelopeError {
    pub(crate) fn new(path: &Path, problem: Problem) -> Self {
        Self { path: path.to_owned(), problem }
    }
}

/// What is wrong with a file.
#[derive(Debug)]
pub enum Problem {
    /// The host fails.
    Io(io::Error),
    /// It was not written by skiff.
    Foreign,
    /// It was made on another kind of processor.
    Architecture(String),
    /// A newer skiff has written it.
    Newer {
        /// What is too new.
        what: String,
        /// Its version.
        version: u32,
        /// The newest that this build reads.
        known: u32,
    },
    /// It is shorter than it must be.
    Truncated {
        /// What it has, in bytes.
        has: u64,
        /// What it must have.
        must: u64,
    },
    /// Its content is not what was written.
    Corrupted,
    /// Its content is what was written, and yet makes no sense.
    Wrong(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_) => write!(f, "cannot be read or written"),
            Self::Foreign => write!(f, "is no file of skiff's"),
            Self::Architecture(arch) => {
                let here = std::env::consts::ARCH;
                write!(f, "was made on {arch}, and this is {here}: use it on such a machine")
            }
            Self::Newer { what, version, known } => write!(
                f,
                "was made by a newer skiff ({what} has version {version}, this one reads {known}): update skiff"
            ),
            Self::Truncated { has, must } => {
                write!(f, "is truncated ({has} of {must} bytes are there): take it from a copy, or remove it")
            }
            Self::Corrupted => {
                write!(f, "is corrupted (its checksum is wrong): take it from a copy, or remove it")
            }
            Self::Wrong(why) => write!(f, "makes no sense: {why}"),
        }
    }
}

impl std::error::Error for Problem {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// One part of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Section {
    kind: String,
    version: u32,
    id: String,
    body: Box<RawValue>,
}

impl Section {
    /// Which one of its kind.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is in it, if its version is not beyond `known`.
    ///
    /// # Errors
    /// If a newer skiff has written it, or it does not hold a `T`.
    pub fn body<T: DeserializeOwned>(&self, known: u32) -> Result<T, Problem> {
        let Self { kind, version, id, body } = self;
        if *version > known {
            return Err(Problem::Newer { what: kind.clone(), version: *version, known });
        }
        serde_json::from_str(body.get()).map_err(|error| Problem::Wrong(format!("{kind} {id:?}: {error}")))
    }
}

/// A file's content.
#[derive(Clone, Debug, Default)]
pub struct Envelope {
    sections: Vec<Section>,
}

impl Envelope {
    /// With nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a section.
    ///
    /// # Errors
    /// If `body` cannot be written as JSON: a defect of skiff.
    pub fn add<T: Serialize>(
        &mut self,
        kind: &str,
        version: u32,
        id: impl Into<String>,
        body: &T,
    ) -> Result<(), Problem> {
        let body = serde_json::value::to_raw_value(body);
        let body = body.map_err(|error| Problem::Wrong(format!("{kind}: {error}")))?;
        self.sections.push(Section { kind: kind.to_owned(), version, id: id.into(), body });
        Ok(())
    }

    /// All sections of this kind, in the order in which they were added.
    pub fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Section> {
        self.sections.iter().filter(move |section| section.kind == kind)
    }

    /// The body of the one section of this kind.
    ///
    /// # Errors
    /// If there is not just one, or it cannot be read; see [`Section::body`].
    pub fn one<T: DeserializeOwned>(&self, kind: &str, known: u32) -> Result<T, Problem> {
        let mut all = self.all(kind);
        match (all.next(), all.next()) {
            (Some(section), None) => section.body(known),
            (None, _) => Err(Problem::Wrong(format!("there is no {kind}"))),
            (Some(_), Some(_)) => Err(Problem::Wrong(format!("there is more than one {kind}"))),
        }
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// If a section cannot be written as JSON: a defect of skiff.
    pub fn encode(&self) -> Result<Vec<u8>, Problem> {
        let mut bytes = vec![0; HEADER];
        for section in &self.sections {
            serde_json::to_writer(&mut bytes, section).map_err(|error| Problem::Wrong(error.to_string()))?;
            bytes.push(b'\n');
        }
        let length = (bytes.len() - HEADER) as u64;
        let mut head = Vec::with_capacity(HEADER);
        head.extend(MAGIC);
        head.extend(VERSION.to_le_bytes());
        head.extend(architecture());
        head.extend(length.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head);
        crc.update(bytes.get(HEADER..).unwrap_or_default());
        head.extend(crc.finalize().to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(head) {
            *to = from;
        }
        Ok(bytes)
    }

    /// Read a file's bytes.
    ///
    /// # Errors
    /// The first thing that is wrong, in this order: foreign, other architecture, newer, truncated, corrupted.
    pub fn decode(bytes: &[u8]) -> Result<Self, Problem> {
        let (header, rest) = Header::split(bytes)?;
        header.check(bytes.len() as u64)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(bytes.get(..CHECKSUM).unwrap_or_default());
        crc.update(rest);
        if crc.finalize() != header.crc32 {
            return Err(Problem::Corrupted);
        }
        let lines = rest.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let section =
            |line: &[u8]| serde_json::from_slice(line).map_err(|error| Problem::Wrong(error.to_string()));
        Ok(Self { sections: lines.map(section).collect::<Result<_, _>>()? })
    }

    /// Write it as the new file `path`, durably but for the file's name. Returns what the file must be.
    ///
    /// # Errors
    /// If there is such a file, or the host fails.
    pub fn write(&self, storage: &dyn Storage, path: &Path) -> Result<Sum, EnvelopeError> {
        let failed = |problem| EnvelopeError::new(path, problem);
        let io = |error| failed(Problem::Io(error));
        let bytes = self.encode().map_err(failed)?;
        let file = storage.create(path).map_err(io)?;
        file.write_all_at(&bytes, 0).map_err(io)?;
        file.sync().map_err(io)?;
        Ok(Sum { len: bytes.len() as u64, crc32: crc32fast::hash(&bytes) })
    }

    /// Read the file `path`.
    ///
    /// # Errors
    /// If the host fails, or as [`Envelope::decode`].
    pub fn read(storage: &dyn Storage, path: &Path) -> Result<Self, EnvelopeError> {
        let failed = |problem| EnvelopeError::new(path, problem);
        let io = |error| failed(Problem::Io(error));
        let file = storage.open(path, false).map_err(io)?;
        let len = file.len().map_err(io)?;
        let mut bytes = vec![0; HEADER.min(usize::try_from(len).unwrap_or(HEADER))];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        // Before there is room made for the rest.
        let (header, _) = Header::split(&bytes).map_err(failed)?;
        header.check(len).map_err(failed)?;
        if len > MOST {
            return Err(failed(Problem::Wrong(format!("it has {len} bytes, and {MOST} are the most"))));
        }
        bytes.resize(usize::try_from(len).unwrap_or(HEADER), 0);
        let rest = bytes.get_mut(HEADER..).unwrap_or_default();
        file.read_exact_at(rest, HEADER as u64).map_err(io)?;
        Self::decode(&bytes).map_err(failed)
    }
}

/// This build's architecture as the header has it.
fn architecture() -> [u8; 8] {
    let mut field = [0; 8];
    for (to, from) in field.iter_mut().zip(std::env::consts::ARCH.bytes()) {
        *to = from;
    }
    field
}

/// What stands before the sections.
struct Header {
    version: u32,
    arch: [u8; 8],
    length: u64,
    crc32: u32,
}

impl Header {
    /// Take it off a file's start.
    fn split(bytes: &[u8]) -> Result<(Self, &[u8]), Problem> {
        let known = bytes.len().min(MAGIC.len());
        if bytes.is_empty() || bytes.get(..known) != MAGIC.get(..known) {
            return Err(Problem::Foreign);
        }
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(Problem::Truncated { has: bytes.len() as u64, must: HEADER as u64 });
        };
        let [
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            v0,
            v1,
            v2,
            v3,
            arch @ ..,
            l0,
            l1,
            l2,
            l3,
            l4,
            l5,
            l6,
            l7,
            c0,
            c1,
            c2,
            c3,
        ] = *head;
        let header = Self {
            version: u32::from_le_bytes([v0, v1, v2, v3]),
            arch,
            length: u64::from_le_bytes([l0, l1, l2, l3, l4, l5, l6, l7]),
            crc32: u32::from_le_bytes([c0, c1, c2, c3]),
        };
        Ok((header, rest))
    }

    /// Whether the rest can be read, in a file of `len` bytes.
    fn check(&self, len: u64) -> Result<(), Problem> {
        if self.arch != architecture() {
            let name: String =
                self.arch.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect();
            return Err(match name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                true => Problem::Architecture(name),
                false => Problem::Corrupted,
            });
        }
        if self.version > VERSION {
            let what = "the file".to_owned();
            return Err(Problem::Newer { what, version: self.version, known: VERSION });
        }
        let must = self.length.saturating_add(HEADER as u64);
        match len {
            has if has < must => Err(Problem::Truncated { has, must }),
            has if has > must => Err(Problem::Corrupted),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::storage::HostStorage;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut envelope = Envelope::new();
        envelope.add("vcpu", 1, "0", &[1, 2, 3]).unwrap();
        envelope.add("vcpu", 2, "1", &[4]).unwrap();
        envelope.add("clock", 1, "", &"now").unwrap();
        envelope.encode().unwrap()
    }

    fn text(bytes: &[u8]) -> String {
        Envelope::decode(bytes).unwrap_err().to_string()
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let envelope = Envelope::decode(&sample()).unwrap();
        assert_eq!(envelope.one::<String>("clock", 1).unwrap(), "now");
        let ids: Vec<_> = envelope.all("vcpu").map(Section::id).collect();
        assert_eq!(ids, ["0", "1"]);
        let bodies: Vec<Vec<u8>> = envelope.all("vcpu").map(|vcpu| vcpu.body(2).unwrap()).collect();
        assert_eq!(bodies, [vec![1, 2, 3], vec![4]]);
    }

    #[test]
    fn what_is_wrong_is_said_and_what_to_do() {
        let good = sample();
        let with = |at: usize, bytes: &[u8]| {
            let mut changed = good.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            changed
        };
        assert_eq!(text(b""), "is no file of skiff's");
        assert_eq!(text(b"QFI\xfb\0\0\0\x03"), "is no file of skiff's");
        assert!(text(&with(12, b"aarch64\0")).starts_with("was made on aarch64, and this is "));
        assert!(text(&with(8, &[9])).ends_with("(the file has version 9, this one reads 1): update skiff"));
        assert!(text(&good[..20]).starts_with("is truncated (20 of 32 bytes are there)"));
        let cut = text(&good[..good.len() - 1]);
        assert!(cut.starts_with(&format!("is truncated ({} of {} ", good.len() - 1, good.len())), "{cut}");
        for damaged in [with(40, b"!"), with(30, &[!good[30]]), [&good[..], b"x"].concat()] {
            assert!(text(&damaged).starts_with("is corrupted"), "{}", text(&damaged));
        }
    }

    #[test]
    fn a_section_that_cannot_be_used_is_named() {
        let envelope = Envelope::decode(&sample()).unwrap();
        let text = |kind| envelope.one::<u64>(kind, 1).unwrap_err().to_string();
        assert_eq!(text("disk"), "makes no sense: there is no disk");
        assert_eq!(text("vcpu"), "makes no sense: there is more than one vcpu");
        assert!(text("clock").starts_with("makes no sense: clock \"\": invalid type"), "{}", text("clock"));
        let newer = envelope.all("vcpu").nth(1).unwrap().body::<Vec<u8>>(1).unwrap_err();
        assert!(newer.to_string().contains("(vcpu has version 2, this one reads 1)"), "{newer}");
    }

    #[test]
    fn a_file_is_written_once_and_read_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let envelope = Envelope::decode(&sample()).unwrap();
        let sum = envelope.write(&HostStorage, &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(sum, Sum { len: bytes.len() as u64, crc32: crc32fast::hash(&bytes) });
        assert_eq!(Envelope::read(&HostStorage, &path).unwrap().encode().unwrap(), bytes);
        assert!(envelope.write(&HostStorage, &path).is_err());
        // A file that claims to be huge is not believed.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let error = Envelope::read(&HostStorage, &path).unwrap_err().to_string();
        assert!(error.starts_with(path.to_str().unwrap()) && error.contains("corrupted"), "{error}");
    }

    proptest! {
        #[test]
        fn any_change_is_found(at in 0..400usize, bit in 0..8u32) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Envelope::decode(&bytes).is_err());
        }

        #[test]
        fn nothing_that_is_read_ends_the_program(bytes: Vec<u8>, keep in 0..40usize) {
            let mut all = sample()[..keep].to_vec();
            all.extend(bytes);
            prop_assert!(Envelope::decode(&all).is_err());
        }
    }
}
