//! The words of the control socket.

use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::control::{Outcome, VmAction, VmReply};

/// What a client asks, one JSON value a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Do this.
    Act(VmAction),
    /// Join the console that leads to `stdio`. The answer is [`Response::Attached`], and from then on the connection carries
    /// [`Frame`]s.
    Attach(Attach),
    /// Answer with [`Response::Ended`] once the VM has ended.
    Wait,
    /// Answer with [`Response::Ready`] once the agent in the guest takes requests, at once if it does already, or with
    /// [`Response::Ended`] if the VM ends before.
    WaitReady,
}

/// How to join the console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// Send what the guest prints.
    pub output: bool,
    /// Begin with what it printed before, as far as it is kept.
    pub history: bool,
}

/// What the VM answers, one JSON value a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Act`]. After [`VmReply::Progress`] another follows.
    Reply(VmReply),
    /// To [`Request::Attach`].
    Attached,
    /// To [`Request::Wait`].
    Ended(Ended),
    /// To [`Request::WaitReady`].
    Ready(Agent),
    /// The request cannot be understood or not be served; the text says why and what to do.
    Error(String),
}

/// How a VM ended, for who was not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// As the guest or a user wanted.
    Outcome(Outcome),
    /// By a failure of the host, or a guest that this host cannot run.
    Failed(String),
}

/// A piece of an attached console's stream. On the wire: one byte of kind, four of length (little-endian), the content, of at most
/// [`MAX_FRAME`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// From the VM: what the guest printed.
    Output(Vec<u8>),
    /// From the VM: this many bytes were left out since this viewer was too slow.
    Skipped(u64),
    /// From the VM: it has ended, and nothing follows.
    Ended(Ended),
    /// To the VM: the viewer leaves, and the VM is to live on whoever it belonged to.
    Detach,
    /// To the VM: type this.
    Input(Vec<u8>),
    /// To the VM: the viewer's terminal is this large.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
}

/// The longest content of a [`Frame`], in bytes.
pub const MAX_FRAME: usize = 64 * 1024;
