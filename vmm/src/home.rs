//! What a VM keeps for later: which snapshot it is on, and where the layers of its disks are.
//!
//! The record is the VM's own and is always durable before what it says is used: whoever finds it after a crash finds a VM that
//! can be started. Belongs to the `vmm` thread.

use std::path::PathBuf;

use crate::snapshot::record::RecordError;
use crate::snapshot::store::StoreError;
use crate::snapshot::{Id, Places, Record, Store};

/// Where what a VM keeps for later is.
#[derive(Clone, Debug)]
pub struct Home {
    /// Layers and snapshots, of this VM and of others.
    pub places: Places,
    /// The VM's own record of what it stands on (`layers.json`); made at the first start if it is not there.
    pub record: PathBuf,
}

/// A VM's home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Snapshots or layers.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The VM's record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The host has no random numbers.
    #[error("the host has no random numbers to name a VM with")]
    Names(#[source] std::io::Error),
    /// A snapshot needs a home to be in.
    #[error("a VM that starts from a snapshot needs a place to keep its own: this is a defect of skiff")]
    Homeless,
}

/// An open [`Home`].
#[derive(Debug)]
pub(crate) struct Lineage {
    pub(crate) store: Store,
    path: PathBuf,
    record: Record,
}

impl Lineage {
    /// Of a VM with so many disks, which is new if it has no record.
    pub(crate) fn open(home: &Home, disks: usize) -> Result<Self, HomeError> {
        let store = Store::open(home.places.clone());
        let record = match Record::read(store.storage(), &home.record)? {
            Some(mut record) => {
                // Disks that were added or taken away are at the end.
                record.disks.resize(disks, None);
                record
            }
            None => Record::new(Id::draw().map_err(HomeError::Names)?, vec![None; disks]),
        };
        Ok(Self { store, path: home.record.clone(), record })
    }

    /// What is durable.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Let it be this, durably. Returns what it was.
    ///
    /// # Errors
    /// If the host fails: it is the old one or this one then, and the old one for this process.
    pub(crate) fn change(&mut self, record: Record) -> Result<Record, RecordError> {
        record.write(self.store.storage(), &self.path)?;
        Ok(std::mem::replace(&mut self.record, record))
    }
}
