//! The static busybox that every initramfs here is built around, from Debian 12.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::Release;
use super::archive::Archive;
use crate::{lock, paths, tool};

/// Returns the program's file, fetching the package first if it is not in the cache.
///
/// # Errors
/// When the archive cannot be reached or the cache cannot be written.
pub fn ensure() -> Result<PathBuf> {
    let dir = paths::target()?.join("busybox");
    let program = dir.join("busybox");
    if program.exists() {
        return Ok(program);
    }
    paths::make_dir(&dir)?;
    let _lock = lock::hold(&dir.join("lock"))?;
    if program.exists() {
        return Ok(program);
    }
    let work = dir.join("partial");
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot empty {}", work.display()))?;
    }
    paths::make_dir(&work)?;
    let package = Archive::open(Release::Bookworm)?.download("busybox-static", &work)?;
    tool::capture(Command::new("dpkg-deb").arg("-x").arg(package).arg(work.join("tree")))?;
    fs::rename(work.join("tree/bin/busybox"), &program)
        .context("busybox-static does not hold /bin/busybox")?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(program)
}
