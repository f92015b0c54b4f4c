//! Stock kernels, fetched from the archive by package and cached below the target directory as
//! `kernels/<release>-<flavour>/{vmlinuz,config,version,modules/}`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Release;
use super::archive::Archive;
use super::modules::Tree;
use crate::progress::Step;
use crate::{lock, paths, tool};

/// Which build of a release's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// For virtual machines: `linux-image-cloud-amd64`.
    Cloud,
    /// For every machine: `linux-image-amd64`.
    Generic,
}

impl Flavour {
    /// Both of them.
    pub const ALL: [Flavour; 2] = [Flavour::Cloud, Flavour::Generic];

    /// The word in directory and test names.
    pub fn word(self) -> &'static str {
        match self {
            Flavour::Cloud => "cloud",
            Flavour::Generic => "generic",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Flavour::Cloud => "linux-image-cloud-amd64",
            Flavour::Generic => "linux-image-amd64",
        }
    }
}

/// The drivers that guests load, in this order. A kernel may lack some or have them built in.
pub const GUEST_MODULES: &[&str] =
    &["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "virtio_rng", "pvpanic_mmio", "pvpanic"];

/// The drivers that guests of the network tests have besides, in no order.
pub const EXTRA_MODULES: &[&str] = &[
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "virtio_balloon",
    "button",
    "evdev",
    "crc32c_generic",
    "ext4",
    "virtiofs",
];

/// The drivers that kvmbox loads, in this order.
pub const BOX_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm_amd",
    "tun",
    "bridge",
    "vhost_net",
    "vhost_vsock",
];

/// A cached kernel.
pub struct Kernel {
    dir: PathBuf,
}

impl Kernel {
    /// `<number>-<flavour>`, such as `12-cloud`.
    pub fn name(release: Release, flavour: Flavour) -> String {
        format!("{}-{}", release.number(), flavour.word())
    }

    /// Returns a kernel from the cache, fetching it first if need be.
    ///
    /// # Errors
    /// When the archive cannot be reached or the package does not hold what it should.
    pub fn ensure(release: Release, flavour: Flavour) -> Result<Kernel> {
        let name = Kernel::name(release, flavour);
        let kernels = paths::target()?.join("kernels");
        let kernel = Kernel { dir: kernels.join(&name) };
        // The record of what was extracted, so that a checkout that needs other modules fetches anew.
        let wanted = [GUEST_MODULES, EXTRA_MODULES, BOX_MODULES].concat();
        if kernel.is_complete(&wanted) {
            return Ok(kernel);
        }
        paths::make_dir(&kernels)?;
        let _lock = lock::hold(&kernels.join(format!("{name}.lock")))?;
        if !kernel.is_complete(&wanted) {
            kernel
                .fetch(release, flavour, &wanted)
                .with_context(|| format!("fetching the kernel of Debian {name}"))?;
        }
        Ok(kernel)
    }

    fn is_complete(&self, wanted: &[&str]) -> bool {
        fs::read_to_string(self.dir.join("wanted")).is_ok_and(|text| text == wanted.join(" "))
    }

    fn fetch(&self, release: Release, flavour: Flavour, wanted: &[&str]) -> Result<()> {
        let work = self.dir.with_extension("partial");
        for dir in [&work, &self.dir] {
            if dir.exists() {
                fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
            }
        }
        let (made, tree) = (work.join("made"), work.join("tree"));
        paths::make_dir(&made.join("modules"))?;
        paths::make_dir(&tree)?;
        let archive = Archive::open(release)?;
        let package = archive.kernel_package(flavour.package())?;
        let file = archive.download(&package, &work)?;
        let step = Step::start(format!("unpacking {package}"));
        unpack(&file, &tree)?;
        collect(&tree, &made, wanted)?;
        fs::write(made.join("version"), format!("{package} {}\n", archive.version(&package)?))?;
        fs::write(made.join("wanted"), wanted.join(" "))?;
        fs::rename(&made, &self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
        step.done();
        Ok(())
    }

    /// The directory of this kernel's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The bzImage as the package has it.
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Package name and version.
    ///
    /// # Errors
    /// When the cache is damaged.
    pub fn version(&self) -> Result<String> {
        let file = self.dir.join("version");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.trim().to_string())
    }

