//! What can be asked of a running VM, and how it can end.
//!
//! Everything goes through one channel to the `vmm` thread, which serves one event at a time. A [`Vm`] is the
//! owner's end of it; a [`Controller`] is a clonable one for other threads.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use serde::{Deserialize, Serialize};

use crate::agent::Agent;
use crate::agent::readiness::Readiness;
use crate::console::Console;
use crate::error::VmError;
use crate::event::Message;
use crate::snapshot::Id;
use crate::stats::VmStats;

/// What can be asked of a running VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmAction {
    /// Press the ACPI power button.
    PressPowerButton,
    /// Tell the guest that its virtio console is this large.
    ResizeConsole {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Stop vCPUs and devices where they are. Asked again, nothing more happens.
    Pause,
    /// Let a paused VM go on.
    Resume,
    /// Say what it is doing: answered with [`VmReply::State`].
    State,
    /// Count: answered with [`VmReply::Stats`].
    Stats,
    /// The file of this disk has, or is to have, this size; tell the guest. A disk only grows.
    ResizeDisk {
        /// Such as `disk0`.
        disk: String,
        /// In bytes, a multiple of 512.
        size: u64,
    },
    /// Leave the guest this much of its memory, and take the rest by the balloon. Returns before the guest has obeyed.
    ResizeMemory {
        /// In bytes.
        size: u64,
    },
    /// Take a snapshot. The guest stands still for a moment only; the rest is done while it runs. Answered with
    /// [`VmReply::Progress`] now and then, and [`VmReply::Snapshot`] when it is durable.
    Snapshot {
        /// What it is to be called among files: a new one.
        id: Id,
        /// What users call it.
        name: String,
        /// What its maker has to say.
        comment: String,
    },
    /// Put the VM back to what it was at a snapshot, and let it run. Answered with [`VmReply::RolledBack`].
    Rollback {
        /// Which.
        snapshot: Id,
    },
    /// From now on, when the guest's kernel says that it has panicked, pause the VM where it is instead of ending it.
    StopOnPanic,
    /// End the VM at once, as pulling the plug would.
    Kill,
}

/// The answer to a [`VmAction`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmReply {
    /// Done.
    Done,
    /// To [`VmAction::State`].
    State(RunState),
    /// To [`VmAction::Stats`].
    Stats(Box<VmStats>),
    /// To [`VmAction::Snapshot`], which is not done yet: another answer follows. At least one a second.
    Progress {
        /// How much of the guest's memory has been looked at, in bytes.
        done: u64,
        /// How much there is to look at.
        total: u64,
    },
    /// To [`VmAction::Snapshot`]: it is there, and will be after a crash of the host.
    Snapshot {
        /// How long the guest stood still, in microseconds.
        pause_us: u64,
        /// How long all of it took, in microseconds.
        total_us: u64,
        /// How much of the guest's memory was written, in bytes.
        memory_bytes: u64,
        /// What the disks' layers that it has frozen occupy, in bytes.
        disk_bytes: u64,
    },
    /// To [`VmAction::Rollback`].
    RolledBack {
        /// How long it took until the guest ran again, in microseconds.
        us: u64,
    },
    /// It cannot be done; the text names the thing and the fix.
    Refused(String),
    /// The VM has ended already.
    Ended,
}

/// What a VM that has not ended is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Its vCPUs run.
    Running,
    /// It was paused.
    Paused,
    /// It was paused when its guest's kernel panicked ([`VmAction::StopOnPanic`]).
    Panicked,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest switched itself off after the command that it was for.
    Finished {
        /// The command's exit code, as a shell says it.
        code: u8,
    },
    /// The guest's kernel panicked; these are the last lines it printed, oldest first.
    Panicked {
        /// The last lines of the guest's consoles.
        last_lines: Vec<String>,
    },
    /// It was killed.
    Killed,
}

/// An action on its way to the `vmm` thread.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) action: VmAction,
    pub(crate) reply: Sender<VmReply>,
}

/// A way to a running VM for any thread.
#[derive(Clone)]
pub struct Controller {
    messages: Sender<Message>,
    console: Arc<Console>,
    readiness: Option<Arc<Readiness>>,
}

impl Controller {
    pub(crate) fn new(
        messages: Sender<Message>,
        console: Arc<Console>,
        readiness: Option<Arc<Readiness>>,
    ) -> Self {
        Self { messages, console, readiness }
    }

    /// The agent in the guest, if it takes requests.
    #[must_use]
    pub fn agent(&self) -> Option<Agent> {
        self.readiness.as_ref()?.agent()
    }

    /// Whether it does, for those who wait. `None`: the agent has no way to say so.
    pub(crate) fn readiness(&self) -> Option<&Readiness> {
        self.readiness.as_deref()
    }

    /// Ask for something and wait until it is done.
    #[must_use]
    pub fn act(&self, action: VmAction) -> VmReply {
        let answers = self.request(action);
        // A channel that closes without a last word is that of a VM that has ended.
        answers.into_iter().find(|reply| !matches!(reply, VmReply::Progress { .. })).unwrap_or(VmReply::Ended)
    }

    /// Ask for something without waiting: never blocks, whatever the VM is busy with. The answer, for who wants
    /// it, comes by the channel, after any number of [`VmReply::Progress`]; it closes without one if the VM has ended.
    pub fn request(&self, action: VmAction) -> Receiver<VmReply> {
        if action == VmAction::Kill {
            // At once: the `vmm` thread may itself wait for a vCPU that waits for a reader of its output.
            self.console.cut();
        }
        let (reply, answer) = mpsc::channel();
        // A VM that has ended drops the request, and the channel with it.
        let _ = self.messages.send(Message::Request(Request { action, reply }));
        answer
    }

    /// Type `bytes` on the console that leads to standard input. Blocks until the guest has taken
    /// them or the VM has ended.
    pub fn input(&self, bytes: &[u8]) {
        self.console.input(bytes);
    }

    /// The console, for those who watch it.
    pub(crate) fn console(&self) -> &Console {
        &self.console
    }
}

/// A running VM. Dropping it leaves it running without an owner; [`Vm::wait`] is its end.
pub struct Vm {
    controller: Controller,
    outcome: Receiver<Result<Outcome, VmError>>,
}

impl Vm {
    pub(crate) fn new(
        messages: Sender<Message>,
        console: Arc<Console>,
        readiness: Option<Arc<Readiness>>,
        outcome: Receiver<Result<Outcome, VmError>>,
    ) -> Self {
        Self { controller: Controller::new(messages, console, readiness), outcome }
    }

    /// A way to this VM for another thread.
    #[must_use]
    pub fn controller(&self) -> Controller {
        self.controller.clone()
    }

    /// Wait until the VM has ended.
    ///
    /// # Errors
    /// If it ended by a failure of the host or a guest that this host cannot run.
    pub fn wait(self) -> Result<Outcome, VmError> {
        self.outcome.recv().unwrap_or(Err(VmError::Vanished))
    }
}
