//! [`Container`]: a VM's disk of a container's layers, with a kernel from elsewhere and the agent as its init.

use std::fs;

use super::{Layer, Machine, Made};
use crate::debian::{FIRST_SIZE, SIZE};
use crate::initrd;
use crate::manifest::{Blob, Disk, Manifest};
use crate::progress::Progress;
use crate::rootless::{self, Job, Only};
use crate::store::Store;
use crate::tree::Limits;

/// What can go wrong on the way.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// For the kernel: the agent finds the disk by it.
const CMDLINE: &str = "root=/dev/vda rw rootfstype=ext4 quiet";
/// The disk's label.
const LABEL: &str = "root";

/// A kernel for guests that have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel.
    pub image: Blob,
    /// See [`Manifest::modules`].
    pub modules: Blob,
}

impl Kernel {
    /// That of another image; none if its modules are not there on their own.
    #[must_use]
    pub fn of(image: &Manifest) -> Option<Self> {
        image.modules.map(|modules| Self { image: image.kernel, modules })
    }

    /// The initial RAM disk for it in which `agent` is the init.
    fn initrd(&self, store: &Store, agent: &[u8]) -> Result<Blob, Failure> {
        let mut bytes = fs::read(store.blob_path(&self.modules.digest))?;
        bytes.extend(initrd::agent(agent));
        Ok(store.add_bytes(&bytes)?)
    }
}

/// Finds a kernel, and makes it one of the store's files.
pub type FindKernel<'a> = dyn FnMut(&Store, &mut dyn Progress) -> Result<Kernel, Failure> + 'a;

/// The machine that runs containers' images.
pub struct Container<'a> {
    /// The agent's program.
    pub agent: &'a [u8],
    /// Asked once the layers are there.
    pub kernel: &'a mut FindKernel<'a>,
}

impl Machine for Container<'_> {
    fn make(
        &mut self,
        store: &Store,
        layers: &[Layer],
        progress: &mut dyn Progress,
    ) -> Result<Made, Failure> {
        let kernel = (self.kernel)(store, progress)?;
        let scratch = store.scratch()?;
        let layer = |layer: &Layer| rootless::Layer {
            archive: layer.path.clone(),
            whiteouts: true,
            digest: Some(layer.diff_id),
            only: Only::Always,
        };
        let job = Job {
            work: scratch.path().to_owned(),
            layers: layers.iter().map(layer).collect(),
            limits: Limits::default(),
            kernel: false,
            disk: Some(rootless::Disk { label: LABEL.to_owned(), size: FIRST_SIZE }),
        };
        let outcome = rootless::run(&job, progress)?;
        let size = outcome.disk.ok_or("the file system was not made")?;
        progress.step("writing the disk");
        let raw = scratch.path().join(rootless::DISK);
        let disk = store.disk_from_raw(&raw, &mut |done, total| progress.advance(done, Some(total)))?;
        Ok(Made {
            os: outcome.os,
            kernel: kernel.image,
            initrd: kernel.initrd(store, self.agent)?,
            modules: Some(kernel.modules),
            cmdline: CMDLINE.to_owned(),
            disk: Disk { layers: vec![disk], size, grows_to: size.max(SIZE) },
        })
    }
}
