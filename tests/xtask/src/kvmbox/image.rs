//! What a box boots: Debian 12's generic kernel and an initramfs of busybox, the drivers and `init.sh`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::debian::Release;
use crate::debian::busybox;
use crate::debian::kernel::{BOX_MODULES, Flavour, Kernel};
use crate::initramfs::{Archive, key};
use crate::paths;

const INIT: &str = include_str!("init.sh");
/// Goes up when the layout below changes.
const LAYOUT: &str = "1";

/// The two files for QEMU.
pub struct Image {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
}

/// Returns the cached files, making them first if need be.
///
/// # Errors
/// When the archive cannot be reached or the target directory cannot be written.
pub fn ensure() -> Result<Image> {
    let kernel = Kernel::ensure(Release::Bookworm, Flavour::Generic)?;
    let version = kernel.version()?;
    let modules = BOX_MODULES.join(" ");
    let dir = paths::target()?.join("kvmbox");
    let parts = [LAYOUT.as_bytes(), INIT.as_bytes(), version.as_bytes(), modules.as_bytes()];
    let initramfs = dir.join(format!("initramfs-{}", key(&parts)));
    if !initramfs.exists() {
        paths::make_dir(&dir)?;
        paths::write_whole(&initramfs, &build(&kernel)?)?;
    }
    // An emulated processor takes seconds to unpack its own kernel.
    Ok(Image { kernel: kernel.unpacked()?, initramfs })
}

fn build(kernel: &Kernel) -> Result<Vec<u8>> {
    let busybox = busybox::ensure()?;
    let busybox = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut archive = Archive::default();
    archive.dir("bin");
    archive.file("bin/busybox", 0o755, &busybox);
    archive.dir("dev");
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    archive.dir("modules");
    let mut order = String::new();
    for (name, bytes) in kernel.modules(BOX_MODULES)? {
        archive.file(&format!("modules/{name}.ko"), 0o644, &bytes);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    archive.file("init", 0o755, INIT.as_bytes());
    Ok(archive.finish())
}
