//! Archives of root file systems as images, and images as such archives.

use std::path::Path;

use anyhow::{Context, Result};
use images::debian::Kernel;
use images::disk;
use images::manifest::Manifest;
use images::progress::Progress;
use images::rootfs;
use images::store::Store as Images;

use super::container;
use super::export::Exporter;
use super::import::{Asked, Importer};
use crate::terminal;

/// Any tar that is nothing else, compressed or not.
pub const IMPORTER: Importer = Importer {
    name: "an archive of a root file system, which needs the agent",
    flags: &[],
    recognises: |path| Ok(path.is_file() && rootfs::recognise(path)?),
    import,
};

/// The files of an image's root file system.
pub const TAR: Exporter = Exporter {
    name: "tar",
    endings: &["tar"],
    export: |images, image, to, progress| {
        let top = image.manifest.disk.layers.first().context("the image has no disk")?;
        let top = images.blob_path(&top.digest);
        let packed = disk::export_files(&top, &image.manifest.cmdline, to, progress)?;
        if packed.skipped > 0 {
            let count = packed.skipped;
            terminal::note(&format!("skiff: {count} device nodes and sockets were left out"));
        }
        Ok(())
    },
};

fn import(images: &Images, path: &Path, asked: &Asked, progress: &mut dyn Progress) -> Result<Manifest> {
    let from = asked.kernel_from.as_deref();
    let mut kernel = |images: &Images, progress: &mut dyn Progress| -> Result<Kernel, rootfs::Failure> {
        let found = container::find(images, from, progress)?;
        Ok(Kernel { image: found.image, modules: found.modules })
    };
    Ok(rootfs::import(images, path, crate::agent::PROGRAM, &mut kernel, progress)?)
}
