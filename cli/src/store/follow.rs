//! A file that grows and is renamed with `.1` after it when it is full: read from the start, and on as it goes.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// A place in such a file.
pub struct Follower {
    path: PathBuf,
    file: Option<File>,
}

impl Follower {
    /// At the start of what is left of `path`: what was renamed is read whole, and returned.
    pub fn from_start(path: &Path) -> io::Result<(Vec<u8>, Self)> {
        let mut past = Vec::new();
        loop {
            let file = open(path)?;
            past.clear();
            if let Some(mut old) = open(&old(path))? {
                old.read_to_end(&mut past)?;
            }
            // Renamed meanwhile, it would be missing or be there twice.
            if identity(open(path)?.as_ref()) == identity(file.as_ref()) {
                return Ok((past, Self { path: path.to_owned(), file }));
            }
        }
    }

    /// At the end of `path`.
    pub fn from_end(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        if let Some(mut file) = file.as_ref() {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// What has come since, at most some; empty if nothing has.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        // Asked before the read: what comes after the rename goes to the next file.
        let now = open(&self.path)?;
        let mut bytes = vec![0; CHUNK];
        if let Some(file) = &mut self.file {
            let len = file.read(&mut bytes)?;
            if len > 0 {
                bytes.truncate(len);
                return Ok(bytes);
            }
        }
        if now.is_some() && identity(now.as_ref()) != identity(self.file.as_ref()) {
            self.file = now;
            return self.read();
        }
        Ok(Vec::new())
    }
}

fn old(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn identity(file: Option<&File>) -> Option<(u64, u64)> {
    file?.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    #[test]
    fn nothing_is_lost_or_read_twice_when_the_file_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let add = |text: &str| {
            let mut file = File::options().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let rotate = || fs::rename(&path, dir.path().join("log.1")).unwrap();
        add("a");
        rotate();
        add("b");
        let (past, mut all) = Follower::from_start(&path).unwrap();
        let mut end = Follower::from_end(&path).unwrap();
        assert_eq!((past.as_slice(), all.read().unwrap().as_slice()), (&b"a"[..], &b"b"[..]));
        add("c");
        rotate();
        add("d");
        for follower in [&mut all, &mut end] {
            assert_eq!(follower.read().unwrap(), b"c");
            assert_eq!(follower.read().unwrap(), b"d");
            assert_eq!(follower.read().unwrap(), b"");
        }
    }

    #[test]
    fn a_file_that_is_not_there_yet_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (past, mut follower) = Follower::from_start(&path).unwrap();
        assert!(past.is_empty() && follower.read().unwrap().is_empty());
        fs::write(&path, "a").unwrap();
        assert_eq!(follower.read().unwrap(), b"a");
    }
}
