//! What a VM tells of its life while it runs, for `events`.

use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::api::types::Ended;
use crate::snapshot::Id;

/// One thing that happened to a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Notice {
    /// Its vCPUs run for the first time.
    Started,
    /// The guest's kernel has taken over: the first driver of this boot has started its virtio device.
    Booted,
    /// The agent in the guest takes requests.
    Ready {
        /// Which.
        agent: Agent,
    },
    /// It does not any more: it has ended, or the guest was reset or put back.
    NotReady,
    /// It was paused.
    Paused,
    /// It goes on.
    Resumed,
    /// The guest was reset and boots again.
    Rebooted,
    /// A snapshot of it is there.
    Snapshot {
        /// What users call it.
        name: String,
        /// What files call it.
        id: Id,
        /// How long the guest stood still for it, in microseconds.
        pause_us: u64,
    },
    /// It was put back to a snapshot.
    RolledBack {
        /// What users call that.
        name: String,
        /// What files call it.
        id: Id,
    },
    /// The guest's kernel panicked.
    Panicked {
        /// The last lines it printed, oldest first.
        last_lines: Vec<String>,
    },
    /// It has ended, and this is the last that is heard of it.
    Stopped {
        /// How.
        end: Ended,
    },
}

/// Told of everything, in order, on the thread where it happens; must not block.
pub type Listener = Box<dyn Fn(Notice) + Send + Sync>;