    /// The contents of `wanted` modules and of what they need, by name in load order.
    ///
    /// # Errors
    /// When the cache is damaged.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        Tree::scan(&self.dir.join("modules"))?.load_order(wanted)
    }

    /// How the bzImage's payload is compressed, by its first bytes.
    ///
    /// # Errors
    /// When the file cannot be read or is no bzImage.
    pub fn compression(&self) -> Result<&'static str> {
        let file = self.image();
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = payload(&bytes).and_then(compression);
        name.with_context(|| format!("{} is no bzImage with a known compression", file.display()))
    }

    /// The file of the kernel unpacked from its bzImage (`vmlinux`), made on first use. Only xz is known
    /// here; otherwise it is the bzImage itself.
    ///
    /// # Errors
    /// When the image cannot be read or unpacked.
    pub fn unpacked(&self) -> Result<PathBuf> {
        let vmlinux = self.dir.join("vmlinux");
        if vmlinux.exists() {
            return Ok(vmlinux);
        }
        let file = self.image();
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        match payload(&bytes) {
            // Behind the xz stream comes a word with the unpacked size.
            Some(payload) if compression(payload) == Some("xz") => {
                let bytes = tool::filter(Command::new("xz").args(["-dc", "--single-stream"]), payload)?;
                paths::write_whole(&vmlinux, &bytes)?;
                Ok(vmlinux)
            }
            _ => Ok(file),
        }
    }
}

/// Unpacks a kernel package without the drivers that are large and never wanted.
fn unpack(package: &Path, tree: &Path) -> Result<()> {
    const SKIPPED: [&str; 5] =
        ["drivers/gpu", "drivers/net/wireless", "drivers/net/ethernet", "drivers/media", "sound"];
    let mut source = Command::new("dpkg-deb");
    let mut source =
        source.arg("--fsys-tarfile").arg(package).stdout(std::process::Stdio::piped()).spawn()?;
    let mut tar = Command::new("tar");
    tar.arg("-x").arg("-C").arg(tree).args(SKIPPED.map(|dir| format!("--exclude=*/kernel/{dir}/*")));
    if let Some(pipe) = source.stdout.take() {
        tar.stdin(pipe);
    }
    let output = tar.output().context("cannot run tar")?;
    let source = source.wait().context("waiting for dpkg-deb")?;
    if !output.status.success() || !source.success() {
        bail!("{} could not be unpacked: {}", package.display(), tool::failure(&tar, &output));
    }
    Ok(())
}

/// Copies what is kept of an unpacked package.
fn collect(tree: &Path, made: &Path, wanted: &[&str]) -> Result<()> {
    for (start, name) in [("vmlinuz-", "vmlinuz"), ("config-", "config")] {
        let entries = fs::read_dir(tree.join("boot")).context("the package has no /boot")?;
        let mut files =
            entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(start));
        let file = files.next().with_context(|| format!("the package has no /boot/{start}*"))?;
        fs::copy(file.path(), made.join(name))
            .with_context(|| format!("cannot copy {}", file.path().display()))?;
    }
    let places = ["usr/lib/modules", "lib/modules"].map(|dir| tree.join(dir));
    let place = places.iter().find(|dir| dir.is_dir()).context("the package has no modules")?;
    for (name, bytes) in Tree::scan(place)?.load_order(wanted)? {
        let copy = made.join("modules").join(format!("{name}.ko"));
        fs::write(&copy, bytes).with_context(|| format!("cannot write {}", copy.display()))?;
    }
    Ok(())
}

/// The compressed kernel inside a bzImage. Its place is in the setup header (Linux boot protocol 2.08):
/// `payload_offset` at 0x248 counts from the protected-mode code, which follows the boot sector and
/// `setup_sects` (0x1f1) more; `payload_length` is at 0x24c.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let setup_sectors = usize::from(*image.get(0x1f1)?) + 1;
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let payload = image.get(setup_sectors * 512 + word(0x248)?..)?;
    payload.get(..word(0x24c)?)
}

fn compression(payload: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 6] = [
        (b"\x1f\x8b", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\x5d\0\0", "lzma"),
    ];
    MAGICS.iter().find(|(magic, _)| payload.starts_with(magic)).map(|(_, name)| *name)
}
