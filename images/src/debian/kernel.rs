//! [`kernel`]: the one that guests without a kernel of their own get: Debian's for virtual machines.

use std::fs::{self, File};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::bootstrap::{Variant, bootstrap};
use super::recipe::Recipe;
use super::{Error, Mirror, failed};
use crate::manifest::Blob;
use crate::name::Name;
use crate::progress::Progress;
use crate::store::Store;
use crate::tree::{self, Options};

/// Whose kernel it is.
const RELEASE: &str = "debian:12";
/// The package that has it.
const PACKAGE: &str = "linux-image-cloud-amd64";
/// In the store's directory: what was fetched. A prune keeps what such a file names.
const NOTE: &str = "cache/kernel-debian-12.json";

/// A kernel for guests that have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kernel {
    /// A bzImage.
    pub image: Blob,
    /// What the agent needs of its modules: [`crate::initrd::modules`].
    pub modules: Blob,
}

/// The kernel of the store's Debian 12 if it has one, else the one that was fetched before, else fetches it. Nobody need be root for that.
///
/// # Errors
/// If it cannot be fetched, or the store takes it not.
pub fn kernel(store: &Store, mirror: &Mirror, progress: &mut dyn Progress) -> Result<Kernel, Error> {
    if let Some(kernel) = of_image(store)? {
        return Ok(kernel);
    }
    let note = store.root().join(NOTE);
    if let Some(kernel) = noted(store, &note)? {
        return Ok(kernel);
    }
    let kernel = fetch(store, mirror, progress)?;
    let text = serde_json::to_vec_pretty(&kernel).unwrap_or_default();
    // Without the note it is fetched again, and no more is lost.
    if let Some(dir) = note.parent()
        && fs::create_dir_all(dir).is_ok()
    {
        let aside = note.with_extension(format!("new-{}", std::process::id()));
        let _ = fs::write(&aside, text).and_then(|()| fs::rename(&aside, &note));
    }
    Ok(kernel)
}

fn of_image(store: &Store) -> Result<Option<Kernel>, Error> {
    let Ok(name) = RELEASE.parse::<Name>() else { return Ok(None) };
    let Some(id) = store.named(&name)? else { return Ok(None) };
    let manifest = store.get(&id)?;
    match manifest.modules {
        Some(modules) => keep(store, Kernel { image: manifest.kernel, modules }),
        None => Ok(None),
    }
}

fn noted(store: &Store, note: &Path) -> Result<Option<Kernel>, Error> {
    let kernel = fs::read(note).ok().and_then(|text| serde_json::from_slice::<Kernel>(&text).ok());
    kernel.map_or(Ok(None), |kernel| keep(store, kernel))
}

/// If it is there, whole, it stays so while the store is in use.
fn keep(store: &Store, kernel: Kernel) -> Result<Option<Kernel>, Error> {
    Ok((store.keep(&kernel.image)? && store.keep(&kernel.modules)?).then_some(kernel))
}

fn fetch(store: &Store, mirror: &Mirror, progress: &mut dyn Progress) -> Result<Kernel, Error> {
    let scratch = store.scratch()?;
    let work = scratch.path();
    let no_kernel = || Error::NoKernel { os: RELEASE.to_owned() };
    let release = RELEASE.parse::<Name>().ok().and_then(|name| Recipe::named(&name)).ok_or_else(no_kernel)?;
    let recipe = Recipe { packages: vec![PACKAGE.to_owned()], ..release.clone() };
    let archive = work.join("kernel.tar");
    bootstrap(&recipe, Variant::Files, mirror, work, &archive, progress)?;
    progress.step("unpacking the kernel");
    let path = work.join("tree");
    fs::create_dir(&path).map_err(failed("create a directory for the kernel"))?;
    let root = File::open(&path).map_err(failed("open the kernel's directory"))?;
    let archive = File::open(&archive).map_err(failed("open the kernel's archive"))?;
    // Nobody's files: only what is in them counts.
    let options = Options { owners: false, privileges: false, ..Options::image() };
    tree::unpack(archive, &root, &options).map_err(Error::Kernel)?;
    let found = crate::kernel::take(&root, work).map_err(crate::rootless::Error::from)?;
    found.filter(|found| found.modules).ok_or_else(no_kernel)?;
    let blob = |name: &str| store.adopt(&work.join(name), None, &mut |_| ());
    Ok(Kernel { image: blob("kernel")?, modules: blob("modules")? })
}
