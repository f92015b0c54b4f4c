//! [`foresee`]: what is wrong with a VM whatever its image is, said before minutes go into the image.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use vmm::spec::VsockSpec;

use super::asked::Asked;
use super::command::Said;
use super::seed::Key;
use crate::store::Store;

/// The flags are checked with what an image adds at least; files that they name are there, and `name` is nobody else's.
///
/// # Errors
/// The first that is wrong.
pub fn foresee(asked: &Asked, said: &Said, store: &Store, name: Option<&str>, dry_run: bool) -> Result<()> {
    let mut least = asked.clone();
    least.kernel.get_or_insert_with(|| PathBuf::from("/vmlinuz"));
    least.vsock.get_or_insert_with(VsockSpec::own);
    least.resolve()?;
    said.words.check()?;
    if dry_run {
        return Ok(());
    }
    if let Some(name) = name {
        store.check_free(name)?;
    }
    for (flag, path) in files(asked) {
        std::fs::metadata(path).with_context(|| format!("--{flag}: cannot open {}", path.display()))?;
    }
    Ok(())
}

/// The files that are named, each with its flag.
fn files(asked: &Asked) -> impl Iterator<Item = (&'static str, &Path)> {
    let one = [
        ("kernel", &asked.kernel),
        ("initrd", &asked.initrd),
        ("user-data", &asked.user_data),
        ("meta-data", &asked.meta_data),
        ("network-config", &asked.network_config),
    ];
    let keys = asked.ssh_key.iter().filter_map(|key| match key {
        Key::File(path) => Some(("ssh-key", path.as_path())),
        Key::Text(_) => None,
    });
    let disks = asked.disk.iter().map(|disk| ("disk", disk.path.as_path()));
    one.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?))).chain(keys).chain(disks)
}
