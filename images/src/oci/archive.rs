//! [`Archive`]: the files of a tar, by name, without unpacking it.
//!
//! Only what a layout or a docker archive needs: files, and links between them (docker's older archives have links for layers that are there
//! twice). The members' contents stay where they are; every length in a header is checked against the file's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// The unit of tar (POSIX.1-2017, pax, "ustar Interchange Format").
const BLOCK: u64 = 512;
/// The most members that an archive may have: a layout of [`super::spec::MAX_LAYERS`] layers has few.
const MAX_MEMBERS: usize = 65_536;
/// The most bytes of a header's extension.
const MAX_EXTENSION: u64 = 64 << 10;
/// The most bytes that all names together may take: they are kept in memory. Those of a layout are a hundred bytes long.
const MAX_NAMES: usize = 16 << 20;
/// How many links may follow each other.
const MAX_LINKS: u32 = 8;

/// A tar's files.
#[derive(Debug)]
pub struct Archive {
    file: Arc<File>,
    members: BTreeMap<String, Member>,
    /// Bytes of all names.
    names: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    /// Where it is, and how long.
    File { at: u64, len: u64 },
    /// Another's name.
    Link(String),
}

/// A member's content.
#[derive(Debug)]
pub struct Content {
    file: Arc<File>,
    at: u64,
    end: u64,
}

/// What headers before a member's own say about it.
#[derive(Default)]
struct Said {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Archive {
    /// Read all headers of the tar in `file`.
    ///
    /// # Errors
    /// If it cannot be read, or is none ([`io::ErrorKind::InvalidData`]).
    pub fn open(file: File) -> io::Result<Self> {
        let mut archive = Self { file: Arc::new(file), members: BTreeMap::new(), names: 0 };
        archive.scan(MAX_MEMBERS, &mut |_| {})?;
        Ok(archive)
    }

    /// The names of the first members of a tar, at most so many.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub fn first_names(file: File, most: usize) -> io::Result<Vec<String>> {
        let mut archive = Self { file: Arc::new(file), members: BTreeMap::new(), names: 0 };
        let mut names = Vec::new();
        match archive.scan(most, &mut |name| names.push(name.to_owned())) {
            Err(error) if names.is_empty() => Err(error),
            // The rest may be cut off where only the beginning was unpacked.
            _ => Ok(names),
        }
    }

    /// The content of a member, and its length.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn get(&self, name: &str) -> io::Result<(Content, u64)> {
        let mut name = tidy(name);
        for _ in 0..MAX_LINKS {
            match self.members.get(&name) {
                Some(Member::File { at, len }) => {
                    let end = at.saturating_add(*len);
                    return Ok((Content { file: Arc::clone(&self.file), at: *at, end }, *len));
                }
                Some(Member::Link(target)) => name.clone_from(target),
                None => break,
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("the archive has no {name:.100}")))
    }

    /// Whether there is a member of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.members.contains_key(&tidy(name))
    }

    fn scan(&mut self, most: usize, seen: &mut dyn FnMut(&str)) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        let (mut at, mut count, mut said) = (0_u64, 0_usize, Said::default());
        while let Some(header) = self.header(at, len)? {
            let content = at.saturating_add(BLOCK);
            let kind = header.entry_type();
            let is_extension =
                kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions();
            let own = header.entry_size()?;
            let size = if is_extension { own } else { said.size.unwrap_or(own) };
            let end = content.checked_add(size).filter(|end| *end <= len);
            let end = end.ok_or_else(|| damaged("a member is longer than the archive"))?;
            if is_extension {
                self.extension(&header, content, size, &mut said)?;
            } else if !kind.is_pax_global_extensions() {
                let said = std::mem::take(&mut said);
                if count >= most {
                    return if most == MAX_MEMBERS {
                        Err(damaged("it has too many members"))
                    } else {
                        Ok(())
                    };
                }
                count = count.saturating_add(1);
                self.member(&header, said, content, size, seen)?;
            }
            at = end.checked_next_multiple_of(BLOCK).ok_or_else(|| damaged("it has no end"))?;
        }
        if count == 0 { Err(damaged("it has no members")) } else { Ok(()) }
    }

    /// The header at `at`; none at the end.
    fn header(&self, at: u64, len: u64) -> io::Result<Option<tar::Header>> {
        if at.saturating_add(BLOCK) > len {
            return Ok(None);
        }
        let mut header = tar::Header::new_old();
        self.file.read_exact_at(header.as_mut_bytes(), at)?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        let (before, rest) = bytes.split_at(148);
        let after = rest.get(8..).unwrap_or_default();
        let sum: u32 = before.iter().chain(after).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        if header.cksum()? != sum {
            return Err(damaged("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn extension(&self, header: &tar::Header, at: u64, size: u64, said: &mut Said) -> io::Result<()> {
        if size > MAX_EXTENSION {
            return Err(damaged("a name is too long"));
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| damaged("a name is too long"))?];
        self.file.read_exact_at(&mut bytes, at)?;
        let kind = header.entry_type();
        if kind.is_pax_local_extensions() {
            for extension in tar::PaxExtensions::new(&bytes) {
                let extension = extension?;
                let value = String::from_utf8_lossy(extension.value_bytes()).into_owned();
                match extension.key_bytes() {
                    b"path" => said.name = Some(value),
                    b"linkpath" => said.link = Some(value),
                    b"size" => said.size = Some(value.parse().map_err(|_| damaged("a size is no number"))?),
                    _ => {}
                }
            }
            return Ok(());
        }
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = Some(String::from_utf8_lossy(text).into_owned());
        if kind.is_gnu_longname() {
            said.name = text
        } else {
            said.link = text
        }
        Ok(())
    }

    fn member(
        &mut self,
        header: &tar::Header,
        said: Said,
        at: u64,
        len: u64,
        seen: &mut dyn FnMut(&str),
    ) -> io::Result<()> {
        let name = said.name.unwrap_or_else(|| String::from_utf8_lossy(&header.path_bytes()).into_owned());
        let name = tidy(&name);
        seen(&name);
        let kind = header.entry_type();
        let link = || {
            let own = header.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
            said.link.or(own).unwrap_or_default()
        };
        let member = if kind.is_file() || kind.is_contiguous() {
            Member::File { at, len }
        } else if kind.is_hard_link() {
            Member::Link(tidy(&link()))
        } else if kind.is_symlink() {
            Member::Link(join(&name, &link()))
        } else if kind.is_dir() {
            return Ok(());
        } else {
            return Err(damaged("it has members that are no files"));
        };
        let link = if let Member::Link(target) = &member { target.len() } else { 0 };
        self.names = self.names.saturating_add(name.len()).saturating_add(link);
        if self.names > MAX_NAMES {
            return Err(damaged("its names are too long"));
        }
        self.members.insert(name, member);
        Ok(())
    }
}

impl Read for Content {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = into.len().min(left);
        let into = into.get_mut(..most).unwrap_or_default();
        let got = self.file.read_at(into, self.at)?;
        if got == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at = self.at.saturating_add(got as u64);
        Ok(got)
    }
}

