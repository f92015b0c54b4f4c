//! What the `vmm` thread waits for.

use std::sync::mpsc::Sender;

use devices::bus::Effect;

use crate::control::Request;
use crate::error::VmError;
use crate::machine::Done;

/// What a vCPU tells the `vmm` thread. That vCPU waits for the end of this boot, except after [`Event::Booted`].
#[derive(Debug)]
pub(crate) enum Event {
    /// A driver has started its virtio device, the first of this boot.
    Booted,
    /// Its access asks something of the whole machine.
    Effect(Effect),
    /// The guest's processor shut down: a triple fault.
    TripleFault,
    /// It cannot go on.
    Failed(VmError),
}

/// One thing for the `vmm` thread to act on.
#[derive(Debug)]
pub(crate) enum Message {
    /// Somebody asks for something.
    Request(Request),
    /// A vCPU tells something; one of an earlier machine is stale.
    Event {
        /// Which machine of this VM, counted from 0.
        life: u64,
        /// What it tells.
        event: Event,
    },
    /// A snapshot was made, or could not be.
    Saved(Box<Done>),
}

/// The vCPUs' way to the `vmm` thread, for one machine.
#[derive(Clone)]
pub(crate) struct EventSender {
    messages: Sender<Message>,
    life: u64,
}

impl EventSender {
    pub(crate) fn new(messages: Sender<Message>, life: u64) -> Self {
        Self { messages, life }
    }

    /// Which machine of the VM it is.
    pub(crate) fn life(&self) -> u64 {
        self.life
    }

    pub(crate) fn send(&self, event: Event) {
        // The `vmm` thread outlives the vCPUs; if it is gone all the same, nobody is there to be told.
        let _ = self.messages.send(Message::Event { life: self.life, event });
    }
}
