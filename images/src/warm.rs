//! Which images are warm: those that carry a snapshot, taken after a boot, from which their VMs start.
//!
//! ```text
//! warm/ID.json     the snapshot of the image ID
//! ```
//! The snapshot itself is among all others, and this file is what keeps it. One that leads nowhere is none: the image boots.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::file::cache;

/// An image's snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Warm {
    /// Its ID.
    pub snapshot: String,
    /// The life of the VM that it was taken of, by which it is kept.
    pub vm: String,
    /// When it was taken, in milliseconds since 1970.
    pub created_ms: u64,
}

/// All of them.
#[derive(Clone, Debug)]
pub struct WarmImages {
    dir: PathBuf,
}

impl WarmImages {
    /// Those in this directory, which is made when something is put there.
    #[must_use]
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The snapshot of the image `id`, if it is warm.
    #[must_use]
    pub fn get(&self, id: Digest) -> Option<Warm> {
        cache::read(&self.path(id))
    }

    /// Let it be this.
    ///
    /// # Errors
    /// If the host fails.
    pub fn put(&self, id: Digest, warm: &Warm) -> io::Result<()> {
        cache::make_dir(&self.dir)?;
        cache::write(&self.path(id), warm)
    }

    /// Let there be none.
    ///
    /// # Errors
    /// If the host fails.
    pub fn remove(&self, id: Digest) -> io::Result<()> {
        cache::gone(fs::remove_file(self.path(id)))
    }

    /// Every warm image and its snapshot.
    ///
    /// # Errors
    /// If the host fails.
    pub fn all(&self) -> io::Result<Vec<(Digest, Warm)>> {
        let mut all = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(all),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let id = hex.and_then(|hex| format!("sha256:{hex}").parse().ok());
            all.extend(id.and_then(|id| Some((id, self.get(id)?))));
        }
        all.sort_by_key(|(id, _)| *id);
        Ok(all)
    }

    fn path(&self, id: Digest) -> PathBuf {
        self.dir.join(format!("{}.json", id.hex()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_warm_until_its_snapshot_is_taken_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let images = WarmImages::at(dir.path().join("warm"));
        assert!(images.all().unwrap().is_empty());
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        let warm = Warm { snapshot: "0123456789abcdef".to_owned(), vm: "00".to_owned(), created_ms: 7 };
        images.put(one, &warm).unwrap();
        images.put(other, &Warm { created_ms: 8, ..warm.clone() }).unwrap();
        images.remove(other).unwrap();
        images.remove(other).unwrap();
        assert_eq!(images.all().unwrap(), [(one, warm)]);
        fs::write(images.path(one), "{").unwrap();
        assert_eq!((images.get(one), images.all().unwrap()), (None, Vec::new()));
    }
}
