//! What can be done to the disks of a running VM.

use devices::disk::DiskError;
use devices::virtio::block::Resizer;

/// A disk cannot be resized. Each message names it and the fix.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResizeError {
    /// There is no such disk.
    #[error("there is no disk called {asked}: {}", known(names))]
    NoDisk {
        /// As it was asked for.
        asked: String,
        /// Those that there are.
        names: Vec<String>,
    },
    /// The disk says no.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn known(names: &[String]) -> String {
    if names.is_empty() { "this VM has none".to_owned() } else { format!("this VM has {}", names.join(", ")) }
}

/// A way to each disk, by its name.
#[derive(Default)]
pub(super) struct Disks(Vec<(String, Resizer)>);

impl Disks {
    pub(super) fn add(&mut self, id: String, resizer: Resizer) {
        self.0.push((id, resizer));
    }

    /// Make the disk called `id` `size` bytes large and tell the guest.
    pub(super) fn resize(&self, id: &str, size: u64) -> Result<(), ResizeError> {
        let Some((_, resizer)) = self.0.iter().find(|(known, _)| known == id) else {
            let names = self.0.iter().map(|(known, _)| known.clone()).collect();
            return Err(ResizeError::NoDisk { asked: id.to_owned(), names });
        };
        Ok(resizer.resize(size)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_known_is_answered_with_those_that_are() {
        let text = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            ResizeError::NoDisk { asked: "vdb".to_owned(), names }.to_string()
        };
        assert_eq!(text(&[]), "there is no disk called vdb: this VM has none");
        assert_eq!(text(&["disk0", "disk1"]), "there is no disk called vdb: this VM has disk0, disk1");
    }
}
