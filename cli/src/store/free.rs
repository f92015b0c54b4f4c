//! What nobody needs of images and snapshots, freed. Each may be all that needs something of the other: a snapshot the image that its VM
//! started from, a warm image the snapshot that it starts from.

use anyhow::Result;
use images::store::Pruned;
use vmm::snapshot::store::{Progress, Swept};

use super::Store;

/// What went.
#[derive(Debug)]
pub struct Freed {
    /// Of the snapshots and layers.
    pub swept: Swept,
    /// Of the images. None of them goes as long as something cannot be read that might need it.
    pub images: Result<Pruned>,
}

impl Freed {
    /// All that the host's file systems have back, in bytes.
    pub fn bytes(&self) -> u64 {
        let images = self.images.as_ref().map_or(0, |pruned| pruned.bytes);
        self.swept.bytes.saturating_add(images)
    }
}

impl Store {
    /// Free what nobody needs, with `downloads` what has come of unfinished ones, too. If another process sweeps, wait for it first.
    pub fn free(&self, downloads: bool, progress: Progress<'_>) -> Result<Freed> {
        self.forget_stale_bases()?;
        let prune = || self.images().prune(downloads, || self.image_needs());
        // A warm image that goes leaves its snapshot to the sweep, and a snapshot that goes its image to the second time.
        let before = prune();
        let swept = self.snapshots().sweep(&|| self.users(), progress)?;
        let images = prune().map(|after| join(before.unwrap_or_default(), after));
        Ok(Freed { swept, images })
    }
}

fn join(mut before: Pruned, after: Pruned) -> Pruned {
    before.images.extend(after.images);
    before.blobs.extend(after.blobs);
    before.bytes = before.bytes.saturating_add(after.bytes);
    before
}
