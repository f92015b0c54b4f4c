//! Images from an archive of a root file system, as other programs make them: [`import`].
//!
//! One that has systemd, a kernel and its initial RAM disk boots with these, and gets the agent as a service. Any other gets a kernel from
//! elsewhere, and the agent is its init.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::compress::Reader;
use crate::debian::{self, Kernel};
use crate::initrd;
use crate::manifest::{Agent, Blob, Defaults, Disk, Manifest, SCHEMA, Source};
use crate::progress::Progress;
use crate::rootless::{self, Job, Layer, Only};
use crate::store::{Store, StoreError};
use crate::tree::{self, Limits, Overlay};

/// The kernel's command line but for its console.
const CMDLINE: &str = "root=/dev/vda rw rootfstype=ext4 quiet";
/// The file system's label.
const LABEL: &str = "root";

/// Finds a kernel for a guest that has none, and makes it a file of the store.
pub type FindKernel<'a> = dyn FnMut(&Store, &mut dyn Progress) -> Result<Kernel, Failure> + 'a;

/// Why there is no kernel.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An archive did not become an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refuses.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is the kernel that is missing.
    #[error("the archive has no kernel that boots it, and there is no other")]
    Kernel(#[source] Failure),
    /// It does not become a disk.
    #[error(transparent)]
    Rootless(#[from] rootless::Error),
    /// The store takes it not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether a file is a tar archive, compressed or not.
///
/// # Errors
/// If it cannot be read.
pub fn recognise(path: &Path) -> Result<bool, Error> {
    let failed = |doing| move |source| Error::Io { doing, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed("open"))?;
    if !file.metadata().map_err(failed("open"))?.is_file() {
        return Ok(false);
    }
    let reader = Reader::new(file).map_err(failed("read"))?;
    Ok(tree::is_archive(reader))
}

/// Makes the image of the archive at `path`, with `agent` in it; its files are in the store then.
///
/// # Errors
/// [`Error`].
pub fn import(
    store: &Store,
    path: &Path,
    agent: &[u8],
    kernel: &mut FindKernel<'_>,
    progress: &mut dyn Progress,
) -> Result<Manifest, Error> {
    let scratch = store.scratch()?;
    let work = scratch.path();
    let own = work.join("own.tar");
    let mut overlay = Overlay::default();
    debian::install_agent(&mut overlay, agent);
    let written = overlay.archive().and_then(|bytes| fs::write(&own, bytes));
    written.map_err(|source| Error::Io { doing: "write", path: own.clone(), source })?;
    let layer = |archive, only| Layer { archive, whiteouts: false, digest: None, only };
    let job = Job {
        work: work.to_owned(),
        layers: vec![layer(path.to_owned(), Only::Always), layer(own, Only::Boots)],
        limits: Limits::default(),
        kernel: true,
        disk: Some(rootless::Disk { label: LABEL.to_owned(), size: debian::FIRST_SIZE }),
    };
    let outcome = rootless::run(&job, progress)?;
    let size = outcome.disk.unwrap_or_default();
    let boot = match outcome.kernel.filter(|found| outcome.boots && found.initrd) {
        Some(found) => {
            let file = |name: &str| store.adopt(&work.join(name), None, &mut |_| ());
            let modules = if found.modules { Some(file("modules")?) } else { None };
            Boot { kernel: file("kernel")?, initrd: file("initrd")?, modules, agent: Agent::Service }
        }
        None => foreign(store, agent, kernel, progress)?,
    };
    progress.step("writing the disk");
    let raw = work.join(rootless::DISK);
    let disk = store.disk_from_raw(&raw, &mut |done, total| progress.advance(done, Some(total)))?;
    Ok(Manifest {
        schema: SCHEMA,
        os: outcome.os.unwrap_or_else(|| "unknown".to_owned()),
        created_ms: debian::now_ms(),
        source: Source::Rootfs,
        kernel: boot.kernel,
        initrd: Some(boot.initrd),
        modules: boot.modules,
        cmdline: CMDLINE.to_owned(),
        disk: Disk { layers: vec![disk], size, grows_to: size.max(debian::SIZE) },
        agent: boot.agent,
        defaults: Defaults::default(),
    })
}

/// What a guest boots by.
struct Boot {
    kernel: Blob,
    initrd: Blob,
    modules: Option<Blob>,
    agent: Agent,
}

/// With a kernel from elsewhere.
fn foreign(
    store: &Store,
    agent: &[u8],
    kernel: &mut FindKernel<'_>,
    progress: &mut dyn Progress,
) -> Result<Boot, Error> {
    let Kernel { image, modules } = kernel(store, progress).map_err(Error::Kernel)?;
    let path = store.blob_path(&modules.digest);
    let mut bytes = fs::read(&path).map_err(|source| Error::Io { doing: "read", path, source })?;
    bytes.extend(initrd::agent(agent));
    Ok(Boot { kernel: image, initrd: store.add_bytes(&bytes)?, modules: Some(modules), agent: Agent::Init })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_known_by_their_content() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("file");
        let mut overlay = Overlay::default();
        let archive = overlay.file("etc/hostname", 0o644, "x").archive().unwrap();
        for (bytes, is) in [
            (archive.clone(), true),
            (zstd::encode_all(&archive[..], 1).unwrap(), true),
            (vec![0; 4096], false),
            (b"QFI\xfb".to_vec(), false),
            (Vec::new(), false),
        ] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(recognise(&path).unwrap(), is);
        }
        assert!(!recognise(temporary.path()).unwrap());
        assert!(recognise(&temporary.path().join("none")).is_err());
    }
}