/// A name as it is looked for: without `.` and empty parts.
fn tidy(name: &str) -> String {
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    parts.join("/")
}

/// Where a symbolic link leads. It leads nowhere but to other members: there is nothing else to find.
fn join(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = if target.starts_with('/') { Vec::new() } else { name.split('/').collect() };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn tar(members: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        for (name, target) in links {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, name, target).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn content(archive: &Archive, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        archive.get(name)?.0.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn members_and_links_are_found() {
        let long = "d/".repeat(80) + "long";
        let bytes = tar(
            &[("./a/layer.tar", b"one"), (&long, b"two")],
            &[("b/layer.tar", "../a/layer.tar"), ("loop", "loop"), ("out", "../../../../etc/passwd")],
        );
        let archive = Archive::open(file(&bytes)).unwrap();
        assert_eq!(content(&archive, "a/layer.tar").unwrap(), b"one");
        assert_eq!(content(&archive, "./b//layer.tar").unwrap(), b"one");
        assert_eq!(content(&archive, &long).unwrap(), b"two");
        for missing in ["loop", "out", "c", ""] {
            assert_eq!(content(&archive, missing).unwrap_err().kind(), io::ErrorKind::NotFound, "{missing}");
        }
    }

    #[test]
    fn lies_about_lengths_are_refused() {
        let mut bytes = tar(&[("a", b"one")], &[]);
        let mut header = tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_size(u64::MAX >> 2);
        header.set_cksum();
        bytes[..512].copy_from_slice(header.as_bytes());
        assert!(Archive::open(file(&bytes)).is_err());
        // A name of gigabytes.
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(MAX_EXTENSION + 1);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(512 + (MAX_EXTENSION as usize + 1024), b'a');
        assert!(Archive::open(file(&bytes)).is_err());
        assert!(Archive::open(file(&[7; 2048])).is_err());
        assert!(Archive::open(file(&[])).is_err());
    }

    #[test]
    fn names_do_not_fill_the_memory() {
        let named = |len: usize, count: usize| {
            let mut bytes = Vec::new();
            for number in 0..count {
                let name = format!("{number}{}\0", "a".repeat(len));
                let mut header = tar::Header::new_gnu();
                for (kind, size) in [(tar::EntryType::GNULongName, name.len()), (tar::EntryType::Regular, 0)]
                {
                    header.set_entry_type(kind);
                    header.set_size(size as u64);
                    header.set_cksum();
                    bytes.extend_from_slice(header.as_bytes());
                    if size > 0 {
                        bytes.extend_from_slice(name.as_bytes());
                        bytes.resize(bytes.len().next_multiple_of(512), 0);
                    }
                }
            }
            Archive::open(file(&bytes))
        };
        assert!(named(200, 1000).is_ok());
        assert!(named(60_000, 300).unwrap_err().to_string().contains("names are too long"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn no_damage_makes_it_fall_over(at in 0_usize..3000, byte: u8, cut in 0_usize..3000) {
            let mut bytes = tar(&[("a", b"one"), (&"x".repeat(200), b"two")], &[("b", "a")]);
            if let Some(damaged) = bytes.get_mut(at) {
                *damaged = byte;
            }
            bytes.truncate(cut.max(600));
            if let Ok(archive) = Archive::open(file(&bytes)) {
                for name in ["a", "b"] {
                    let _ = content(&archive, name);
                }
            }
        }
    }
}
