//! The VMs of this user: one directory each, and no daemon.
//!
//! ```text
//! $XDG_STATE_HOME/skiff/            (~/.local/state/skiff; for its owner only)
//!   store.lock                      held (flock) while an entry is made, renamed, removed or settled
//!   events.jsonl, events.jsonl.1    see [`events`]
//!   vms/NAME/
//!     lock                          locked (fcntl) by the VM's process as long as it lives
//!     state.json                    see [`state`]; written aside and renamed
//!     spec.toml                     the spec, as `skiff run --config` takes it
//!     layers.json                   its place among snapshots and layers, which are in the data directory: see [`layers`]
//!     control.sock                  see `vmm::api`
//!     console.log, console.log.1    what the guest printed
//!     vm.log                        what the VM's process has to say
//!   vms/.gone-…                     removed, but not deleted to the end
//! ```
//!
//! A name is had by making its directory, which one of many can. Whether a VM lives is asked of the kernel, by its lock: no
//! process ID is believed. What the VM's process could not write down itself, because it was killed or the host went
//! down, is settled by whichever command notices first ([`Store::look`]).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::FlockOperation;
use vmm::spec::VmSpec;

pub mod bases;
pub mod command;
pub mod entry;
pub mod events;
pub mod follow;
pub mod free;
pub mod held;
pub mod images;
pub mod layers;
pub mod names;
pub mod state;
#[cfg(test)]
mod tests;
pub mod time;

use entry::{Entry, Look};
use held::Held;
use state::{End, State};

/// What an entry that never got going may hold: nothing of it is of use to anybody.
const LEFTOVERS: &[&str] = &[
    "lock",
    "state.json",
    "state.json.new",
    "spec.toml.new",
    "control.sock",
    "console.log",
    "vm.log",
    "layers.json",
    "layers.json.new",
];
/// What to do about a place that cannot be used.
const ELSEWHERE: &str = "set XDG_STATE_HOME to a directory of yours";
/// Begins the names of what is being deleted. No VM's name begins with a dot.
const GONE: &str = ".gone-";

/// The place where VMs are kept. It may not exist yet.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    /// Where snapshots and layers are.
    data: PathBuf,
}

/// No other command makes, renames, removes or settles entries while this lives. Never held over a wait.
pub struct Locked(#[expect(dead_code, reason = "its close unlocks")] File);

/// skiff's part of the user's state directory (XDG base directory specification).
pub fn state_dir() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    let state = state.context(
        "there is no place to keep VMs, for neither XDG_STATE_HOME nor HOME is set: set one of them to a directory's absolute path",
    )?;
    Ok(state.join("skiff"))
}

impl Store {
    /// The user's.
    pub fn open() -> Result<Self> {
        let dir = state_dir()?;
        let data = layers::data_dir(&dir);
        Ok(Self { dir, data })
    }

