//! Where things are: the checkout and the target directory that holds everything made from it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of this checkout.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Cargo's target directory. This program lies in it as `<target>/<profile>/xtask`, which holds
/// whatever moved the directory: an option, a variable or a configuration file.
pub fn target() -> Result<PathBuf> {
    let exe = own_program()?;
    let dir = exe
        .ancestors()
        .nth(2)
        .context("this program is not in a target directory; run it as `cargo xtask`")?;
    Ok(dir.to_path_buf())
}

/// The file of this program.
pub fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot tell where this program is; is /proc mounted?")
}

/// Makes `dir` and its parents.
///
/// # Errors
/// Names the directory when it cannot be made.
pub fn make_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))
}

/// Writes `bytes` to `path` so that a reader sees the old file or the whole new one.
///
/// # Errors
/// Names the file when it cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    std::fs::write(&partial, bytes)
        .and_then(|()| std::fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
