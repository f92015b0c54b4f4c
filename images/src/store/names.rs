//! What images are called: a file a name, with an ID in it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Store, StoreError};
use crate::digest::Digest;
use crate::name::Name;

impl Store {
    fn names_dir(&self) -> PathBuf {
        self.root.join("names")
    }

    /// A slash is no part of a file's name, and a plus is no part of an image's.
    fn name_path(&self, name: &Name) -> PathBuf {
        self.names_dir().join(name.to_string().replace('/', "+"))
    }

    /// Let `name` be the image `id` from now on, durably.
    ///
    /// # Errors
    /// If there is no such image, or the host fails: then it is what it was, or this.
    pub fn tag(&self, name: &Name, id: &Digest) -> Result<(), StoreError> {
        let _shared = self.shared()?;
        self.get(id)?;
        self.replace(&self.name_path(name), format!("{id}\n").as_bytes(), true)
    }

    /// Let `name` be nothing. Says whether it was something.
    ///
    /// # Errors
    /// If the host fails.
    pub fn untag(&self, name: &Name) -> Result<bool, StoreError> {
        let _shared = self.shared()?;
        let path = self.name_path(name);
        let there = self.storage.exists(&path).map_err(StoreError::io("find", &path))?;
        self.storage.remove_file(&path).map_err(StoreError::io("delete", &path))?;
        let dir = self.names_dir();
        if there {
            self.storage.sync_dir(&dir).map_err(StoreError::io("sync", &dir))?;
        }
        Ok(there)
    }

    /// All names, and the IDs that they stand for. What is no name of an image is not skiff's, and is left out.
    ///
    /// # Errors
    /// If the host fails, or a name's file is damaged.
    pub fn names(&self) -> Result<BTreeMap<Name, Digest>, StoreError> {
        let mut names = BTreeMap::new();
        for file in self.list_dir(&self.names_dir())? {
            let Some(name) = file.replace('+', "/").parse::<Name>().ok().filter(|_| !file.starts_with('.'))
            else {
                continue;
            };
            names.extend(self.named(&name)?.map(|id| (name, id)));
        }
        Ok(names)
    }

    /// The image that is called `name`.
    ///
    /// # Errors
    /// If the host fails, or the name's file is damaged.
    pub fn named(&self, name: &Name) -> Result<Option<Digest>, StoreError> {
        let path = self.name_path(name);
        let Some(text) = self.read_small(&path)? else { return Ok(None) };
        let damaged = || StoreError::Damaged { path: path.clone(), why: "it names no image".to_owned() };
        let text = std::str::from_utf8(&text).map_err(|_| damaged())?;
        text.trim_end().parse().map(Some).map_err(|_| damaged())
    }
}