    /// The one at `dir`.
    #[cfg(test)]
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), data: dir.join("data") }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn vms(&self) -> PathBuf {
        self.dir.join("vms")
    }

    /// Wait for the store's lock.
    pub fn lock(&self) -> Result<Locked> {
        let path = self.dir.join("store.lock");
        let open =
            || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let vms = self.vms();
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&vms);
                made.with_context(|| {
                    format!("cannot make {}, where VMs are kept: {ELSEWHERE}", vms.display())
                })?;
                open()
            }
            opened => opened,
        };
        let file = file.with_context(|| {
            format!("cannot open {}, beside which VMs are kept: {ELSEWHERE}", path.display())
        })?;
        lock_file(&file).with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Locked(file))
    }

    /// The names of all entries, sorted.
    fn names(&self) -> Result<Vec<String>> {
        let vms = self.vms();
        let failed = || format!("cannot list {}, where VMs are kept: {ELSEWHERE}", vms.display());
        let entries = match fs::read_dir(&vms) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // What has no name that a VM can have was not put there by skiff.
            let name = entry.with_context(failed)?.file_name();
            names.extend(name.to_str().filter(|name| names::check(name).is_ok()).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }

    /// All VMs by name, not looked at.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        Ok(self.names()?.iter().map(|name| self.handle(name)).collect())
    }

    fn handle(&self, name: &str) -> Entry {
        Entry::new(name, self.vms().join(name))
    }

    /// The VM called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<Entry> {
        let entry = self.handle(name);
        (names::check(name).is_ok() && entry.dir().is_dir()).then_some(entry)
    }

    /// The VM called `name`, looked at.
    pub fn get(&self, name: &str) -> Result<Look> {
        let look = match self.find(name) {
            Some(entry) => self.look(entry)?,
            None => None,
        };
        look.ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &str) -> anyhow::Error {
        let names = match self.names() {
            Ok(names) => names,
            // It may well be there.
            Err(error) => return error,
        };
        let fix = match crate::flags::closest(name, names.iter().map(String::as_str)) {
            Some(close) => format!("did you mean '{close}'?"),
            None => "skiff ps -a lists all".to_owned(),
        };
        anyhow!("there is no VM '{name}': {fix}")
    }

    /// All VMs, by name.
    pub fn all(&self) -> Result<Vec<Look>> {
        let mut all = Vec::new();
        for name in self.names()? {
            all.extend(self.look(self.handle(&name))?);
        }
        Ok(all)
    }

    /// Look at an entry, and settle it if its process ended without a word. `None` if it is gone, or should be.
    fn look(&self, entry: Entry) -> Result<Option<Look>> {
        let look = entry.look();
        if !look.is_some_and(|look| look.is_unsettled()) {
            // Asked twice, since the first answer may have been between two writes.
            return Ok(entry.look());
        }
        match self.lock() {
            Ok(locked) => self.settle(&locked, entry),
            // Whoever may not write may still look.
            Err(error) => {
                log::info!("{} is not settled: {error:#}", entry.name());
                Ok(entry.look().map(Look::settled))
            }
        }
    }

    /// Write down how a VM ended whose process could not, and sweep away what never got going.
    fn settle(&self, locked: &Locked, entry: Entry) -> Result<Option<Look>> {
        // Somebody else may have done so meanwhile, or started it.
        let look = match entry.look() {
            Some(look) if look.is_unsettled() => look,
            other => return Ok(other),
        };
        if look.spec.is_none() && !entry.has_spec() {
            if only_leftovers(entry.dir()) {
                self.delete(locked, &entry)?;
                return Ok(None);
            }
            return Ok(Some(look.settled()));
        }
        let look = look.settled();
        if let Some(state) = &look.state {
            if let Err(error) = state.write(entry.dir(), true) {
                log::warn!("{}: {error:#}", entry.name());
            } else {
                let end = state.end.clone().unwrap_or(End::Crashed);
                events::append(&self.dir, &events::Event::stopped(entry.name(), &end));
            }
            if state.remove {
                self.delete(locked, &entry)?;
                return Ok(None);
            }
        }
        Ok(Some(look))
    }

    /// Make an entry for a VM of this process, called `name` or by a name that is made up.
    pub fn create(&self, name: Option<&str>) -> Result<Held> {
        if let Some(name) = name {
            names::check(name)?;
        }
        let locked = self.lock()?;
        let mut tries = 0_u32;
        loop {
            let chosen = name.map_or_else(|| names::make_up(tries), str::to_owned);
            let entry = self.handle(&chosen);
            match DirBuilder::new().mode(0o700).create(entry.dir()) {
                Ok(()) => return Held::take(&self.dir, entry).inspect_err(|_| self.forget(&locked, &chosen)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => match name {
                    // It may be a leftover.
                    Some(name) if tries == 0 && self.settled_away(&locked, name)? => {}
                    Some(name) => return Err(taken(name)),
                    None => {}
                },
                Err(error) if error.kind() == ErrorKind::NotFound && tries == 0 => {
                    let made = DirBuilder::new().recursive(true).mode(0o700).create(self.vms());
                    made.with_context(|| format!("cannot make {}", self.vms().display()))?;
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot make {}", entry.dir().display()));
                }
            }
            tries = tries.saturating_add(1);
        }
    }

    fn settled_away(&self, locked: &Locked, name: &str) -> Result<bool> {
        Ok(self.settle(locked, self.handle(name))?.is_none())
    }

    fn forget(&self, locked: &Locked, name: &str) {
        if let Err(error) = self.delete(locked, &self.handle(name)) {
            log::warn!("{error:#}");
        }
    }

    /// Let this process be the stopped VM `name`. Returns its spec and last state, too.
    pub fn take(&self, name: &str) -> Result<(Held, VmSpec, State)> {
        let look = self.get(name)?;
        let locked = self.lock()?;
        let Some(look) = self.settle(&locked, look.entry)? else { return Err(self.unknown(name)) };
        if look.is_live() {
            bail!("{name} runs already: skiff attach {name} joins its console");
        }
        match (look.spec, look.state, look.broken) {
            (Some(spec), Some(state), None) => Ok((Held::take(&self.dir, look.entry)?, spec, state)),
            (_, _, reason) => bail!(
                "{name} cannot be started, for it is broken: {}; remove it with skiff rm -f {name}",
                reason.unwrap_or_else(|| "its spec is missing".to_owned())
            ),
        }
    }

    /// Whether a new VM can be called `name`, as far as can be told before it is made.
    pub fn check_free(&self, name: &str) -> Result<()> {
        let there = self.handle(name).dir().exists();
        if there && !self.settled_away(&self.lock()?, name)? { Err(taken(name)) } else { Ok(()) }
    }

    /// Call the VM `old` `new`. It may run.
    pub fn rename(&self, old: &str, new: &str) -> Result<()> {
        names::check(new)?;
        self.get(old)?;
        let locked = self.lock()?;
        let (from, to) = (self.handle(old), self.handle(new));
        if to.dir().exists() && (old == new || !self.settled_away(&locked, new)?) {
            bail!("there is a VM '{new}' already: choose another name");
        }
        fs::rename(from.dir(), to.dir()).with_context(|| format!("cannot rename {old} to {new}"))?;
        sync_dir(&self.vms());
        Ok(())
    }

    /// Remove the VM `name`, which must not run. Without `force`, one that is broken stays.
    pub fn remove(&self, name: &str, force: bool) -> Result<()> {
        let look = self.get(name)?;
        let locked = self.lock()?;
        let Some(look) = self.settle(&locked, look.entry)? else {
            // Renamed meanwhile, or removed by somebody else: who asked is to know that it was not this.
            return Err(self.unknown(name));
        };
        if look.is_live() {
            bail!(
                "{name} runs: stop it first with skiff stop {name}, or end and remove it with skiff rm -f {name}"
            );
        }
        if let (Some(reason), false) = (&look.broken, force) {
            bail!("{name} is broken ({reason}): remove it with skiff rm -f {name}");
        }
        self.delete(&locked, &look.entry)
    }

    /// Remove the entry of this very process's VM, at its end.
    pub fn remove_own(&self, held: &Held) -> Result<()> {
        let locked = self.lock()?;
        self.delete(&locked, &self.handle(&held.name()))
    }

    /// First out of sight in one step, then file by file; last the layers that were its alone.
    fn delete(&self, _: &Locked, entry: &Entry) -> Result<()> {
        // One that cannot be read is of no use to anybody, and a sweep finds the layers.
        let record = self.record(entry).ok().flatten();
        let gone = self.vms().join(format!("{GONE}{}-{}", std::process::id(), entry.name()));
        match fs::rename(entry.dir(), &gone) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            renamed => renamed.with_context(|| format!("cannot remove {}", entry.name()))?,
        }
        self.sweep();
        if let Some(Err(error)) = record.map(|record| self.snapshots().drop_tops(&record)) {
            log::warn!("layers of {} are left to skiff system prune: {error}", entry.name());
        }
        Ok(())
    }

    /// Delete what was removed, by this process or by one that was killed on the way.
    fn sweep(&self) {
        let entries = fs::read_dir(self.vms()).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(GONE.as_bytes()))
        {
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                log::warn!("cannot delete {}: {error}", entry.path().display());
            }
        }
    }
}

/// Wait for an exclusive flock on `file`.
fn lock_file(file: &File) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| rustix::fs::flock(file, FlockOperation::LockExclusive))?)
}

fn only_leftovers(dir: &Path) -> bool {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().all(|name| LEFTOVERS.iter().any(|known| name == *known))
}

/// Let what was renamed in `dir` be so after a power cut, as far as the file system can.
fn sync_dir(dir: &Path) {
    if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
        log::info!("cannot sync {}: {error}", dir.display());
    }
}

fn taken(name: &str) -> anyhow::Error {
    anyhow!("there is a VM '{name}' already: choose another name, or remove that one with skiff rm {name}")
}
