//! What Linux test guests boot: stock kernels and, beside each, an initramfs of busybox, the drivers for
//! skiff's devices and `tests/linux/guest/init.sh`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::debian::Release;
use crate::debian::busybox;
use crate::debian::kernel::{Flavour, GUEST_MODULES, Kernel};
use crate::initramfs::{Archive, key};
use crate::paths;

const INIT: &str = include_str!("../../linux/guest/init.sh");
/// Goes up when the layout below changes.
const LAYOUT: &str = "1";

/// A kernel with its initramfs.
pub struct Guest {
    pub kernel: Kernel,
    pub initramfs: PathBuf,
}

impl Guest {
    /// Returns one guest's files from the cache, making them first if need be.
    ///
    /// # Errors
    /// When the archive cannot be reached or the target directory cannot be written.
    pub fn ensure(release: Release, flavour: Flavour) -> Result<Guest> {
        let kernel = Kernel::ensure(release, flavour)?;
        let initramfs = kernel.dir().join("initramfs");
        let version = kernel.version()?;
        let modules = GUEST_MODULES.join(" ");
        let key = key(&[LAYOUT.as_bytes(), INIT.as_bytes(), version.as_bytes(), modules.as_bytes()]);
        let stamp = kernel.dir().join("initramfs.key");
        if !initramfs.exists() || !fs::read_to_string(&stamp).is_ok_and(|old| old == key) {
            paths::write_whole(&initramfs, &build(&kernel)?)?;
            paths::write_whole(&stamp, key.as_bytes())?;
        }
        Ok(Guest { kernel, initramfs })
    }

    /// All kernels that whole-machine tests run on, oldest release first.
    ///
    /// # Errors
    /// As [`Guest::ensure`].
    pub fn ensure_all() -> Result<Vec<Guest>> {
        let pairs =
            Release::ALL.iter().flat_map(|release| Flavour::ALL.iter().map(|flavour| (*release, *flavour)));
        pairs.map(|(release, flavour)| Guest::ensure(release, flavour)).collect()
    }
}

/// Fetches every kernel and prints a table of them.
///
/// # Errors
/// As [`Guest::ensure`].
pub fn list() -> Result<()> {
    println!("{:<12} {:<6} {:>8}  package", "kernel", "packed", "MiB");
    for guest in Guest::ensure_all()? {
        let image = guest.kernel.image();
        let size = image.metadata().with_context(|| format!("cannot look at {}", image.display()))?.len();
        let name = guest.kernel.dir().file_name().unwrap_or_default().display().to_string();
        let (packed, version) = (guest.kernel.compression()?, guest.kernel.version()?);
        println!("{name:<12} {packed:<6} {:>8.1}  {version}", size as f64 / f64::from(1 << 20));
    }
    Ok(())
}

fn build(kernel: &Kernel) -> Result<Vec<u8>> {
    let busybox = busybox::ensure()?;
    let busybox = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "modules", "proc", "sys"] {
        archive.dir(dir);
    }
    archive.file("bin/busybox", 0o755, &busybox);
    archive.link("bin/sh", "busybox");
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    let mut done = BTreeSet::new();
    for wanted in GUEST_MODULES {
        let order = kernel.modules(&[wanted])?;
        if order.is_empty() {
            continue;
        }
        let names: Vec<&str> = order.iter().map(|(name, _)| name.as_str()).collect();
        archive.file(&format!("modules/{wanted}.order"), 0o644, (names.join("\n") + "\n").as_bytes());
        for (name, bytes) in &order {
            if done.insert(name.clone()) {
                archive.file(&format!("modules/{name}.ko"), 0o644, bytes);
            }
        }
    }
    archive.file("init", 0o755, INIT.as_bytes());
    Ok(archive.finish())
}
