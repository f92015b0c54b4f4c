//! Archives of root file systems as images.

use std::path::Path;

use anyhow::Result;
use images::debian::Kernel;
use images::manifest::Manifest;
use images::progress::Progress;
use images::rootfs;
use images::store::Store as Images;

use super::container;
use super::import::{Asked, Importer};

/// Any tar that is nothing else, compressed or not.
pub const IMPORTER: Importer =
    Importer { recognises: |path| Ok(path.is_file() && rootfs::recognise(path)?), import };

fn import(images: &Images, path: &Path, asked: &Asked, progress: &mut dyn Progress) -> Result<Manifest> {
    let from = asked.kernel_from.as_deref();
    let mut kernel = |images: &Images, progress: &mut dyn Progress| -> Result<Kernel, rootfs::Failure> {
        let found = container::find(images, from, progress)?;
        Ok(Kernel { image: found.image, modules: found.modules })
    };
    Ok(rootfs::import(images, path, crate::agent::PROGRAM, &mut kernel, progress)?)
}
