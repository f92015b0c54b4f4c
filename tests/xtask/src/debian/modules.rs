//! Kernel modules: which files a set of drivers needs, and in which order they load.
//!
//! Dependencies are read from the modules' own `.modinfo` records, so no depmod is needed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tool;

/// The modules of one kernel, by name.
pub struct Tree {
    /// Module name, with underscores, to its file, which may be compressed.
    files: BTreeMap<String, PathBuf>,
}

impl Tree {
    /// Lists the modules below `dir`.
    ///
    /// # Errors
    /// Names the directory that cannot be read.
    pub fn scan(dir: &Path) -> Result<Tree> {
        let mut files = BTreeMap::new();
        let mut rest = vec![dir.to_path_buf()];
        while let Some(dir) = rest.pop() {
            let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
            for entry in entries {
                let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
                if path.is_dir() {
                    rest.push(path);
                } else if let Some(name) = module_name(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Tree { files })
    }

    /// The modules that `wanted` come to, each after what it needs, with their uncompressed contents.
    /// What the kernel has built in or does not have at all is left out.
    ///
    /// # Errors
    /// When a module cannot be read, or needs one that is not there.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut order = Vec::new();
        for name in wanted {
            if self.files.contains_key(*name) {
                self.append(name, &mut order)?;
            }
        }
        Ok(order)
    }

    fn append(&self, name: &str, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if order.iter().any(|(done, _)| done == name) {
            return Ok(());
        }
        let Some(file) = self.files.get(name) else {
            bail!("the module {name}, which another one needs, is missing");
        };
        let bytes = uncompressed(file)?;
        for needed in depends(&bytes) {
            self.append(&needed, order)?;
        }
        order.push((name.to_string(), bytes));
        Ok(())
    }
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` → `virtio_rng`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, _) = file.split_once(".ko")?;
    Some(stem.replace('-', "_"))
}

fn uncompressed(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|end| end.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(file).with_context(|| format!("cannot read {}", file.display())),
    };
    let mut command = Command::new(program);
    let output = command.arg("-dc").arg(file).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{}", tool::failure(&command, &output));
    }
    Ok(output.stdout)
}

/// The `depends=` record of a module: names divided by commas, ended by a NUL.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        assert_eq!(module_name(Path::new("a/virtio-rng.ko.xz")).as_deref(), Some("virtio_rng"));
        assert_eq!(module_name(Path::new("a/9p.ko")).as_deref(), Some("9p"));
        assert_eq!(module_name(Path::new("a/modules.dep")), None);
    }

    #[test]
    fn dependencies_are_read_from_the_module_itself() {
        assert_eq!(
            depends(b"ELF\0license=GPL\0depends=virtio,virtio-ring\0name=x\0"),
            ["virtio", "virtio_ring"]
        );
        assert!(depends(b"ELF\0depends=\0").is_empty());
    }
}
