//! What happened to VMs: JSON lines in `events.jsonl`, kept to about two of [`FULL`].
//!
//! Every VM's process adds its own lines; there is nobody else to. An addition is one `write` under a lock of its own, so
//! that lines stay whole when the file is rotated.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmm::notice::Notice;

use super::state::End;
use super::time;

/// Its name in the store.
pub const FILE: &str = "events.jsonl";
/// What was in the file before.
pub const OLD: &str = "events.jsonl.1";
/// From this size on, in bytes, a new file is begun.
const FULL: u64 = 1 << 20;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339, in UTC.
    pub time: String,
    /// The VM's name at that time.
    pub vm: String,
    /// `started`, `booted`, `ready`, `paused`, `resumed`, `rebooted`, `snapshot`, `rolled-back`, `panicked` or `stopped`.
    pub event: String,
    /// With `snapshot` and `rolled-back`: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// With `stopped`: how ([`End::word`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub how: Option<String>,
    /// With `stopped`: the exit code of whoever waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// With `stopped` after a failure: what the host has to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// With `panicked`: what the guest printed last, oldest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_lines: Option<Vec<String>>,
}

impl Event {
    /// `event` happens to `vm` now.
    pub fn new(vm: &str, event: &str) -> Self {
        Self {
            time: time::rfc3339(time::now()),
            vm: vm.to_owned(),
            event: event.to_owned(),
            snapshot: None,
            how: None,
            exit_code: None,
            error: None,
            last_lines: None,
        }
    }

    /// `vm` has ended so.
    pub fn stopped(vm: &str, end: &End) -> Self {
        let error = match end {
            End::Failed { error } => Some(error.clone()),
            _ => None,
        };
        let (how, exit_code) = (Some(end.word().to_owned()), Some(end.code()));
        Self { how, exit_code, error, ..Self::new(vm, "stopped") }
    }

    /// What a running VM tells, its start and end excepted: they are told when they stand in the store.
    pub(super) fn of(vm: &str, notice: &Notice) -> Option<Self> {
        Some(match notice {
            Notice::Started | Notice::Stopped { .. } => return None,
            // It is said by what it comes with, or follows: a reboot, a rollback, the next `ready`.
            Notice::NotReady => return None,
            Notice::Ready { .. } => Self::new(vm, "ready"),
            Notice::Booted => Self::new(vm, "booted"),
            Notice::Paused => Self::new(vm, "paused"),
            Notice::Resumed => Self::new(vm, "resumed"),
            Notice::Rebooted => Self::new(vm, "rebooted"),
            Notice::Snapshot { name, .. } => {
                Self { snapshot: Some(name.clone()), ..Self::new(vm, "snapshot") }
            }
            Notice::RolledBack { name, .. } => {
                Self { snapshot: Some(name.clone()), ..Self::new(vm, "rolled-back") }
            }
            Notice::Panicked { last_lines } => {
                Self { last_lines: Some(last_lines.clone()), ..Self::new(vm, "panicked") }
            }
        })
    }
}

/// Add `event` to the file in the store `dir`. What cannot be written is logged: no VM ends for it.
pub(super) fn append(dir: &Path, event: &Event) {
    if let Err(error) = try_append(dir, event, FULL) {
        log::warn!("an event of {} cannot be written to {}: {error}", event.vm, dir.join(FILE).display());
    }
}

fn try_append(dir: &Path, event: &Event, full: u64) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let open = || OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(FILE));
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("events.lock"))?;
    super::lock_file(&lock)?;
    let mut file: File = open()?;
    if file.metadata()?.len() >= full {
        fs::rename(dir.join(FILE), dir.join(OLD))?;
        file = open()?;
    }
    file.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_makes_room_and_every_line_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for vm in ["a", "b", "c", "d"] {
                let dir = dir.path();
                scope.spawn(move || {
                    for _ in 0..50 {
                        try_append(dir, &Event::new(vm, "paused"), 4096).unwrap();
                    }
                });
            }
        });
        let mut lines = 0;
        for name in [OLD, FILE] {
            let text = fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(text.len() < 4096 + 128, "{name}: {}", text.len());
            for line in text.lines() {
                let event: Event = serde_json::from_str(line).unwrap();
                assert_eq!(event.event, "paused");
                lines += 1;
            }
        }
        assert!(lines > 40, "{lines}");
    }

    #[test]
    fn an_end_says_how_and_with_which_code() {
        let event = Event::stopped("a", &End::Failed { error: "no".to_owned() });
        assert_eq!(
            (event.how.as_deref(), event.exit_code, event.error.as_deref()),
            (Some("failed"), Some(1), Some("no"))
        );
        let text = serde_json::to_string(&Event::new("a", "booted")).unwrap();
        assert!(text.ends_with(r#""vm":"a","event":"booted"}"#), "{text}");
    }
}
