//! Where snapshots and layers lie.

use std::path::{Path, PathBuf};

use super::Id;

/// The directory that holds snapshots and layers, and the names in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    root: PathBuf,
    owner: Option<PathBuf>,
}

impl Places {
    /// Below `root`, an absolute path.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), owner: None }
    }

    /// The same, which only the VMs whose records are below `owner` may use: what these do not name is free.
    #[must_use]
    pub fn owned_by(self, owner: impl Into<PathBuf>) -> Self {
        Self { owner: Some(owner.into()), ..self }
    }

    /// Below which the records of its VMs are, if that is known.
    #[must_use]
    pub fn owner(&self) -> Option<&Path> {
        self.owner.as_deref()
    }

    /// All of it.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where all layers are.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// A layer.
    #[must_use]
    pub fn layer(&self, id: Id) -> PathBuf {
        self.layers().join(format!("{id}.qcow2"))
    }

    /// Where kernels and initrds are that came with imported snapshots.
    #[must_use]
    pub fn boot(&self) -> PathBuf {
        self.root.join("boot")
    }

    /// Where all snapshots are.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// A snapshot.
    #[must_use]
    pub fn snapshot(&self, id: Id) -> PathBuf {
        self.snapshots().join(id.to_string())
    }

    /// A snapshot that is on its way.
    #[must_use]
    pub fn draft(&self, id: Id) -> PathBuf {
        self.snapshots().join(format!(".new-{id}"))
    }
}
