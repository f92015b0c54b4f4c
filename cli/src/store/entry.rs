//! One VM's directory, seen by a process that is not the VM's.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Flock, FlockOffsetType, FlockType, Pid, PidfdFlags, Signal, fcntl_getlk};
use vmm::api::client::Client;
use vmm::spec::VmSpec;

use super::state::{End, State};

/// Locked by the VM's process.
pub const LOCK: &str = "lock";
/// The spec, as TOML.
pub const SPEC: &str = "spec.toml";
/// Where the VM's process is asked.
pub const SOCKET: &str = "control.sock";
/// What the guest printed.
pub const CONSOLE_LOG: &str = "console.log";
/// What the VM's process has to say.
pub const VM_LOG: &str = "vm.log";

/// How long a VM may take to answer before it counts as hanging.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a process that is there may take until it listens.
const LISTENING: Duration = Duration::from_secs(5);

/// A VM's directory.
#[derive(Clone, Debug)]
pub struct Entry {
    name: String,
    dir: PathBuf,
}

/// What an entry was at one moment.
#[derive(Clone, Debug)]
pub struct Look {
    /// Whose.
    pub entry: Entry,
    /// Whoever has its lock: the VM's process.
    pub holder: Option<Holder>,
    /// `None` while it starts for the first time, and if it cannot be read.
    pub state: Option<State>,
    /// `None` while it starts for the first time, and if it cannot be read.
    pub spec: Option<VmSpec>,
    /// Why something of it cannot be read.
    pub broken: Option<String>,
}

/// The process that is a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its ID, if it can be seen from here (not from another container).
    pub pid: Option<Pid>,
}

/// What a VM is doing, or how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its process is there, the machine not yet.
    Starting,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// It has ended, its process not yet.
    Stopping,
    /// It ended so.
    Ended(End),
    /// Its files cannot be read, because of this.
    Broken(String),
}

impl Status {
    /// Its name in JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Ended(End::PoweredOff) => "stopped",
            Self::Ended(End::Crashed) => "killed",
            Self::Ended(End::HostRebooted) => "lost",
            Self::Ended(end) => end.word(),
            Self::Broken(_) => "broken",
        }
    }
}

impl Look {
    /// Whether its process is there.
    pub fn is_live(&self) -> bool {
        self.holder.is_some()
    }

    /// Whether the agent in its guest takes requests.
    pub fn is_ready(&self) -> bool {
        self.is_live()
            && self.state.as_ref().is_some_and(|state| state.end.is_none() && state.agent.is_some())
    }

    /// Whether its process is gone without having said how.
    pub(super) fn is_unsettled(&self) -> bool {
        !self.is_live() && self.state.as_ref().map_or(self.broken.is_none(), |state| state.end.is_none())
    }

    /// With what can be said of the end of a process that is gone without a word.
    pub(super) fn settled(mut self) -> Self {
        if self.is_unsettled() {
            match &self.state {
                Some(state) => self.state = Some(state.ended(state.vanished())),
                None => self.broken = Some("state.json is missing".to_owned()),
            }
        }
        self
    }

    /// What it is doing, or how it ended.
    pub fn status(&self) -> Status {
        match (&self.broken, &self.state) {
            (_, Some(state)) if self.is_live() => match (&state.end, state.paused) {
                (Some(_), _) => Status::Stopping,
                (None, true) => Status::Paused,
                (None, false) => Status::Running,
            },
            (Some(reason), _) => Status::Broken(reason.clone()),
            (None, Some(state)) => Status::Ended(state.end.clone().unwrap_or(End::Crashed)),
            (None, None) => Status::Starting,
        }
    }
}

impl Entry {
    pub(super) fn new(name: &str, dir: PathBuf) -> Self {
        Self { name: name.to_owned(), dir }
    }

