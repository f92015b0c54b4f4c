//! One VM's directory, held by the process that is the VM.
//!
//! The directory is kept open and everything is reached through it, so that it may be renamed while the VM runs. The lock
//! is the process's own (fcntl): a child of it has none, and any `close` of the file by this process would end it, so the
//! one descriptor lives here to the end.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use vmm::agent::Agent;
use vmm::notice::Notice;
use vmm::snapshot::Record;
use vmm::spec::VmSpec;

use super::entry::{CONSOLE_LOG, Entry, LOCK, SOCKET, SPEC, VM_LOG};
use super::events::{self, Event};
use super::state::{End, State, replace};

/// This process's VM.
#[derive(Debug)]
pub struct Held {
    /// Of the store.
    store: PathBuf,
    /// The name it had when it was taken.
    name: String,
    dir: File,
    _lock: File,
    /// What is in the file. Held while it is written.
    state: Mutex<Option<State>>,
}

impl Held {
    /// Take `entry`, whose store is at `store` and locked, for this process.
    pub(super) fn take(store: &Path, entry: Entry) -> Result<Self> {
        let failed = || format!("cannot use {}", entry.dir().display());
        let dir = File::open(entry.dir()).with_context(failed)?;
        let mut options = OpenOptions::new();
        let lock =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(entry.file(LOCK));
        let lock = lock.with_context(failed)?;
        rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("cannot lock {}: another process has it", entry.file(LOCK).display()))?;
        let name = entry.name().to_owned();
        Ok(Self { store: store.to_owned(), name, dir, _lock: lock, state: Mutex::new(None) })
    }

    /// The VM's name now: it may have been renamed.
    pub fn name(&self) -> String {
        let path = fs::read_link(self.path()).ok();
        let name = path.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        name.map_or_else(|| self.name.clone(), str::to_owned)
    }

    /// The directory, wherever it is, while this lives.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.dir.as_raw_fd()).into()
    }

    /// Where what the guest prints is kept.
    pub fn console_log(&self) -> PathBuf {
        self.path().join(CONSOLE_LOG)
    }

    /// Where its place among snapshots and layers is written down.
    pub fn record(&self) -> PathBuf {
        self.path().join(Record::FILE)
    }

    /// For what this process has to say.
    pub fn open_log(&self) -> Result<File> {
        let path = self.path().join(VM_LOG);
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        opened.with_context(|| format!("cannot write {VM_LOG} of {}", self.name))
    }

    /// The control socket, new.
    pub fn listen(&self) -> Result<UnixListener> {
        let path = self.path().join(SOCKET);
        let bound = match UnixListener::bind(&path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                fs::remove_file(&path).and_then(|()| UnixListener::bind(&path))
            }
            bound => bound,
        };
        bound.with_context(|| {
            format!(
                "cannot make the control socket of {} in {}: if its file system knows no sockets, set XDG_STATE_HOME to a directory that does",
                self.name,
                self.store.display()
            )
        })
    }

    /// Write down `spec`. Without `sync`, a power cut may undo it.
    pub fn write_spec(&self, spec: &VmSpec, sync: bool) -> Result<()> {
        let text = toml::to_string(spec).context("the spec cannot be written as TOML")?;
        replace(&self.path(), SPEC, text.as_bytes(), sync)
    }

    /// Write down `state`. Without `sync`, a power cut may undo it.
    pub fn write_state(&self, state: State, sync: bool) -> Result<()> {
        let mut last = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.write(&self.path(), sync)?;
        *last = Some(state);
        Ok(())
    }

    /// Write down the state as `change` makes it, if there is one to change. Several threads do.
    fn change_state(&self, change: impl FnOnce(&State) -> State) {
        let mut last = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = last.as_ref().map(change) else { return };
        if let Err(error) = state.write(&self.path(), false) {
            log::warn!("{error:#}");
        }
        *last = Some(state);
    }

    /// `agent` takes requests, or none does. Asked for with the state held: whatever changes meanwhile is noted after it.
    pub fn set_agent(&self, agent: impl FnOnce() -> Option<Agent>) {
        self.change_state(|state| state.agent(agent()));
    }

    /// Let what was written survive a power cut.
    pub fn sync(&self) {
        for name in [SPEC, super::state::FILE] {
            if let Err(error) = File::open(self.path().join(name)).and_then(|file| file.sync_all()) {
                log::warn!("cannot sync {name}: {error}");
            }
        }
        super::sync_dir(&self.path());
        super::sync_dir(&self.store.join("vms"));
    }

    /// Something happened to the VM. Its start and its end are told by [`Held::started`] and [`Held::ended`].
    pub fn note(&self, notice: &Notice) {
        match notice {
            Notice::Paused => self.change_state(|state| state.paused(true)),
            Notice::Resumed => self.change_state(|state| state.paused(false)),
            Notice::Ready { agent } => self.set_agent(|| Some(agent.clone())),
            Notice::NotReady => self.set_agent(|| None),
            _ => {}
        }
        if let Some(event) = Event::of(&self.name(), notice) {
            events::append(&self.store, &event);
        }
    }

    /// The VM runs.
    pub fn started(&self) {
        events::append(&self.store, &Event::new(&self.name(), "started"));
    }

    /// The VM has ended so; the first word counts.
    pub fn ended(&self, end: End) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(state) = state.filter(|state| state.end.is_none()) else { return };
        let event = Event::stopped(&self.name(), &end);
        if let Err(error) = self.write_state(state.ended(end), !state.remove) {
            log::error!("{error:#}");
        }
        events::append(&self.store, &event);
    }
}
