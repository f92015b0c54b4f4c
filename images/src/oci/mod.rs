//! Containers' images: OCI layouts and docker archives, in and out.
//!
//! ```text
//! layout, archive ─import─┐
//! registry ──────pull─────┴─► Content: manifest, configuration, layers as they are, blobs of the store
//!                                │ a Machine: layers ► tree ► ext4 ► qcow2, with a kernel and the agent as init
//!                                └─► manifest::Manifest
//! ```
//! The content stays, so that an image goes out as it came in, to the byte. Everything is hostile until its digest is checked. Runs on the
//! caller's thread.

mod archive;
mod defaults;
mod error;
mod export;
mod import;
mod machine;
pub mod spec;

use std::path::PathBuf;

pub use defaults::{defaults, execution};
pub use error::Error;
pub use export::{Format, export};
pub use import::{Kind, import, recognise};
pub use machine::{Container, Failure, FindKernel, Kernel};

use crate::digest::Digest;
use crate::manifest::{Agent, Blob, Disk, Manifest, SCHEMA, Source};
use crate::os_release;
use crate::progress::Progress;
use crate::store::Store;

/// The label that says what an image is, for people (image-spec, annotations.md).
const TITLE: &str = "org.opencontainers.image.title";

/// A layer in the store: a tar, perhaps compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// What it is when it is not compressed: to be checked by who unpacks it.
    pub diff_id: Digest,
}

/// What a VM needs to run a container's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// What the tree says that it is, if it does (`PRETTY_NAME` of os-release).
    pub os: Option<String>,
    /// The kernel.
    pub kernel: Blob,
    /// The initial RAM disk, with the agent as `/init`.
    pub initrd: Blob,
    /// See [`Manifest::modules`].
    pub modules: Option<Blob>,
    /// For the kernel, but for its console.
    pub cmdline: String,
    /// The layers' tree on a disk.
    pub disk: Disk,
}

/// Makes what a VM needs of layers, the lowest first. Each layer's [`Layer::diff_id`] is checked on the way.
pub trait Machine {
    /// Do so; all files are blobs of `store` then.
    ///
    /// # Errors
    /// If a layer is damaged or hostile, or the host fails.
    fn make(&mut self, store: &Store, layers: &[Layer], progress: &mut dyn Progress)
    -> Result<Made, Failure>;
}

/// A container's image whose every file is in the store.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    /// Its manifest, as it came.
    pub manifest: Blob,
    /// Its configuration, as it came.
    pub config_blob: Blob,
    /// What that says.
    pub config: spec::Config,
    /// Its layers as they came, the lowest first.
    pub layers: Vec<Blob>,
    /// Where it was, as far as is known.
    pub reference: Option<String>,
}

/// Make an image of the store's of a container's image.
pub(crate) fn assemble(
    store: &Store,
    content: &Content,
    machine: &mut dyn Machine,
    progress: &mut dyn Progress,
) -> Result<Manifest, Error> {
    let defaults = defaults(&content.config.config)?;
    let diff_ids = &content.config.rootfs.diff_ids;
    let layers: Vec<Layer> = content
        .layers
        .iter()
        .zip(diff_ids)
        .map(|(blob, diff_id)| Layer { path: store.blob_path(&blob.digest), diff_id: *diff_id })
        .collect();
    let made = machine.make(store, &layers, progress).map_err(Error::Machine)?;
    // An image without an os-release has a single program, as a rule: then what it is called says what it is.
    let title = || os_release::clean(content.config.config.labels.get(TITLE)?);
    let mut files = vec![content.manifest, content.config_blob];
    files.extend(&content.layers);
    Ok(Manifest {
        schema: SCHEMA,
        os: made.os.or_else(title).unwrap_or_else(|| "container image".to_owned()),
        created_ms: now_ms(),
        source: Source::Oci {
            reference: content.reference.clone(),
            digest: content.manifest.digest,
            content: files,
        },
        kernel: made.kernel,
        initrd: Some(made.initrd),
        modules: made.modules,
        cmdline: made.cmdline,
        disk: made.disk,
        agent: Agent::Init,
        defaults,
    })
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Whether a layer of this type is a tar that skiff can unpack.
pub(crate) fn is_layer(media_type: &str) -> bool {
    let plain =
        media_type.strip_suffix("+gzip").or_else(|| media_type.strip_suffix("+zstd")).unwrap_or(media_type);
    matches!(
        plain,
        spec::OCI_LAYER
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}
