//! Hashes of bytes.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The SHA-256 of the first `length` bytes of a file, by coreutils.
///
/// # Errors
/// When it cannot be read.
pub fn hash(file: &Path, length: usize) -> Result<String> {
    let part = file.with_extension("part");
    let mut bytes = Vec::new();
    let source = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    source
        .take(length as u64)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", file.display()))?;
    fs::write(&part, bytes).with_context(|| format!("cannot write {}", part.display()))?;
    let output = Command::new("sha256sum").arg(&part).output().context("cannot run sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().next() {
        Some(hash) if output.status.success() => Ok(hash.to_string()),
        _ => bail!("sha256sum failed: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// The SHA-256 of bytes; a file in `dir` holds them meanwhile.
///
/// # Errors
/// When it cannot be written.
pub fn hash_of(dir: &Path, bytes: &[u8]) -> Result<String> {
    let file = dir.join("hashed");
    fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
    hash(&file, bytes.len())
}
