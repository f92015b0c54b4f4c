//! `state.json`: what is known of a VM beside its spec.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vmm::agent::Agent;
use vmm::api::types::Ended;
use vmm::control::Outcome;

use super::images::OfImage;
use super::{sync_dir, time};
use crate::exit;

/// Its name in a VM's directory.
pub const FILE: &str = "state.json";
/// Of the file: counts up when an older skiff could not make sense of it.
const FORMAT: u32 = 1;

/// What is known of a VM beside its spec. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// When it was first run.
    pub created: u64,
    /// When it was last started.
    pub started: u64,
    /// When it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<u64>,
    /// Which start of the host it was started in.
    pub boot_id: String,
    /// Its entry goes when it ends.
    #[serde(default)]
    pub remove: bool,
    /// It was told to pause, and not yet to go on.
    #[serde(default)]
    pub paused: bool,
    /// The image that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<OfImage>,
    /// Its guest is known to have an agent: it is worth waiting for.
    #[serde(default)]
    pub has_agent: bool,
    /// The agent that takes requests now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// How it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum End {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest switched itself off after the command that it was for.
    Finished {
        /// The command's exit code.
        code: u8,
    },
    /// The guest's kernel panicked; these are the last lines it printed.
    Panicked {
        /// Oldest first.
        last_lines: Vec<String>,
    },
    /// A user ended it.
    Killed,
    /// The host failed, or cannot run this guest.
    Failed {
        /// Why, and what to do.
        error: String,
    },
    /// Its process was killed, not by skiff, or crashed.
    Crashed,
    /// The host went down.
    HostRebooted,
}

impl End {
    /// The exit code of whoever waited for it.
    pub fn code(&self) -> u8 {
        match self {
            Self::PoweredOff => exit::SUCCESS,
            Self::Finished { code } => *code,
            Self::Panicked { .. } => exit::GUEST_PANIC,
            Self::Failed { .. } => exit::FAILURE,
            Self::Killed | Self::Crashed | Self::HostRebooted => exit::KILLED,
        }
    }

    /// Its name in JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Self::PoweredOff => "powered-off",
            Self::Finished { .. } => "finished",
            Self::Panicked { .. } => "panicked",
            Self::Killed => "killed",
            Self::Failed { .. } => "failed",
            Self::Crashed => "crashed",
            Self::HostRebooted => "host-rebooted",
        }
    }
}

impl From<Ended> for End {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Outcome(Outcome::PoweredOff) => Self::PoweredOff,
            Ended::Outcome(Outcome::Finished { code }) => Self::Finished { code },
            Ended::Outcome(Outcome::Panicked { last_lines }) => Self::Panicked { last_lines },
            Ended::Outcome(Outcome::Killed) => Self::Killed,
            Ended::Failed(error) => Self::Failed { error },
        }
    }
}

impl State {
    /// A VM that starts now.
    pub fn new(remove: bool) -> Self {
        let now = time::now();
        Self {
            format: FORMAT,
            created: now,
            started: now,
            finished: None,
            boot_id: boot_id(),
            remove,
            paused: false,
            image: None,
            has_agent: false,
            agent: None,
            end: None,
        }
    }

    /// The same, of this image.
    pub fn of(self, image: Option<OfImage>) -> Self {
        Self { image, ..self }
    }

    /// Of a VM whose guest is known to have an agent, or not.
    pub fn with_agent(self, has_agent: bool) -> Self {
        Self { has_agent, ..self }
    }

    /// The same VM, started again now.
    pub fn again(&self) -> Self {
        let same = Self::new(self.remove).with_agent(self.has_agent).of(self.image.clone());
        Self { created: self.created, ..same }
    }

    /// It was told to pause, or to go on.
    pub fn paused(&self, paused: bool) -> Self {
        Self { paused, ..self.clone() }
    }

    /// Its agent takes requests, or none does any more.
    pub fn agent(&self, agent: Option<Agent>) -> Self {
        Self { agent, ..self.clone() }
    }

    /// It has ended so, now or unseen at some time before.
    pub fn ended(&self, end: End) -> Self {
        Self { finished: Some(time::now()), paused: false, agent: None, end: Some(end), ..self.clone() }
    }

    /// How it must have ended if its process is gone without a word.
    pub fn vanished(&self) -> End {
        if self.boot_id == boot_id() { End::Crashed } else { End::HostRebooted }
    }

    /// Of the entry at `dir`; `None` if there is none. An error says what is wrong with it.
    pub fn read(dir: &Path) -> Result<Option<Self>, String> {
        let text = match fs::read(dir.join(FILE)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{FILE} cannot be read: {error}")),
            Ok(text) => text,
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |error: serde_json::Error| format!("{FILE} is damaged: {error}");
        let Format { format } = serde_json::from_slice(&text).map_err(damaged)?;
        if format > FORMAT {
            return Err(format!(
                "{FILE} has format {format}, written by a newer skiff; this one knows {FORMAT}"
            ));
        }
        serde_json::from_slice(&text).map(Some).map_err(damaged)
    }

    /// Replace that of the entry at `dir`.
    pub fn write(&self, dir: &Path, sync: bool) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).context("a VM's state cannot be written as JSON")?;
        text.push(b'\n');
        replace(dir, FILE, &text, sync)
    }
}

/// Write `dir/name` aside and rename it, so that there is the old file or the new one whatever happens; with `sync`, a power
/// cut included.
pub fn replace(dir: &Path, name: &str, content: &[u8], sync: bool) -> Result<()> {
    let (path, aside) = (dir.join(name), dir.join(format!("{name}.new")));
    let write = || -> std::io::Result<()> {
        let mut file: File =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(content)?;
        if sync {
            file.sync_all()?;
        }
        fs::rename(&aside, &path)
    };
    if let Err(error) = write() {
        let _ = fs::remove_file(&aside);
        // The directory may be a descriptor's, which says nothing to anybody.
        let dir = fs::read_link(dir).unwrap_or_else(|_| dir.to_owned());
        return Err(error).with_context(|| format!("cannot write {}", dir.join(name).display()));
    }
    if sync {
        sync_dir(dir);
    }
    Ok(())
}

/// Changes with each start of the host.
fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim_end().to_owned()
}
