//! The images beside the VMs: `images/` in the data directory (see [`images::store`]), and which VMs and snapshots need them.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use images::digest::Digest;
use images::file::cache::Cache;
use images::store::{Image, Needs, Store as Images, file_name};
use serde::{Deserialize, Serialize};
use vmm::snapshot::store::User;
use vmm::snapshot::{Id, Record};
use vmm::spec::VmSpec;

use super::Store;
use super::entry::{Look, SPEC};
use super::state;

/// Which image a VM is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfImage {
    /// What it was called when the VM was made, or its short ID.
    pub name: String,
    /// Its ID.
    pub id: Digest,
}

impl From<&Image> for OfImage {
    fn from(image: &Image) -> Self {
        Self { name: image.called(), id: image.id }
    }
}

impl Store {
    /// The user's images.
    pub fn images(&self) -> Images {
        Images::open(self.data.join("images"))
    }

    /// What VMs and snapshots need of the images.
    pub fn image_needs(&self) -> Result<Needs> {
        let mut needs = Needs::default();
        {
            // No VM is to get another name while names are read.
            let _locked = self.lock()?;
            for name in self.names()? {
                for file in [SPEC, state::FILE] {
                    needs.add_text(&read(&self.handle(&name).file(file))?);
                }
            }
        }
        let (snapshots, wrong) = self.snapshots().all()?;
        if let Some(error) = wrong.into_iter().next() {
            // What it needs is not known.
            return Err(
                anyhow::Error::new(error).context("no image is freed while a snapshot cannot be read")
            );
        }
        for snapshot in snapshots {
            needs.add_text(&snapshot.spec);
        }
        Ok(needs)
    }

    /// Free what only the images `gone` need, of which none has a name or a user any more. Says how many bytes. Others without a name are left to
    /// a prune.
    pub fn sweep_images(&self, gone: &[Digest]) -> Result<u64> {
        if self.forget_stale_bases()? > 0 {
            // What only they need of images is free after them.
            self.snapshots().sweep(&|| self.users(), &mut |_, _| {})?;
        }
        let images = self.images();
        let needs = || {
            let mut needs = self.image_needs()?;
            images.ids()?.into_iter().filter(|id| !gone.contains(id)).for_each(|id| needs.add(id));
            anyhow::Ok(needs)
        };
        Ok(images.prune(false, needs)?.bytes)
    }

    /// The VMs of an image.
    pub fn vms_of(&self, image: &Image, all: &[Look]) -> Vec<String> {
        let top = image.manifest.disk.layers.first().map(|top| self.images().blob_path(&top.digest));
        let uses = |look: &&Look| match look.state.as_ref().and_then(|state| state.image.as_ref()) {
            Some(of) => of.id == image.id,
            None => look
                .spec
                .as_ref()
                .is_some_and(|spec| spec.disks.iter().any(|disk| Some(&disk.path) == top.as_ref())),
        };
        all.iter().filter(uses).map(|look| look.entry.name().to_owned()).collect()
    }

    /// The image that a VM with this spec is of, if it is of one.
    pub fn image_of(&self, spec: &VmSpec) -> Option<OfImage> {
        let images = self.images();
        let first = &spec.disks.first()?.path;
        if !first.starts_with(images.root()) {
            return None;
        }
        let (all, _) = images.list().ok()?;
        let top = |image: &&Image| {
            image.manifest.disk.layers.first().is_some_and(|top| images.blob_path(&top.digest) == *first)
        };
        all.iter().find(top).map(OfImage::from)
    }

    /// Those for whom the snapshots are kept that images are started from, and those of build steps: as if their VMs were still there.
    pub(super) fn image_users(&self) -> Result<Vec<User>, images::store::StoreError> {
        let (images, mut users) = (self.images(), Vec::new());
        for (id, warm) in images.all_warm()? {
            users.extend(user(format!("image {}", id.short()), &warm.vm, &warm.snapshot, file_name(&id)));
        }
        for (key, step) in Cache::of(&images).all_steps()? {
            users.extend(user(format!("step {}", key.short()), &step.vm, &step.snapshot, String::new()));
        }
        Ok(users)
    }

    /// How many steps of builds are kept.
    pub fn steps(&self) -> Result<usize> {
        Ok(Cache::of(&self.images()).all_steps()?.len())
    }

    /// Forget the results of all build steps. Says how many there were; what they took is free after a sweep.
    pub fn forget_steps(&self) -> Result<usize> {
        let (images, snapshots) = (self.images(), self.snapshots());
        let cache = Cache::of(&images);
        let steps = cache.all_steps()?;
        for (key, step) in &steps {
            cache.remove_step(*key)?;
            // It may be gone already.
            if let Some(Err(error)) = step.snapshot.parse().ok().map(|id| snapshots.mark_removed(id)) {
                log::info!("the snapshot of a step: {error}");
            }
        }
        cache.clear()?;
        Ok(steps.len())
    }
}

/// Whoever needs this snapshot of the life `vm`; nobody if the note of it makes no sense.
pub(super) fn user(name: String, vm: &str, snapshot: &str, spec: String) -> Option<User> {
    let (vm, snapshot): (Id, Id) = (vm.parse().ok()?, snapshot.parse().ok()?);
    let mut record = Record::new(vm, Vec::new());
    record.parent = Some(snapshot);
    Some(User { name, record, spec, running: false })
}

/// A file's text; nothing if it is not there.
fn read(path: &Path) -> Result<String> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        text => {
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        }
    }
}

/// Say what is wrong with images that cannot be read.
pub fn tell_wrong(wrong: Vec<images::store::StoreError>) {
    for error in wrong {
        crate::terminal::note(&format!("skiff: warning: {:#}", anyhow::Error::new(error)));
    }
}

/// Refuse what would take an image from its VMs.
pub fn check_unused(called: &str, vms: &[String]) -> Result<()> {
    if !vms.is_empty() {
        bail!(
            "{called} is in use by {}: remove them first with skiff rm, or take away its name alone with -f",
            vms.join(", ")
        );
    }
    Ok(())
}
