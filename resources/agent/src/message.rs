//! What is said in [`Frame::Message`](crate::frame::Frame::Message)s. All of it is JSON, so that a field that is new is passed over by whoever is older.

use serde::{Deserialize, Serialize};

/// The first frame of a connection to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Open {
    /// [`crate::PROTOCOL`] of who asks.
    pub protocol: u32,
    /// [`crate::VERSION`] of who asks.
    pub version: String,
    /// A [`Request`]. Kept apart, so that a request that is not known can be refused by its version.
    pub request: serde_json::Value,
}

/// What the agent can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Run a command. Frames then: `Input`, `InputEnd` and [`Control`] to it; `Output`, `Error` and at last one [`Ended`] from it.
    Exec(Exec),
    /// Send a file or a tree as a tar archive: `Output` frames, at last one [`Ended`].
    Pack(Pack),
    /// Take a tar archive: `Input` frames and `InputEnd`; at last one [`Ended`] back.
    Unpack(Unpack),
    /// Say what is at a path: one [`Looked`] back.
    Look {
        /// Absolute, or from the user's home.
        path: String,
    },
    /// Switch the guest off, as its own command would.
    PowerOff,
}

/// A command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Exec {
    /// The program and its arguments. Empty: the user's login shell.
    pub argv: Vec<String>,
    /// Added to what the user's login has, as `KEY=VALUE`.
    pub env: Vec<String>,
    /// Where it starts. Default: the user's home.
    pub cwd: Option<String>,
    /// `USER`, `UID`, `USER:GROUP` or `UID:GID`. Default: root.
    pub user: Option<String>,
    /// It has a terminal of this size; standard error is then the same as standard output.
    pub terminal: Option<Terminal>,
    /// Whether `Input` frames follow; otherwise its standard input is empty.
    pub stdin: bool,
    /// It outlives the connection, and its output goes to the guest's console. [`Accepted`] is the last word.
    pub detach: bool,
    /// The guest is switched off when it ends.
    pub then_power_off: bool,
}

/// A terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Terminal {
    /// `TERM` of the user's terminal.
    pub term: String,
    /// Its size in characters.
    pub rows: u16,
    /// Its size in characters.
    pub columns: u16,
}

/// Said to a running command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// Send it this signal (Linux's number on x86-64), and to its process group.
    Signal(i32),
    /// Its terminal has this size now.
    Resize {
        /// Characters.
        rows: u16,
        /// Characters.
        columns: u16,
    },
    /// It outlives this connection, as it is: what it prints after that is nobody's.
    Release,
}

/// What to send from the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pack {
    /// The file or directory. The archive's entries begin with its last component.
    pub path: String,
    /// Follow a symbolic link that is `path` itself.
    #[serde(default)]
    pub follow: bool,
    /// Call the archive's first component this; `.`: only what is in the directory has names.
    #[serde(default)]
    pub name: Option<String>,
}

/// What to take into the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Unpack {
    /// The directory in which the archive's entries come to be. It must be there.
    pub dir: String,
    /// Call the archive's first component this.
    #[serde(default)]
    pub rename: Option<String>,
    /// Whose all of it is, as in [`Exec::user`]. Default: as the archive says by number.
    #[serde(default)]
    pub owner: Option<String>,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Looked {
    /// Nothing.
    Nothing,
    /// A directory, or a link to one.
    Directory,
    /// Anything else.
    File {
        /// In bytes.
        size: u64,
    },
}

/// The agent's first frame back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is being done.
    Accepted {
        /// Of the command, if there is one.
        #[serde(default)]
        pid: Option<u32>,
        /// How many bytes of `Input` may be on their way that no [`Heard::Taken`] has told of: whoever sends more waits, so that a
        /// [`Control`] never stands behind input that the command does not read. 0: nothing is told, and nobody waits.
        #[serde(default)]
        window: u64,
    },
    /// It is not, and that is all.
    Refused {
        /// [`crate::PROTOCOL`] of the agent.
        protocol: u32,
        /// [`crate::VERSION`] of the agent.
        version: String,
        /// Why.
        why: Refusal,
    },
}

/// Why the agent does not do something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// It speaks another protocol, or does not know the request.
    Skew,
    /// There is no such command (as a shell's 127).
    NotFound(String),
    /// The command cannot be run (as a shell's 126).
    NotExecutable(String),
    /// Anything else, with the reason: no such user, no such directory, …
    Failed(String),
}

/// How something ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// By itself. A transfer that went well is 0.
    Exited(i32),
    /// By a signal.
    Signaled(i32),
    /// Of a transfer: it failed, for this reason.
    Failed(String),
}

/// What the agent says while it does something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heard {
    /// So many more bytes of `Input` have gone where they belong.
    Taken(u64),
    /// The last word.
    #[serde(untagged)]
    Ended(Ended),
}

/// The agent's first frame on its link to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Hello {
    /// [`crate::PROTOCOL`] of the agent.
    pub protocol: u32,
    /// [`crate::VERSION`] of the agent.
    pub version: String,
    /// The kernel's boot ID.
    pub boot_id: String,
    /// The agent is the guest's init: it is asked to power off.
    pub init: bool,
}

/// The host's answer: who the guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Welcome {
    /// [`crate::PROTOCOL`] of the host.
    pub protocol: u32,
    /// [`crate::VERSION`] of the host.
    pub version: String,
    /// The VM, drawn at random: a guest that knew another one before is a clone, and takes on all that follows.
    pub identity: String,
    /// The VM's name.
    pub hostname: String,
    /// MAC addresses of eth0, eth1, …, as `02:00:00:00:00:01`.
    pub macs: Vec<String>,
    /// 64 bytes for the kernel's random numbers, in hexadecimal.
    pub seed: String,
    /// The time in nanoseconds since 1970.
    pub time_ns: u64,
    /// The host's folders to mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
}

/// A folder of the host, which a virtio-fs device has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Mount {
    /// The device's tag.
    pub tag: String,
    /// Where to: an absolute path. Directories that are missing are made.
    pub path: String,
    /// Nothing in it can be changed.
    #[serde(default)]
    pub readonly: bool,
}

/// The agent has done as [`Welcome`] said, and takes requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Ready {
    /// How many of [`Welcome::mounts`] are mounted. An agent that knows of none says nothing.
    pub mounts: Option<usize>,
    /// Why one is not.
    pub unmounted: Option<String>,
}

/// What the agent says on a connection to the link's port that is for this alone: the command is done after which the guest is to be switched off
/// ([`Exec::then_power_off`]). The host answers with the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finished {
    /// The exit code as a shell says it: 128 and its number for a signal.
    pub finished: u8,
}

/// What the host says on the link later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// The power button was pressed. Said to an agent that is init.
    PowerOff,
}
