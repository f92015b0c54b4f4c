//! What a VM's disks are made of, and which snapshot it is on: `layers.json` in the VM's directory.
//!
//! Written by the VM's own process alone. Others read it: what it names is in use.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use devices::storage::Storage;
use serde::{Deserialize, Serialize};

use super::Id;
use super::sealed::{self, SealedError};

/// The version of the format that this build writes; it reads this one and all before.
const FORMAT: u32 = 1;

/// A VM's place among snapshots and layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    format: u32,
    /// The VM's life, which a rename does not change. Its snapshots name it.
    pub vm: Id,
    /// The snapshot that it was last at: its next one's parent. It may have been removed since.
    pub parent: Option<Id>,
    /// The top layer of each disk, in the order of the spec; `None` for a disk without layers.
    pub disks: Vec<Option<Id>>,
}

/// A VM's record cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the record of a VM's disks, {}, cannot be used", path.display())]
pub struct RecordError {
    /// Which.
    pub path: PathBuf,
    #[source]
    source: SealedError,
}

impl Record {
    /// Its name in a VM's directory.
    pub const FILE: &str = "layers.json";

    /// Of a VM that is on no snapshot yet.
    #[must_use]
    pub fn new(vm: Id, disks: Vec<Option<Id>>) -> Self {
        Self { format: FORMAT, vm, parent: None, disks }
    }

    /// The one at `path`; `None` if there is none.
    ///
    /// # Errors
    /// If it is damaged, newer than this build, or the host fails.
    pub fn read(storage: &dyn Storage, path: &Path) -> Result<Option<Self>, RecordError> {
        let failed = |source| RecordError { path: path.to_owned(), source };
        match sealed::read_small(storage, path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error.into())),
            Ok(text) => sealed::unseal(&text, FORMAT).map(Some).map_err(failed),
        }
    }

    /// Let the one at `path` be this: at once, and durable.
    ///
    /// # Errors
    /// If the host fails: it is the old one or this one, whole.
    pub fn write(&self, storage: &dyn Storage, path: &Path) -> Result<(), RecordError> {
        let written = sealed::seal(self).and_then(|text| sealed::replace(storage, path, &text));
        written.map_err(|error| RecordError { path: path.to_owned(), source: error.into() })
    }

    /// The same for a VM of which nothing is of use after a crash of the host.
    ///
    /// # Errors
    /// If the host fails.
    pub fn write_soon(&self, storage: &dyn Storage, path: &Path) -> Result<(), RecordError> {
        let written = sealed::seal(self).and_then(|text| sealed::replace_soon(storage, path, &text));
        written.map_err(|error| RecordError { path: path.to_owned(), source: error.into() })
    }
}

#[cfg(test)]
mod tests {
    use devices::storage::HostStorage;

    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_its_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(Record::FILE);
        assert_eq!(Record::read(&HostStorage, &path).unwrap(), None);
        let mut record = Record::new(Id::draw().unwrap(), vec![Some(Id::draw().unwrap()), None]);
        for parent in [None, Some(Id::draw().unwrap())] {
            record.parent = parent;
            record.write(&HostStorage, &path).unwrap();
            assert_eq!(Record::read(&HostStorage, &path).unwrap(), Some(record.clone()));
        }
        std::fs::write(&path, "{}").unwrap();
        let error = Record::read(&HostStorage, &path).unwrap_err();
        assert!(error.to_string().contains("layers.json"), "{error}");
    }

    #[test]
    fn a_record_of_the_first_version_is_read() {
        const FIRST: &[u8] = include_bytes!("fixtures/layers-1.json");
        let record: Record = sealed::unseal(FIRST, FORMAT).unwrap();
        assert_eq!(record.vm, "f6b78c8acaa9ce71".parse().unwrap());
        assert_eq!(record.parent, Some("3504d5b492f3b899".parse().unwrap()));
        assert_eq!(record.disks, [Some("649760075303789f".parse().unwrap()), None]);
    }
}
