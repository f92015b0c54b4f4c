//! What Linux test guests boot: stock kernels and, beside each, an initramfs of busybox, the drivers for
//! skiff's devices and `tests/linux/guest/init.sh`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::debian::Release;
use crate::debian::busybox;
use crate::debian::kernel::{EXTRA_MODULES, Flavour, GUEST_MODULES, Kernel};
use crate::initramfs::{Archive, key};
use crate::{paths, tool};

const INIT: &str = include_str!("../../linux/guest/init.sh");
const EXTRA: &str = include_str!("../../linux/guest/extra.sh");
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

    /// Makes what the guests of network tests have besides, as `extra` beside the initramfs: more drivers, programs, and the
    /// script for them. The kernel unpacks one after the other where both are joined.
    ///
    /// # Errors
    /// When a program is missing or the target directory cannot be written.
    fn ensure_extra(&self, tool: &Path) -> Result<()> {
        let bytes = build_extra(&self.kernel, tool)?;
        let extra = self.kernel.dir().join("extra");
        if !fs::read(&extra).is_ok_and(|old| old == bytes) {
            paths::write_whole(&extra, &bytes)?;
        }
        Ok(())
    }

    /// All kernels that whole-machine tests run on, oldest release first, with what their network tests need.
    ///
    /// # Errors
    /// As [`Guest::ensure`].
    pub fn ensure_all() -> Result<Vec<Guest>> {
        let pairs =
            Release::ALL.iter().flat_map(|release| Flavour::ALL.iter().map(|flavour| (*release, *flavour)));
        let guests: Vec<Guest> =
            pairs.map(|(release, flavour)| Guest::ensure(release, flavour)).collect::<Result<_>>()?;
        let tool = guest_tool()?;
        guests.iter().try_for_each(|guest| guest.ensure_extra(&tool))?;
        Ok(guests)
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

/// Builds the program that network tests run in their guests, which have no libraries for it.
fn guest_tool() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    // A directory of its own: flags are part of every dependency's fingerprint.
    let dir = paths::target()?.join("static");
    let mut cargo = tool::cargo(&["build", "--locked", "--package", "guest-tool"])?;
    cargo.args(["--release", "--target", TARGET, "--target-dir"]).arg(&dir);
    tool::show(cargo.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(dir.join(TARGET).join("release/guest-tool"))
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
    add_modules(&mut archive, kernel, GUEST_MODULES)?;
    archive.file("init", 0o755, INIT.as_bytes());
    Ok(archive.finish())
}

/// Puts drivers where `init.sh` looks for them, with the order in which each is loaded.
///
/// # Errors
/// When one cannot be read.
pub fn add_modules(archive: &mut Archive, kernel: &Kernel, modules: &[&str]) -> Result<()> {
    let mut done = BTreeSet::new();
    for wanted in modules {
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
    Ok(())
}

fn build_extra(kernel: &Kernel, guest_tool: &Path) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::default();
    for dir in ["bin", "lib", "lib/x86_64-linux-gnu", "lib64", "modules"] {
        archive.dir(dir);
    }
    archive.file("bin/guest-tool", 0o755, &read(guest_tool)?);
    let iperf3 = tool::find("iperf3").context("iperf3 is not installed: run `cargo xtask setup`")?;
    archive.file("bin/iperf3", 0o755, &read(&iperf3)?);
    for library in libraries(&iperf3)? {
        archive.file(library.trim_start_matches('/'), 0o755, &read(Path::new(&library))?);
    }
    add_modules(&mut archive, kernel, EXTRA_MODULES)?;
    archive.file("extra.sh", 0o644, EXTRA.as_bytes());
    Ok(archive.finish())
}

/// The files of the libraries that a program is linked with, and of its loader.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let listed = tool::capture(Command::new("ldd").arg(program))?;
    let paths = listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(str::to_owned).collect())
}
