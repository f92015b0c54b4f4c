//! [`Overlay`]: a few files of skiff's own, as an archive to unpack over a tree.

use std::io;

use super::tar::{Entry, Kind, Writer};

/// Files that are put into a tree, and names that are taken out of it. Everything is root's. Directories that are not there are made;
/// those that are there stay as they are.
#[derive(Default)]
pub struct Overlay {
    entries: Vec<(Entry, Vec<u8>)>,
}

impl Overlay {
    /// A file.
    pub fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> &mut Self {
        let content = content.into();
        self.entries.push((entry(path, Kind::File, mode, "", content.len()), content));
        self
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) -> &mut Self {
        self.entries.push((entry(path, Kind::Symlink, 0o777, to, 0), Vec::new()));
        self
    }

    /// What has this name goes, with all that is below it. It need not be there.
    pub fn remove(&mut self, path: &str) -> &mut Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.file(&format!("{parent}/.wh.{name}"), 0o644, "")
    }

    /// As an archive whose names that take out are whiteouts.
    ///
    /// # Errors
    /// None that a `Vec` does not have.
    pub fn archive(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut tar = Writer::new(&mut bytes);
        for (entry, content) in &self.entries {
            tar.entry(entry, &mut &content[..])?;
        }
        tar.finish()?;
        Ok(bytes)
    }
}

fn entry(path: &str, kind: Kind, mode: u32, link: &str, length: usize) -> Entry {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Entry {
        path: path.trim_start_matches('/').into(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: (i64::try_from(now.as_secs()).unwrap_or_default(), 0),
        link: link.into(),
        size: length as u64,
        stored: length as u64,
        map: None,
        xattrs: Vec::new(),
    }
}
