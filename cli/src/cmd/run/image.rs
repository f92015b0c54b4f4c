//! `skiff run IMAGE`: what an image says of its VMs, where nobody says otherwise.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use images::debian;
use images::manifest::{Agent, Manifest};
use images::store::{Image, Store as Images, StoreError};
use vmm::snapshot::manifest::Manifest as Snapshot;
use vmm::spec::{DiskSpec, Memory, MemorySpec, NetBackend, NetSpec, VmSpec, VsockSpec};

use super::asked::{Asked, default_cmdline, streams};
use super::net::NetAsked;
use crate::cmd::image;
use crate::cmd::image::warm::{Cold, Start, start_from};
use crate::flags::closest;
use crate::progress::Bar;
use crate::store::Store;
use crate::terminal::note;

/// The memory of an image's VM that nobody chose.
const DEFAULT_MEMORY: Memory = Memory(1 << 30);

/// The image that is called `text`, checked, and safe from prunes for as long as `images` lives.
pub fn find(images: &Images, text: &str) -> Result<Image> {
    let image = match images.hold(text) {
        Err(StoreError::Unknown { .. }) if image::make(images, text)? => images.hold(text)?,
        held => held.map_err(with_hint)?,
    };
    checked(images, image)
}

/// The image that is called `text`, if it is there.
pub fn there(images: &Images, text: &str) -> Result<Image> {
    match images.hold(text) {
        Err(StoreError::Unknown { text, .. }) if can_be_built(&text) => {
            let hint = format!("skiff image build {text} makes it, which a dry run does not");
            Err(StoreError::Unknown { text, hint }.into())
        }
        held => Ok(held.map_err(with_hint)?),
    }
}

/// What to do about an image that is not there, as far as that can be told.
fn with_hint(error: StoreError) -> StoreError {
    match error {
        StoreError::Unknown { text, hint } => StoreError::Unknown { hint: or_built(&text, hint), text },
        error => error,
    }
}

fn can_be_built(text: &str) -> bool {
    text.parse().is_ok_and(|name| debian::Recipe::named(&name).is_some())
}

/// `image`, if it is in order. What was read once is not read again.
pub fn checked(images: &Images, image: Image) -> Result<Image> {
    let mut bar = Bar::new(format!("checking {}", image.called()));
    images.verify(&image.manifest, &mut |done, total| bar.show(done, total))?;
    Ok(image)
}

/// What was most likely meant by `text`, if that is not in the store but could be built.
fn or_built(text: &str, hint: String) -> String {
    if hint.starts_with("did you mean") {
        return hint;
    }
    let names = debian::all().iter().flat_map(|recipe| &recipe.names).map(String::as_str);
    match closest(text, names) {
        Some(close) => format!("did you mean '{close}'? That would be built"),
        None if text.parse::<images::registry::Reference>().is_ok() => {
            format!("skiff image pull {text} asks a registry for it, and skiff image ls shows what is here")
        }
        _ => hint,
    }
}

/// What to call `image`, which was found by `text`: by that, unless it is an ID.
pub fn shown(image: &Image, text: &str) -> String {
    let named = text.parse().is_ok_and(|name| image.names.contains(&name));
    if named { text.to_owned() } else { image.called() }
}

/// What `asked` comes to for a VM of `image`: flags and files win.
pub fn apply(mut asked: Asked, images: &Images, image: &Image) -> Result<Asked> {
    let manifest = &image.manifest;
    let own_kernel = asked.kernel.is_some();
    let path = |blob: &images::manifest::Blob| images.blob_path(&blob.digest);
    asked.kernel.get_or_insert_with(|| path(&manifest.kernel));
    // Another kernel has no use for these modules, but for the guest's init that is with them.
    if asked.initrd.is_none() && (!own_kernel || manifest.agent == Agent::Init) {
        asked.initrd = manifest.initrd.as_ref().map(path);
    }
    if asked.cmdline.is_none() {
        let (serial, console) = streams(asked.serial.clone(), asked.console.clone());
        let text = format!("{} {}", manifest.cmdline, default_cmdline(&serial, &console));
        asked.cmdline = Some(text.trim_start().to_owned());
    }
    asked.disk.insert(0, root(manifest, path)?);
    defaults(&mut asked, manifest)?;
    if asked.vsock.is_none() && manifest.agent != Agent::None {
        asked.vsock = Some(VsockSpec::own());
    }
    if asked.net.is_empty() && (!asked.publish.is_empty() || has_passt()) {
        asked.net.push(NetAsked::Net(NetSpec::new(NetBackend::User)));
    }
    Ok(asked)
}

