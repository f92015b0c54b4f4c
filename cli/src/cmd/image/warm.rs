//! Warm images: those that carry a snapshot of a VM that has booted, from which their VMs start.
//!
//! The snapshot is taken of a VM that is as `skiff run IMAGE` makes one without flags, once its agent is ready. A VM of the image starts from it if
//! it is to be the same machine; host's side (names, ports, where its console goes) may differ. Otherwise it boots.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use images::store::{Image, Store as Images, Warm};
use vmm::snapshot::Id;
use vmm::snapshot::manifest::Manifest;
use vmm::spec::VmSpec;

use super::file::guest::Guest;
use super::file::show::Screen;
use crate::copy;
use crate::store::Store;

/// What the guest is to write down, and what it needs not keep in its memory.
const SETTLE: &str = "sync; echo 3 > /proc/sys/vm/drop_caches";
/// How long the guest's kernel may take to report what it has freed: it does every two seconds (mm/page_reporting.c).
const REPORTS: Duration = Duration::from_secs(6);
/// How long nothing more must be reported, to count as all.
const QUIET: Duration = Duration::from_millis(2500);

/// From what a VM of an image starts.
#[derive(Debug)]
pub enum Start {
    /// This snapshot.
    Warm(Box<Manifest>),
    /// A boot, for this reason.
    Cold(Cold),
}

/// Why a VM of an image boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cold {
    /// The image has no snapshot.
    NotWarm,
    /// This of the VM is not as in the snapshot.
    Differs(&'static str),
    /// The snapshot cannot be used, for this reason.
    Broken(String),
}

impl std::fmt::Display for Cold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotWarm => {
                f.write_str("it has no snapshot to start from: skiff image build --warm takes one")
            }
            Self::Differs(what) => write!(f, "{what} is not as in the snapshot that it starts from"),
            Self::Broken(why) => write!(f, "its snapshot cannot be used: {why}"),
        }
    }
}

/// What a VM of `image` that is to be as `spec` starts from.
pub fn start_from(store: &Store, images: &Images, image: &Image, spec: &VmSpec) -> Result<Start> {
    let Some(warm) = images.warm(&image.id)? else { return Ok(Start::Cold(Cold::NotWarm)) };
    let found = || -> Result<(Manifest, VmSpec)> {
        let id: Id = warm.snapshot.parse().context("its ID makes no sense")?;
        let snapshots = store.snapshots();
        let manifest = snapshots.get(id)?;
        let spec = copy::spec_of(&manifest)?;
        // Read once: it is noted that it is in order.
        let _pin = snapshots.pin()?;
        snapshots.verify(id, &mut |_, _| ())?;
        Ok((manifest, spec))
    };
    Ok(match found() {
        Err(error) => Start::Cold(Cold::Broken(format!("{error:#}"))),
        Ok((manifest, warm)) => match differs(&warm, spec) {
            Some(what) => Start::Cold(Cold::Differs(what)),
            None => Start::Warm(Box::new(manifest)),
        },
    })
}

/// What a guest could tell two machines by, if there is something.
pub fn differs(one: &VmSpec, other: &VmSpec) -> Option<&'static str> {
    let backends = |spec: &VmSpec| spec.nets.iter().map(|net| net.backend.clone()).collect::<Vec<_>>();
    let same = [
        ("the kernel", one.kernel == other.kernel && one.initrd == other.initrd),
        ("the kernel's command line", words(one) == words(other)),
        ("the number of vCPUs", one.cpus == other.cpus),
        ("the memory", one.memory == other.memory),
        ("the disks", disks(one) == disks(other)),
        ("the network", backends(one) == backends(other)),
        ("the transport", one.transport == other.transport),
        ("the vsock device", one.vsock.as_ref().map(|v| v.cid) == other.vsock.as_ref().map(|v| v.cid)),
        ("the processor's template", one.cpu_template == other.cpu_template),
        ("the balloon", one.balloon == other.balloon),
        ("the shared folders", one.tags() == other.tags()),
    ];
    same.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
}

/// What the kernel is told, but for where it prints: nobody reads there what it has said before.
fn words(spec: &VmSpec) -> Vec<&str> {
    spec.cmdline.split_whitespace().filter(|word| !word.starts_with("console=")).collect()
}

/// The disks as the guest sees them. A file below one may have another name.
fn disks(spec: &VmSpec) -> Vec<vmm::spec::DiskSpec> {
    let mut disks = spec.disks.clone();
    for disk in disks.iter_mut().filter(|disk| !disk.readonly) {
        disk.layers = Some(true);
    }
    disks
}

/// Let the guest write down what it has to, and free what it can.
pub fn settle(guest: &Guest) -> Result<()> {
    guest.must(&["/bin/sh", "-c", SETTLE])
}

/// Let `image` be warm, if it is not.
pub fn keep(store: &Store, images: &Images, image: &Image, screen: &mut Screen) -> Result<()> {
    let spec = crate::cmd::run::image::spec(images, image)?;
    match start_from(store, images, image, &spec)? {
        Start::Warm(..) => Ok(()),
        Start::Cold(_) => make(store, images, image, screen),
    }
}

/// Boot a VM of `image`, take a snapshot of it, and let the image start from that.
pub fn make(store: &Store, images: &Images, image: &Image, screen: &mut Screen) -> Result<()> {
    screen.begin("warm".to_owned());
    let made = boot_and_take(store, images, image);
    match &made {
        Ok(()) => screen.done(),
        Err(_) => screen.fail(),
    }
    made.with_context(|| format!("{} is not warm", image.called()))
}

fn boot_and_take(store: &Store, images: &Images, image: &Image) -> Result<()> {
    let mut spec = crate::cmd::run::image::spec(images, image)?;
    // They lead to one VM only.
    spec.ports = Vec::new();
    let guest = Guest::start(store, &spec, None)?;
    settle(&guest)?;
    wait_until_free(&guest)?;
    let snapshot = guest.snapshot("warm", &format!("what {} starts from", image.called()))?;
    let vm = store.snapshots().get(snapshot)?.vm;
    let before = images.warm(&image.id)?;
    let warm = Warm {
        snapshot: snapshot.to_string(),
        vm: vm.to_string(),
        cpus: spec.cpus,
        memory: spec.memory.size.0,
    };
    // Before the VM goes: nobody would need the snapshot.
    images.set_warm(&image.id, Some(&warm))?;
    drop(guest);
    if let Some(id) = before.and_then(|before| before.snapshot.parse().ok()) {
        // It may be gone.
        let _ = store.snapshots().mark_removed(id);
    }
    Ok(())
}

/// Wait until the guest has given back the memory that it has freed: what is not there is not in the snapshot.
pub fn wait_until_free(guest: &Guest) -> Result<()> {
    let begin = Instant::now();
    let (mut least, mut since) = (guest.resident()?, Instant::now());
    while begin.elapsed() < REPORTS && since.elapsed() < QUIET {
        std::thread::sleep(Duration::from_millis(100));
        let now = guest.resident()?;
        // A megabyte less is of interest.
        if now.saturating_add(1 << 20) < least {
            (least, since) = (now, Instant::now());
        }
    }
    Ok(())
}
