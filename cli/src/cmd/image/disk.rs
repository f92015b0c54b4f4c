//! Disks of other programs as images, and images as such disks.

use std::path::Path;

use anyhow::{Context, Result};
use images::disk::{self, Format, Options};
use images::manifest::Manifest;
use images::progress::Progress;
use images::store::{Image, Store as Images};

use super::export::Exporter;
use super::import::{Asked, Importer};
use crate::terminal;

/// raw, qcow2, vmdk and vhdx.
pub const IMPORTER: Importer = Importer { name: "a disk", flags: &["no-agent"], recognises, import };

/// By `--format` and the file's ending.
pub const QCOW2: Exporter = Exporter {
    name: "qcow2",
    endings: &["qcow2"],
    export: |images, image, to, progress| export(images, image, to, Format::Qcow2, progress),
};
/// By `--format` and the file's ending.
pub const RAW: Exporter = Exporter {
    name: "raw",
    endings: &["raw", "img"],
    export: |images, image, to, progress| export(images, image, to, Format::Raw, progress),
};
/// By `--format` and the file's ending.
pub const VMDK: Exporter = Exporter {
    name: "vmdk",
    endings: &["vmdk"],
    export: |images, image, to, progress| export(images, image, to, Format::Vmdk, progress),
};
/// By `--format` and the file's ending.
pub const VHDX: Exporter = Exporter {
    name: "vhdx",
    endings: &["vhdx"],
    export: |images, image, to, progress| export(images, image, to, Format::Vhdx, progress),
};

fn recognises(path: &Path) -> Result<bool> {
    Ok(!path.is_dir() && disk::recognise(path)?.is_some())
}

fn import(images: &Images, path: &Path, asked: &Asked, progress: &mut dyn Progress) -> Result<Manifest> {
    let kernel_from = asked.kernel_from.as_deref().map(|image| images.hold(image)).transpose()?;
    let options = Options {
        agent: (!asked.no_agent).then_some(crate::agent::PROGRAM),
        kernel_from: kernel_from.as_ref().map(|image| &image.manifest),
    };
    let (manifest, notes) = disk::import(images, path, &options, progress)?;
    for note in notes {
        terminal::note(&format!("skiff: {note}"));
    }
    Ok(manifest)
}

fn export(
    images: &Images,
    image: &Image,
    to: &Path,
    format: Format,
    progress: &mut dyn Progress,
) -> Result<()> {
    let top = image.manifest.disk.layers.first().context("the image has no disk")?;
    Ok(disk::export(&images.blob_path(&top.digest), to, format, progress)?)
}
