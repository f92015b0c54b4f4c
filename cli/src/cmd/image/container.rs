//! Containers' images: what they need to be VMs' images, wherever they come from, and VMs' images as theirs.

use std::path::Path;

use anyhow::Result;
use images::debian;
use images::manifest::Manifest;
use images::oci::{self, Container, Failure, Format, Kernel};
use images::progress::Progress;
use images::store::{Image, Store as Images};

use super::export::Exporter;
use super::import::{Asked, Importer};
use crate::agent::PROGRAM;
use crate::terminal;

/// OCI layouts and what `docker save` writes.
pub const IMPORTER: Importer = Importer {
    name: "a container's image",
    flags: &["image"],
    recognises: |path| Ok(path.exists() && oci::recognise(path)?.is_some()),
    import,
};

/// An OCI layout: a tar of it if the file is called so, otherwise a directory.
pub const OCI: Exporter = Exporter {
    name: "oci",
    endings: &["", "oci"],
    export: |images, image, to, progress| {
        let is_tar = to.extension().is_some_and(|ending| ending == "tar");
        export(images, image, to, if is_tar { Format::LayoutTar } else { Format::Layout }, progress)
    },
};

/// What `docker load` reads.
pub const DOCKER: Exporter = Exporter {
    name: "docker",
    endings: &[],
    export: |images, image, to, progress| export(images, image, to, Format::Docker, progress),
};

/// Do `work` with a machine for containers' images whose kernel is that of the image `from`, or the default one.
pub fn with_machine<T>(from: Option<&str>, work: impl FnOnce(&mut Container<'_>) -> T) -> T {
    let mut kernel = |images: &Images, progress: &mut dyn Progress| find(images, from, progress);
    work(&mut Container { agent: PROGRAM, kernel: &mut kernel })
}

/// That of the image `from`, or the default one.
pub fn find(images: &Images, from: Option<&str>, progress: &mut dyn Progress) -> Result<Kernel, Failure> {
    let Some(from) = from else {
        return default(images, progress);
    };
    let image = images.hold(from)?;
    let none = || {
        format!(
            "{from} does not have its kernel's modules apart: take the kernel of an image that skiff image build made"
        )
    };
    Ok(Kernel::of(&image.manifest).ok_or_else(none)?)
}

/// The kernel of Debian's cloud images.
fn default(images: &Images, progress: &mut dyn Progress) -> Result<Kernel, Failure> {
    let debian::Kernel { image, modules } = debian::kernel(images, &debian::Mirror::choose(None), progress)?;
    Ok(Kernel { image, modules })
}

fn import(images: &Images, path: &Path, asked: &Asked, progress: &mut dyn Progress) -> Result<Manifest> {
    with_machine(asked.kernel_from.as_deref(), |machine| {
        Ok(oci::import(images, path, asked.image.as_deref(), machine, progress)?)
    })
}

fn export(
    images: &Images,
    image: &Image,
    to: &Path,
    format: Format,
    progress: &mut dyn Progress,
) -> Result<()> {
    let name = image.names.first();
    let left_out = oci::export(images, &image.manifest, name, to, format, progress)?;
    if left_out {
        terminal::note(&format!("skiff: {} is without a kernel: containers have none", to.display()));
    }
    Ok(())
}
