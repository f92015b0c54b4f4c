//! cloud-init's NoCloud seed: what a stock cloud image is told at its first boot, on a small disk with the label `cidata`.
//!
//! The disk is ISO 9660 with Rock Ridge and Joliet names, made here. The same [`Seed`] makes the same bytes.

/// What a guest is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// `instance-id`: another one makes cloud-init begin anew.
    pub instance_id: String,
    /// `local-hostname`.
    pub hostname: String,
    /// `user-data`, in any of cloud-init's formats.
    pub user_data: Option<Vec<u8>>,
    /// `meta-data`, YAML; what it does not say is added.
    pub meta_data: Option<Vec<u8>>,
    /// `network-config`, YAML.
    pub network_config: Option<Vec<u8>>,
    /// Public keys that may log in.
    pub keys: Vec<String>,
}

/// Why there is no seed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// A file is too large.
    #[error("{what} has {size} bytes: a seed holds at most {most}")]
    TooLarge {
        /// Which.
        what: &'static str,
        /// Its length in bytes.
        size: usize,
        /// The limit.
        most: usize,
    },
}

impl Seed {
    /// The seed as a disk's bytes, a multiple of 2048.
    ///
    /// # Errors
    /// If a file is too large.
    pub fn disk(&self) -> Result<Vec<u8>, SeedError> {
        Ok(Vec::new())
    }
}
