//! The tar format: POSIX.1-2017 ("pax Interchange Format"), with GNU's long names and sparse files. [`Tar`] reads one from a stream.
//!
//! Every header is parsed once, into an [`Entry`]; what a header can make grow is bounded before it is read.

mod header;
mod pax;
mod sparse;
mod write;

use std::io::{self, Read};

use self::header::{BLOCK, Header};
use self::pax::Pax;
use self::sparse::Map;
pub use self::write::Writer;
use super::Error;

/// The most that an extended header may take, in bytes: attributes are the largest part of one.
const PAX_LIMIT: u64 = 1 << 20;
/// The most that a name of GNU's may take, in bytes. Paths of Linux end at 4096.
const NAME_LIMIT: u64 = 16 << 10;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device,
    /// Something that is no file: a volume's label and the like.
    Other,
}

/// An entry, but for its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As it stands in the archive.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// All twelve bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds below a second.
    pub mtime: (i64, u32),
    /// Where a link leads.
    pub link: Vec<u8>,
    /// The length of the file, holes included, in bytes.
    pub size: u64,
    /// Bytes of data in the archive.
    pub stored: u64,
    /// Where the data belongs if there are holes between: offset and length.
    pub map: Option<Map>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive that is being read.
pub struct Tar<R> {
    from: R,
    /// How much has been read.
    at: u64,
    /// Data of the last entry that has not been read.
    left: u64,
    /// What follows this data up to the next header.
    padding: u64,
}

/// What came before a header and belongs to it.
#[derive(Default)]
struct Before {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

impl<R: Read> Tar<R> {
    pub fn new(from: R) -> Self {
        Self { from, at: 0, left: 0, padding: 0 }
    }

