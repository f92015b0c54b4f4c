//! A kernel's modules: which files the agent's drivers are, with what they need, and in which order they load.
//!
//! Dependencies are read from the modules' own `.modinfo` records, so that no program of the guest's is needed.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::AsFd;

use super::Error;
use crate::compress::Reader;
use crate::tree;

/// What a guest whose init is the agent needs, in this order. A kernel may lack some, or have them built in.
pub const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
    // ext4 asks for it by name.
    "crc32c_generic",
    "crc32c_intel",
    "ext4",
    "overlay",
    "fuse",
    "virtiofs",
    "9p",
    "9pnet_virtio",
    "af_packet",
    "button",
    "evdev",
    "loop",
    "squashfs",
    "br_netfilter",
    "veth",
    "tun",
];
/// How deep modules' directories go.
const DEPTH: usize = 12;
/// How many files a kernel's modules may be.
const FILES: usize = 50_000;
/// The largest module, uncompressed, in bytes.
const MODULE: u64 = 32 << 20;
/// The most that modules may come to, in bytes.
const ALL: usize = 128 << 20;

/// The modules that [`WANTED`] comes to, each after what it needs, uncompressed. `dir` is the directory of the kernel's version below
/// `root`.
pub fn load_order(root: impl AsFd, dir: &str) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let files = scan(root.as_fd(), dir);
    let mut order = Order { root: root.as_fd(), files: &files, done: Vec::new(), open: Vec::new(), bytes: 0 };
    for name in WANTED {
        if files.contains_key(*name) {
            order.add(name)?;
        }
    }
    Ok(order.done)
}

struct Order<'a> {
    root: std::os::fd::BorrowedFd<'a>,
    files: &'a BTreeMap<String, String>,
    done: Vec<(String, Vec<u8>)>,
    /// Those that wait for what they need.
    open: Vec<String>,
    bytes: usize,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<(), Error> {
        if self.done.iter().any(|(done, _)| done == name) || self.open.iter().any(|open| open == name) {
            return Ok(());
        }
        // What another one needs may be built in.
        let Some(path) = self.files.get(name) else { return Ok(()) };
        let content = read(self.root, path)?;
        self.bytes = self.bytes.saturating_add(content.len());
        if self.bytes > ALL || self.open.len() > DEPTH {
            return Err(Error::Module {
                path: path.clone(),
                source: std::io::ErrorKind::FileTooLarge.into(),
            });
        }
        self.open.push(name.to_owned());
        for needed in depends(&content) {
            self.add(&needed)?;
        }
        self.open.pop();
        self.done.push((name.to_owned(), content));
        Ok(())
    }
}

/// Names of modules and their paths.
fn scan(root: std::os::fd::BorrowedFd<'_>, dir: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut rest = vec![(format!("{dir}/kernel"), 0)];
    while let Some((dir, depth)) = rest.pop() {
        // What is no directory cannot be listed.
        for name in tree::list(root, &dir).unwrap_or_default() {
            let path = format!("{dir}/{name}");
            if let Some(module) = module_name(&name) {
                files.insert(module, path);
            } else if depth < DEPTH && !name.contains('.') {
                rest.push((path, depth + 1));
            }
            if files.len().max(rest.len()) > FILES {
                return files;
            }
        }
    }
    files
}

/// `virtio-rng.ko.xz` → `virtio_rng`.
fn module_name(file: &str) -> Option<String> {
    let (stem, end) = file.split_once(".ko")?;
    matches!(end, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

fn read(root: std::os::fd::BorrowedFd<'_>, path: &str) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Module { path: path.to_owned(), source };
    let file = tree::open(root, path).map_err(failed)?;
    let mut content = Vec::new();
    Reader::new(file).map_err(failed)?.take(MODULE).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// The `depends=` record of a module: names divided by commas, ended by a NUL.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module.get(at + KEY.len()..).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).take(100).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_module_follows_what_it_needs_and_circles_end() {
        let temporary = tempfile::tempdir().unwrap();
        let kernel = temporary.path().join("lib/modules/6.1/kernel");
        fs::create_dir_all(kernel.join("drivers")).unwrap();
        let module = |depends: &str| format!("ELF\0license=GPL\0depends={depends}\0name=x\0");
        fs::write(kernel.join("drivers/virtio-pci.ko"), module("virtio,virtio-ring,built-in")).unwrap();
        fs::write(kernel.join("virtio.ko"), module("virtio_ring")).unwrap();
        let packed = zstd::encode_all(module("virtio").as_bytes(), 1).unwrap();
        fs::write(kernel.join("virtio_ring.ko.zst"), packed).unwrap();
        let root = fs::File::open(temporary.path()).unwrap();
        let order = load_order(&root, "lib/modules/6.1").unwrap();
        let names: Vec<&str> = order.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["virtio_ring", "virtio", "virtio_pci"]);
        assert!(order.iter().all(|(_, content)| content.starts_with(b"ELF")));
    }

    #[test]
    fn names_are_normalised() {
        assert_eq!(module_name("virtio-rng.ko.xz").as_deref(), Some("virtio_rng"));
        assert_eq!(module_name("modules.dep"), None);
        assert_eq!(depends(b"ELF\0depends=\0"), Vec::<String>::new());
    }
}
