//! Where the VMs' snapshots and the layers of their disks are, and who needs them.
//!
//! ```text
//! $XDG_DATA_HOME/skiff/       (~/.local/share/skiff; for its owner only) see `vmm::snapshot`
//! ```
//!
//! A VM's own part is in its directory: [`Record::FILE`]. One data directory belongs to one state directory: what no record in
//! the latter names is free.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, anyhow};
use vmm::snapshot::manifest::Manifest;
use vmm::snapshot::store::{StoreError, User};
use vmm::snapshot::{Id, Places, Record, Store as Snapshots};
use vmm::spec::closest;

use super::Store;
use super::entry::{Entry, Look, SPEC};

/// skiff's part of the user's data directory (XDG base directory specification). A user without one has it in the state
/// directory.
pub fn data_dir(state: &Path) -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    data.map_or_else(|| state.join("data"), |data| data.join("skiff"))
}

/// A VM's place among snapshots.
#[derive(Debug)]
pub struct Family {
    /// The VM's name.
    pub vm: String,
    /// `None` if it never had layers or snapshots.
    pub record: Option<Record>,
    /// Its snapshots, oldest first.
    pub own: Vec<Manifest>,
    /// Snapshots of other VMs that it comes from, the oldest first.
    pub origins: Vec<Manifest>,
    /// Those of all VMs that are removed, but still there.
    pub hidden: Vec<Manifest>,
    /// What is wrong with snapshots that cannot be read: any VM's, this one's perhaps.
    pub wrong: Vec<StoreError>,
}

impl Store {
    /// The snapshots of all VMs.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots::open(self.places())
    }

    /// Where they are.
    pub fn places(&self) -> Places {
        let owner = std::fs::canonicalize(&self.dir).unwrap_or_else(|_| self.dir.clone());
        Places::new(&self.data).owned_by(owner)
    }

    /// Every VM, and every image, build step and test that needs a snapshot, for a sweep.
    pub fn users(&self) -> Result<Vec<User>, StoreError> {
        let mut users = self.vm_users()?;
        let of_images = self.image_users().map_err(|error| StoreError::Io {
            what: "read which snapshots images need in",
            path: self.data.clone(),
            source: std::io::Error::other(error),
        });
        users.extend(of_images?);
        let of_tests = self.base_users().map_err(|error| StoreError::Io {
            what: "read which snapshots tests need in",
            path: self.data.clone(),
            source: std::io::Error::other(format!("{error:#}")),
        });
        users.extend(of_tests?);
        Ok(users)
    }

    fn vm_users(&self) -> Result<Vec<User>, StoreError> {
        let vms = self.vms();
        // No VM is to get another name while names are read.
        let _locked = match self.lock() {
            Ok(locked) => locked,
            Err(error) => {
                let source = std::io::Error::other(format!("{error:#}"));
                return Err(StoreError::Io { what: "lock", path: vms, source });
            }
        };
        let failed = |source| StoreError::Io { what: "list", path: vms.clone(), source };
        let entries = match std::fs::read_dir(&vms) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut users = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            // What has no name that a VM can have is no VM: a removed one among them.
            let Some(name) = name.to_str().filter(|name| super::names::check(name).is_ok()) else { continue };
            users.extend(self.user(&Entry::new(name, entry.path()))?);
        }
        Ok(users)
    }

    /// What `look`'s VM has to do with snapshots.
    pub fn family(&self, look: &Look) -> Result<Family> {
        let record = self.record(&look.entry)?;
        let (mut own, mut origins, mut hidden) = (Vec::new(), Vec::new(), Vec::new());
        let vm = look.entry.name().to_owned();
        let Some(record) = record else {
            return Ok(Family { vm, record: None, own, origins, hidden, wrong: Vec::new() });
        };
        let (all, wrong) = self.snapshots().all()?;
        let ancestors = ancestors(&all, record.vm, record.parent);
        for manifest in all {
            match (manifest.removed, manifest.vm == record.vm) {
                (true, _) => hidden.push(manifest),
                (false, true) => own.push(manifest),
                (false, false) if ancestors.contains(&manifest.id) => origins.push(manifest),
                (false, false) => {}
            }
        }
        Ok(Family { vm, record: Some(record), own, origins, hidden, wrong })
    }

    fn user(&self, entry: &Entry) -> Result<Option<User>, StoreError> {
        // The lock first: a VM that starts after it has been asked keeps its own record until it has another.
        let running = entry.holder().map_or(true, |holder| holder.is_some());
        let spec = std::fs::read_to_string(entry.file(SPEC)).unwrap_or_default();
        let record = Record::read(self.snapshots().storage(), &entry.file(Record::FILE))?;
        Ok(record.map(|record| User { name: entry.name().to_owned(), record, spec, running }))
    }

    /// The record of `entry`'s VM, if it has one.
    pub fn record(&self, entry: &Entry) -> Result<Option<Record>> {
        Ok(Record::read(self.snapshots().storage(), &entry.file(Record::FILE))?)
    }

    /// Free what nobody needs any more, in a process of its own that outlives this one.
    pub fn sweep_behind(&self) {
        let free = || self.users();
        match self.snapshots().garbage(&free) {
            Ok(garbage) if garbage.is_empty() => return,
            Ok(_) => {}
            Err(error) => log::info!("{:#}", anyhow::Error::new(error)),
        }
        let mut command = Command::new("/proc/self/exe");
        command.args(["system", "prune"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.current_dir("/");
        // Neither the terminal's signals nor its end are for it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        if let Err(error) = command.spawn() {
            log::warn!("what is free stays until skiff system prune: {error}");
        }
    }
}