    /// The VM's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn has_spec(&self) -> bool {
        self.file(SPEC).exists()
    }

    /// Who has the lock. This must not be asked by the VM's own process, which would lose it.
    pub fn holder(&self) -> io::Result<Option<Holder>> {
        let file = match File::open(self.file(LOCK)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let whole = Flock {
            start: 0,
            length: 0,
            pid: None,
            typ: FlockType::WriteLock,
            offset_type: FlockOffsetType::Set,
        };
        Ok(fcntl_getlk(&file, &whole)?.map(|lock| Holder { pid: lock.pid }))
    }

    /// What it is now. `None` if it is gone.
    pub(super) fn look(&self) -> Option<Look> {
        if !self.dir.is_dir() {
            return None;
        }
        // The lock first: if nobody has it, then what is read after it is the last word.
        let (holder, broken) = match self.holder() {
            Ok(holder) => (holder, None),
            Err(error) => (None, Some(format!("its lock cannot be read: {error}"))),
        };
        let mut look = Look { entry: self.clone(), holder, state: None, spec: None, broken };
        let mut wrong = |reason: String| _ = look.broken.get_or_insert(reason);
        match State::read(&self.dir) {
            Ok(state) => look.state = state,
            Err(reason) => wrong(reason),
        }
        match self.read_spec() {
            Ok(Some(spec)) => look.spec = Some(spec),
            // Written last by whoever starts.
            Ok(None) if look.state.as_ref().is_none_or(|state| state.end.is_none()) => {}
            Ok(None) => wrong(format!("{SPEC} is missing")),
            Err(reason) => wrong(reason),
        }
        Some(look)
    }

    fn read_spec(&self) -> Result<Option<VmSpec>, String> {
        match fs::read_to_string(self.file(SPEC)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{SPEC} cannot be read: {error}")),
            Ok(text) => toml::from_str(&text).map(Some).map_err(|error| {
                format!("{SPEC} is damaged: {}", error.message().trim_end().replace('\n', ", "))
            }),
        }
    }

    /// A connection to its process. A process that hangs makes it fail after `ANSWER`.
    pub fn connect(&self) -> Result<UnixStream> {
        let failed = || format!("{} cannot be reached", self.name);
        // Any path fits this way into the 108 bytes that a socket's address has.
        let dir = File::open(&self.dir).with_context(failed)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd());
        let begin = Instant::now();
        loop {
            match UnixStream::connect(&path) {
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                    // Its process may not have come to it yet, or be about to end.
                    if begin.elapsed() >= LISTENING || self.holder().with_context(failed)?.is_none() {
                        bail!("{} is not running: skiff start {0} starts it", self.name);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                connected => return connected.with_context(failed),
            }
        }
    }

    /// A client that gives up on a process that does not answer within `limit`, or a time that is good for most.
    pub fn client(&self, limit: Option<Duration>) -> Result<Client> {
        let stream = self.connect()?;
        let limit = Some(limit.unwrap_or(ANSWER));
        stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit))?;
        Ok(Client::new(stream))
    }

    /// Wait until no process has the lock any more, for at most `limit` if there is one. Says whether it came to that.
    pub fn wait_gone(&self, limit: Option<Duration>) -> bool {
        let begin = Instant::now();
        let mut nap = Duration::from_millis(1);
        loop {
            match self.holder() {
                Ok(None) | Err(_) => return true,
                Ok(Some(_)) if limit.is_some_and(|limit| begin.elapsed() >= limit) => return false,
                Ok(Some(_)) => std::thread::sleep(nap),
            }
            nap = (nap * 2).min(Duration::from_millis(50));
        }
    }

    /// Send SIGKILL to whoever has the lock.
    pub fn kill_process(&self) -> Result<()> {
        let failed = || format!("the process of {} cannot be killed", self.name);
        let Some(holder) = self.holder().with_context(failed)? else { return Ok(()) };
        let Some(pid) = holder.pid else {
            bail!("the process of {} is out of reach: it is in another container", self.name)
        };
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).with_context(failed)?;
        // The number may have become another process's before it was opened, but then that one has no lock.
        if self.holder().with_context(failed)? == Some(holder) {
            rustix::process::pidfd_send_signal(process, Signal::KILL).with_context(failed)?;
        }
        Ok(())
    }
}
