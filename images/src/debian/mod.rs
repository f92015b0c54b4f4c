//! Images of Debian, from its archive: a [`Recipe`] becomes an archive of a root file system by mmdebstrap, that becomes a disk by
//! [`crate::rootless`], with the kernel and initial RAM disk of its own beside it. [`build`] does it all.

mod bootstrap;
mod follow;
mod kernel;
mod mirror;
mod newest;
mod place;
mod recipe;

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

pub use bootstrap::KEYRING;
pub use kernel::{Kernel, kernel};
pub use mirror::Mirror;
pub use recipe::{Recipe, all};

use bootstrap::{Variant, bootstrap};

use crate::manifest::{Agent, Defaults, Disk, Manifest, SCHEMA, Source};
use crate::name::Name;
use crate::progress::Progress;
use crate::rootless::{self, Job, Layer, Only};
use crate::store::{Store, StoreError};
use crate::tree::{Limits, Overlay};

/// What a VM's disk has at first unless it is said, in bytes. It is sparse, and the agent grows the file system to it.
pub const SIZE: u64 = 20 << 30;
/// What the file system of an image has at least, in bytes: larger ones take longer to write, and nothing else.
pub const FIRST_SIZE: u64 = 1 << 30;

/// How an image is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where packages are from.
    pub mirror: Mirror,
    /// Bytes that the disk of a VM of it has at least.
    pub size: u64,
}

/// An image was not built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is missing.
    #[error("{program} does not start: install the package {program}")]
    Program {
        /// Its name, and that of its package.
        program: &'static str,
        /// Why it does not start.
        #[source]
        source: io::Error,
    },
    /// The program failed.
    #[error("{program} has failed ({hint}): {said}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// The end of what it said.
        said: String,
        /// What to do.
        hint: String,
    },
    /// The archive has no such package.
    #[error("{archive} has no package like {like}: --mirror names another archive")]
    NoPackage {
        /// With a star for a number.
        like: String,
        /// Where it was looked for.
        archive: String,
    },
    /// The host refuses.
    #[error("cannot {doing}")]
    Io {
        /// What was tried, with its object.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What was built has no kernel.
    #[error("the packages of {os} bring no kernel with an initial RAM disk")]
    NoKernel {
        /// What was built.
        os: String,
    },
    /// The default kernel's packages cannot be unpacked.
    #[error("the kernel's packages cannot be unpacked")]
    Kernel(#[source] crate::tree::Error),
    /// It does not become a disk.
    #[error(transparent)]
    Rootless(#[from] rootless::Error),
    /// The store takes it not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Builds the image of a recipe, with `agent` as a service of it; its files are in the store then.
///
/// # Errors
/// [`Error`].
pub fn build(
    store: &Store,
    name: &Name,
    recipe: &Recipe,
    agent: &[u8],
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Manifest, Error> {
    let scratch = store.scratch()?;
    let work = scratch.path();
    let archive = work.join("root.tar");
    bootstrap(recipe, Variant::System, &options.mirror, work, &archive, progress)?;
    let own = work.join("own.tar");
    let bytes = overlay(recipe, agent).archive();
    bytes.and_then(|bytes| std::fs::write(&own, bytes)).map_err(failed("write skiff's own files"))?;
    let layer = |archive, whiteouts| Layer { archive, whiteouts, digest: None, only: Only::Always };
    let job = Job {
        work: work.to_owned(),
        layers: vec![layer(archive, false), layer(own, true)],
        limits: Limits::default(),
        kernel: true,
        disk: Some(rootless::Disk { label: recipe.label.clone(), size: FIRST_SIZE }),
    };
    let outcome = rootless::run(&job, progress)?;
    let no_kernel = || Error::NoKernel { os: recipe.os.clone() };
    let found = outcome.kernel.filter(|found| found.initrd).ok_or_else(no_kernel)?;
    let size = outcome.disk.unwrap_or_default();
    progress.step("writing the disk");
    let disk = store
        .disk_from_raw(&work.join(rootless::DISK), &mut |done, total| progress.advance(done, Some(total)))?;
    let file = |name: &str| store.adopt(&work.join(name), None, &mut |_| ());
    Ok(Manifest {
        schema: SCHEMA,
        os: outcome.os.unwrap_or_else(|| recipe.os.clone()),
        created_ms: now_ms(),
        source: Source::Distribution { name: name.to_string() },
        kernel: file("kernel")?,
        initrd: Some(file("initrd")?),
        modules: if found.modules { Some(file("modules")?) } else { None },
        cmdline: recipe.cmdline.clone(),
        disk: Disk { layers: vec![disk], size, grows_to: size.max(options.size) },
        agent: Agent::Service,
        defaults: Defaults::default(),
    })
}

/// What is not from packages.
fn overlay(recipe: &Recipe, program: &[u8]) -> Overlay {
    let mut overlay = Overlay::default();
    for path in &recipe.removed.paths {
        overlay.remove(path);
    }
    for (path, content) in &recipe.files {
        overlay.file(path, 0o644, content.as_str());
    }
    for (path, target) in &recipe.links {
        overlay.link(path, target);
    }
    // The mirror that it was built from may be of this network alone.
    let public = Mirror::public();
    let sources = recipe.sources.iter().map(|source| bootstrap::line(source, recipe, &public) + "\n");
    overlay.file("etc/apt/sources.list", 0o644, sources.collect::<String>());
    install_agent(&mut overlay, program);
    overlay
}

/// The agent as a service of systemd.
pub(crate) fn install_agent(overlay: &mut Overlay, program: &[u8]) {
    use agent::install::{Kind, SYSTEMD};
    for item in SYSTEMD {
        match item.kind {
            // Parents are made.
            Kind::Dir => {}
            Kind::Program => drop(overlay.file(item.path, 0o755, program)),
            Kind::Text(text) => drop(overlay.file(item.path, 0o644, text)),
            Kind::Link(target) => drop(overlay.link(item.path, target)),
        }
    }
}

fn failed(doing: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let doing = doing.to_owned();
    move |source| Error::Io { doing, source }
}

pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or_default()
}