/// The snapshots from which the one at `parent` and those of the VM `vm` come.
fn ancestors(all: &[Manifest], vm: Id, parent: Option<Id>) -> Vec<Id> {
    let own = all.iter().filter(|manifest| manifest.vm == vm).map(|manifest| manifest.parent);
    let mut next: Vec<Id> = own.chain([parent]).flatten().collect();
    let mut found = Vec::new();
    while let Some(id) = next.pop() {
        if !found.contains(&id) {
            found.push(id);
            next.extend(all.iter().find(|manifest| manifest.id == id).and_then(|manifest| manifest.parent));
        }
    }
    found
}

impl Family {
    /// The snapshot that is called `name` or has this id: one of the VM's own, or one that it comes from.
    pub fn find(&self, name: &str) -> Result<&Manifest> {
        let id: Option<Id> = name.parse().ok();
        let called = |manifest: &&Manifest| manifest.name == name || Some(manifest.id) == id;
        let found = self.own.iter().find(called).or_else(|| self.origins.iter().rev().find(called));
        found.ok_or_else(|| self.unknown(name))
    }

    /// One of its own.
    pub fn find_own(&self, name: &str) -> Result<&Manifest> {
        let manifest = self.find(name)?;
        if self.own.iter().any(|own| own.id == manifest.id) {
            return Ok(manifest);
        }
        Err(anyhow!("the snapshot {name} is not one of {}, which only comes from it", self.vm))
    }

    fn unknown(&self, name: &str) -> anyhow::Error {
        let names = || self.own.iter().chain(&self.origins).map(|manifest| manifest.name.as_str());
        let fix = match closest(name, names()) {
            Some(close) => format!("did you mean '{close}'?"),
            None if self.own.is_empty() => format!("skiff snapshot create {} makes one", self.vm),
            None => format!("skiff snapshot ls {} shows them", self.vm),
        };
        anyhow!("{} has no snapshot '{name}': {fix}", self.vm)
    }

    /// A name that none of its snapshots has: s1, s2, …
    pub fn next_name(&self) -> String {
        let numbers =
            self.own.iter().filter_map(|manifest| manifest.name.strip_prefix('s')?.parse::<u64>().ok());
        format!("s{}", numbers.max().unwrap_or(0).saturating_add(1))
    }

    /// The newest of its snapshots.
    pub fn newest(&self) -> Option<&Manifest> {
        self.own.last()
    }

    /// The snapshot that it is on, as far as users can see it.
    pub fn current(&self) -> Option<Id> {
        self.visible(self.record.as_ref()?.parent)
    }

    /// `id`, or if it is removed the nearest that is not of those it comes from.
    pub fn visible(&self, mut id: Option<Id>) -> Option<Id> {
        // As many steps as there are snapshots: a wrong manifest may lead in a circle.
        for _ in 0..=self.hidden.len() {
            match self.hidden.iter().find(|manifest| Some(manifest.id) == id) {
                Some(hidden) => id = hidden.parent,
                None => break,
            }
        }
        id.filter(|id| self.own.iter().chain(&self.origins).any(|manifest| manifest.id == *id))
    }
}