    /// The next entry; `None` at the end. Data that nobody has read is passed over.
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut before = Before::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.size().ok_or_else(|| self.wrong("a size that is no number"))?;
            self.follow(size)?;
            match header.kind() {
                b'x' => before.pax = self.pax()?,
                // What it says is for all entries, and nothing of it matters here: comments, mostly.
                b'g' => {}
                b'L' => before.path = Some(self.name()?),
                b'K' => before.link = Some(self.name()?),
                _ => return self.entry(&header, before).map(Some),
            }
        }
    }

    /// Data of the last entry; 0 bytes at its end.
    pub fn data(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        let length = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let Some(into) = into.get_mut(..length).filter(|into| !into.is_empty()) else {
            return Ok(0);
        };
        let got = read(&mut self.from, into)?;
        if got == 0 {
            return Err(self.wrong("the end, in the midst of a file"));
        }
        self.at = self.at.saturating_add(got as u64);
        self.left = self.left.saturating_sub(got as u64);
        Ok(got)
    }

    /// Reads what stands behind the end, so that a checksum behind that is read; not more than archives are padded with.
    pub fn finish(&mut self) -> Result<(), Error> {
        let mut rest = (&mut self.from).take(1 << 20);
        io::copy(&mut rest, &mut io::sink()).map(|_| ()).map_err(Error::Read)
    }

    fn wrong(&self, what: &'static str) -> Error {
        Error::Format { at: self.at, what }
    }

    fn header(&mut self) -> Result<Option<Header>, Error> {
        let mut block = [0; BLOCK];
        let mut got = 0;
        while let Some(rest) = block.get_mut(got..).filter(|rest| !rest.is_empty()) {
            match read(&mut self.from, rest)? {
                0 => break,
                more => got += more,
            }
        }
        let start = self.at;
        self.at = self.at.saturating_add(got as u64);
        let what = match got {
            // Some programs leave the end out.
            0 if start > 0 => return Ok(None),
            0 => "nothing",
            BLOCK if block.iter().all(|byte| *byte == 0) => return Ok(None),
            BLOCK => match Header::parse(block) {
                Some(header) => return Ok(Some(header)),
                None => "a header whose checksum is wrong",
            },
            _ => "the end, in the midst of a header",
        };
        Err(Error::Format { at: start, what })
    }

    /// So much data follows.
    fn follow(&mut self, size: u64) -> Result<(), Error> {
        let whole = size
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| self.wrong("a size that no file has"))?;
        (self.left, self.padding) = (size, whole - size);
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 16 << 10];
        while self.data(&mut buffer)? > 0 {}
        // Some programs leave it out behind the last file, with the end.
        let mut padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or_default();
        while let Some(rest) = buffer.get_mut(..padding).filter(|rest| !rest.is_empty()) {
            let got = read(&mut self.from, rest)?;
            if got == 0 {
                break;
            }
            self.at = self.at.saturating_add(got as u64);
            padding = padding.saturating_sub(got);
        }
        Ok(())
    }

    /// All the data that follows, of at most `limit` bytes.
    fn all(&mut self, limit: u64, what: &'static str) -> Result<Vec<u8>, Error> {
        if self.left > limit {
            return Err(self.wrong(what));
        }
        let mut bytes = vec![0; usize::try_from(self.left).unwrap_or_default()];
        let mut at = 0;
        while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
            at += self.data(rest)?;
        }
        Ok(bytes)
    }

    fn name(&mut self) -> Result<Vec<u8>, Error> {
        let bytes = self.all(NAME_LIMIT, "a name that is too long for a file")?;
        Ok(bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
    }

    fn pax(&mut self) -> Result<Pax, Error> {
        let bytes = self.all(PAX_LIMIT, "an extended header that is too long")?;
        Pax::parse(&bytes).map_err(|what| self.wrong(what))
    }

    /// Joins a header and what came before it. The data is what follows, after the map if that is in front of it.
    fn entry(&mut self, header: &Header, before: Before) -> Result<Entry, Error> {
        let Before { path, link, pax } = before;
        let path =
            pax.sparse.name.clone().or_else(|| pax.path.clone()).or(path).unwrap_or_else(|| header.path());
        let kind = header.entry_kind(&path);
        let has_data = matches!(kind, Kind::File | Kind::Other);
        if let Some(size) = pax.size {
            self.follow(size)?;
        }
        if !has_data && kind != Kind::HardLink {
            // The size of a directory is what it may grow to, and nothing follows.
            self.follow(0)?;
        }
        let map = if kind == Kind::File { self.map(header, &pax)? } else { None };
        let size = map.as_ref().map_or(self.left, |map| map.size);
        let number = |value: Option<u64>| value.and_then(|value| u32::try_from(value).ok());
        let id = |pax: Option<u64>, header: Option<u64>| number(pax.or(header));
        let wrong = || self.wrong("a number that is none");
        Ok(Entry {
            kind,
            mode: number(header.mode()).ok_or_else(wrong)? & 0o7777,
            uid: id(pax.uid, header.uid()).ok_or_else(wrong)?,
            gid: id(pax.gid, header.gid()).ok_or_else(wrong)?,
            mtime: pax.mtime.unwrap_or_else(|| (header.mtime(), 0)),
            link: pax.link.or(link).unwrap_or_else(|| header.link()),
            size,
            stored: if has_data { self.left } else { 0 },
            map,
            xattrs: pax.xattrs,
            path,
        })
    }

    /// Where the data belongs, in each of the four ways to say so.
    fn map(&mut self, header: &Header, pax: &Pax) -> Result<Option<Map>, Error> {
        let sparse = &pax.sparse;
        let map = if header.kind() == b'S' {
            self.gnu_map(header)?
        } else if sparse.major == Some(1) {
            self.map_in_front(sparse.size)?
        } else if let Some(size) = sparse.size {
            Map { size, parts: sparse.parts.clone() }
        } else {
            return Ok(None);
        };
        if map.is_right(self.left) {
            Ok(Some(map))
        } else {
            Err(self.wrong("a map of holes that does not fit its file"))
        }
    }

    /// GNU's first way: four parts in the header, more in blocks behind it that its size does not count.
    fn gnu_map(&mut self, header: &Header) -> Result<Map, Error> {
        let none = "a map of holes that is none";
        let (mut map, mut more) = Map::of_header(header.bytes()).ok_or_else(|| self.wrong(none))?;
        let (left, padding) = (self.left, self.padding);
        while more {
            self.follow(BLOCK as u64)?;
            let block = self.all(BLOCK as u64, none)?;
            more = map.extend(&block).ok_or_else(|| self.wrong(none))?;
        }
        (self.left, self.padding) = (left, padding);
        Ok(map)
    }

    /// GNU's last way: decimal numbers on lines in front of the data, filled up to a block.
    fn map_in_front(&mut self, size: Option<u64>) -> Result<Map, Error> {
        let none = "a map of holes that is none";
        let mut lines = sparse::Lines::default();
        while !lines.are_complete() {
            let mut block = [0; BLOCK];
            let mut at = 0;
            while let Some(rest) = block.get_mut(at..).filter(|rest| !rest.is_empty()) {
                match self.data(rest)? {
                    0 => return Err(self.wrong(none)),
                    got => at += got,
                }
            }
            lines.add(&block).ok_or_else(|| self.wrong(none))?;
        }
        let size = size.ok_or_else(|| self.wrong(none))?;
        lines.map(size).ok_or_else(|| self.wrong(none))
    }
}

/// As `read`, but goes on after a signal.
fn read(from: &mut impl Read, into: &mut [u8]) -> Result<usize, Error> {
    loop {
        match from.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map_err(Error::Read),
        }
    }
}