/// Say which of the host's ports are open because the image, which may be anybody's, wants them so.
pub fn tell_published(image: &Image, asked: &Asked) {
    let ports: Vec<String> = asked.publish.iter().map(ToString::to_string).collect();
    if !ports.is_empty() && ports == image.manifest.defaults.publish {
        note(&format!(
            "skiff: {} publishes {}: --net user without -p does not",
            image.called(),
            ports.join(", ")
        ));
    }
}

/// The VM of an image of whom nobody asked anything.
pub fn spec(images: &Images, image: &Image) -> Result<VmSpec> {
    apply(Asked::default(), images, image)?.resolve()
}

/// The root disk: never written itself, whoever the VM is.
fn root(manifest: &Manifest, path: impl Fn(&images::manifest::Blob) -> PathBuf) -> Result<DiskSpec> {
    let top = manifest.disk.layers.first().context("the image has no disk: it is damaged")?;
    let mut disk = DiskSpec::new(path(top));
    disk.layers = Some(true);
    disk.size = Some(Memory(manifest.disk.grows_to.max(manifest.disk.size)));
    Ok(disk)
}

fn defaults(asked: &mut Asked, manifest: &Manifest) -> Result<()> {
    let defaults = &manifest.defaults;
    asked.cpus = asked.cpus.or(defaults.cpus.map(u64::from));
    if asked.memory.is_none() {
        let given = defaults.memory.as_deref().map(str::parse::<MemorySpec>).transpose();
        let given = given.context("the image's default memory makes no sense: choose with --memory")?;
        let default = MemorySpec { size: DEFAULT_MEMORY, hugepages: false, overcommit: false };
        asked.memory = Some(given.unwrap_or(default));
    }
    if asked.publish.is_empty() && asked.net.is_empty() {
        for port in &defaults.publish {
            let port =
                port.parse().context("the image's default ports make no sense: choose with --publish")?;
            asked.publish.push(port);
        }
    }
    Ok(())
}

/// Whether there is a `passt` to be the VM's network, and a network that it can lead to: it ends without one.
fn has_passt() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    is_online() && std::env::split_paths(&paths).any(|dir| is_program(&dir.join("passt")))
}

/// Whether this machine has a default route (proc(5): /proc/net/route, and the same for IPv6).
fn is_online() -> bool {
    let routes = |path| std::fs::read_to_string(path).unwrap_or_default();
    let default = |line: &str, at: usize, zero: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let interface = if at == 1 { fields.first() } else { fields.last() };
        fields.get(at) == Some(&zero) && interface.is_some_and(|name| *name != "lo")
    };
    let zero = "0".repeat(32);
    routes("/proc/net/route").lines().any(|line| default(line, 1, "00000000"))
        || routes("/proc/net/ipv6_route").lines().any(|line| default(line, 0, &zero) && line.contains(" 00 "))
}

fn is_program(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}

