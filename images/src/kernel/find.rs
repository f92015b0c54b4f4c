//! [`take`]: the kernel of a root file system.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::path::Path;

use super::{Error, modules};
use crate::{initrd, tree};

/// The largest kernel or initial RAM disk, in bytes.
const LARGEST: u64 = 1 << 30;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Found {
    /// Such as `6.1.0-56-cloud-amd64`.
    pub version: String,
    /// Whether it has an initial RAM disk.
    pub initrd: bool,
    /// Whether it has modules.
    pub modules: bool,
}

/// Copies the newest kernel of the tree `root` to the new file `kernel` in the directory `into`, its initial RAM disk to `initrd`, and
/// what the agent needs of its modules to `modules` ([`initrd::modules`]).
///
/// # Errors
/// [`Error`]; that there is none is `None`.
pub fn take(root: impl AsFd, into: &Path) -> Result<Option<Found>, Error> {
    let root = root.as_fd();
    let Some((path, version)) = newest(root) else { return Ok(None) };
    copy(root, &path, &into.join("kernel"))?;
    let ram_disk = ram_disk(root, &version);
    if let Some(path) = &ram_disk {
        copy(root, path, &into.join("initrd"))?;
    }
    let dirs = [format!("usr/lib/modules/{version}"), format!("lib/modules/{version}")];
    let dir = dirs.iter().find(|dir| tree::list(root, dir).is_ok());
    if let Some(dir) = dir {
        let archive = initrd::modules(&modules::load_order(root, dir)?);
        let path = into.join("modules");
        std::fs::write(&path, archive).map_err(|source| Error::Write { path, source })?;
    }
    Ok(Some(Found { version, initrd: ram_disk.is_some(), modules: dir.is_some() }))
}

/// Whether the newest kernel of the tree `root` has an initial RAM disk: then it gets to the root file system's init by itself.
#[must_use]
pub fn boots(root: impl AsFd) -> bool {
    newest(root.as_fd()).is_some_and(|(_, version)| ram_disk(root.as_fd(), &version).is_some())
}

/// The path of a kernel's initial RAM disk.
fn ram_disk(root: impl AsFd, version: &str) -> Option<String> {
    let names =
        [format!("initrd.img-{version}"), format!("initramfs-{version}.img"), format!("initrd-{version}")];
    names.into_iter().map(|name| format!("boot/{name}")).find(|path| tree::open(root.as_fd(), path).is_ok())
}

/// Its path and version.
fn newest(root: impl AsFd) -> Option<(String, String)> {
    let mut found = Vec::new();
    for name in tree::list(root.as_fd(), "boot").unwrap_or_default() {
        if let Some(version) = name.strip_prefix("vmlinuz-")
            && !version.contains("rescue")
        {
            found.push((format!("boot/{name}"), version.to_owned()));
        }
    }
    for version in tree::list(root.as_fd(), "usr/lib/modules").unwrap_or_default() {
        found.push((format!("usr/lib/modules/{version}/vmlinuz"), version));
    }
    found.retain(|(path, _)| tree::open(root.as_fd(), path).is_ok());
    found.sort_by_cached_key(|(_, version)| numbers(version));
    found.pop()
}

/// What versions are compared by: their numbers.
fn numbers(version: &str) -> Vec<u64> {
    let parts = version.split(|letter: char| !letter.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

fn copy(root: impl AsFd, path: &str, to: &Path) -> Result<(), Error> {
    let source = |source| Error::Read { path: path.to_owned(), source };
    let from = tree::open(root, path).map_err(source)?;
    let length = from.metadata().map_err(source)?.len();
    if length > LARGEST {
        return Err(source(io::ErrorKind::FileTooLarge.into()));
    }
    let failed = |source| Error::Write { path: to.to_owned(), source };
    let mut file = File::create_new(to).map_err(failed)?;
    io::copy(&mut from.take(LARGEST), &mut file).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_newest_kernel_is_taken_with_what_belongs_to_it() {
        let (temporary, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = File::open(temporary.path()).unwrap();
        assert_eq!(take(&root, into.path()).unwrap(), None);
        fs::create_dir_all(temporary.path().join("boot")).unwrap();
        for name in [
            "vmlinuz-6.1.0-9-amd64",
            "vmlinuz-6.1.0-10-amd64",
            "initrd.img-6.1.0-10-amd64",
            "vmlinuz-0-rescue-7",
        ] {
            fs::write(temporary.path().join("boot").join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", temporary.path().join("boot/vmlinuz-99")).unwrap();
        let found = take(&root, into.path()).unwrap().unwrap();
        assert_eq!(found, Found { version: "6.1.0-10-amd64".to_owned(), initrd: true, modules: false });
        assert_eq!(fs::read(into.path().join("kernel")).unwrap(), b"vmlinuz-6.1.0-10-amd64");
        assert_eq!(fs::read(into.path().join("initrd")).unwrap(), b"initrd.img-6.1.0-10-amd64");
    }
}