/// The snapshot that a VM of `image` starts from, if the image is warm and the VM is to be the same machine.
/// With `verbose`, the user hears why it is not.
pub fn warm(
    store: &Store,
    images: &Images,
    image: &Image,
    wanted: &VmSpec,
    verbose: bool,
) -> Result<Option<Snapshot>> {
    let called = image.called();
    match start_from(store, images, image, wanted)? {
        Start::Warm(snapshot) => return Ok(Some(*snapshot)),
        Start::Cold(Cold::Broken(why)) => note(&format!(
            "skiff: warning: {called} boots, for the snapshot that it starts from cannot be used: {why}; skiff image build {called} --warm makes \
             another"
        )),
        Start::Cold(cold) if verbose => note(&format!("skiff: {called} boots, for {cold}")),
        Start::Cold(_) => {}
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use images::manifest::{Blob, Defaults, Disk, SCHEMA, Source};

    use super::*;
    use crate::flags;

    fn blob(of: &str) -> Blob {
        Blob { digest: images::digest::Digest::of(of.as_bytes()), size: 1 }
    }

    fn image() -> Image {
        let manifest = Manifest {
            schema: SCHEMA,
            os: "Test".to_owned(),
            created_ms: 0,
            source: Source::Rootfs,
            kernel: blob("kernel"),
            initrd: Some(blob("initrd")),
            modules: None,
            cmdline: "root=/dev/vda rw".to_owned(),
            disk: Disk { layers: vec![blob("top"), blob("base")], size: 1 << 30, grows_to: 10 << 30 },
            agent: Agent::Service,
            defaults: Defaults {
                cpus: Some(2),
                memory: Some("256M".to_owned()),
                publish: vec!["8080:80".to_owned()],
                ..Defaults::default()
            },
        };
        Image { id: blob("manifest").digest, manifest, names: Vec::new() }
    }

    /// The VM of [`image`] that `args` ask for.
    fn vm(args: &[&str]) -> VmSpec {
        let matches = super::super::VERB.command().try_get_matches_from([&["run"], args].concat()).unwrap();
        let mut asked = Asked::default();
        flags::apply(super::super::options::FLAGS, &matches, &mut asked).unwrap();
        apply(asked, &Images::open("/images"), &image()).unwrap().resolve().unwrap()
    }

    #[test]
    fn an_image_says_what_nobody_else_says() {
        let path = |of: &str| Images::open("/images").blob_path(&blob(of).digest);
        let spec = vm(&[]);
        assert_eq!((&spec.kernel, spec.initrd.as_ref()), (&path("kernel"), Some(&path("initrd"))));
        assert_eq!(spec.cmdline, "root=/dev/vda rw console=ttyS0");
        assert_eq!((spec.cpus, spec.memory.size), (2, Memory(256 << 20)));
        let disk = &spec.disks[0];
        assert_eq!((&disk.path, disk.layers, disk.size), (&path("top"), Some(true), Some(Memory(10 << 30))));
        assert_eq!(spec.vsock, Some(VsockSpec::own()));
        assert_eq!(spec.ports.len(), 1);
        assert_eq!(spec.nets, [NetSpec::new(NetBackend::User)]);
    }

    #[test]
    fn an_image_that_could_be_built_is_named() {
        assert_eq!(or_built("debain:12", "none".to_owned()), "did you mean 'debian:12'? That would be built");
        let pull = or_built("web", "none".to_owned());
        assert!(pull.starts_with("skiff image pull web asks a registry for it"), "{pull}");
        assert_eq!(or_built("no image", "none".to_owned()), "none");
        assert_eq!(or_built("debain:12", "did you mean 'x'?".to_owned()), "did you mean 'x'?");
    }

    #[test]
    fn whatever_is_asked_for_wins_and_disks_come_after_the_root() {
        let spec = vm(&[
            "--cpus",
            "3",
            "--memory",
            "1G",
            "--console",
            "stdio",
            "--net",
            "none",
            "--disk",
            "path=/d",
        ]);
        assert_eq!((spec.cpus, spec.memory.size), (3, Memory(1 << 30)));
        assert_eq!(spec.cmdline, "root=/dev/vda rw console=hvc0");
        assert!(spec.nets.is_empty() && spec.ports.is_empty());
        assert_eq!(spec.disks.iter().map(|disk| disk.path.clone()).nth(1), Some("/d".into()));
        let spec = vm(&["--kernel", "/k", "--cmdline", "x", "-p", "1:2"]);
        assert_eq!((spec.kernel, spec.initrd, spec.cmdline.as_str()), ("/k".into(), None, "x"));
        assert_eq!(spec.ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1:2"]);
    }
}
