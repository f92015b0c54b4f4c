//! What the `vmm` thread waits for.

use std::sync::mpsc::Sender;

use devices::bus::Effect;

use crate::control::Request;
use crate::error::VmError;

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
    /// A vCPU of the guest's `boot`-th boot tells something; from an earlier boot, it is stale.
    Event {
        /// Counted from 0.
        boot: u64,
        /// What it tells.
        event: Event,
    },
}

/// The vCPUs' way to the `vmm` thread, for one boot of the guest.
#[derive(Clone)]
pub(crate) struct EventSender {
    messages: Sender<Message>,
    boot: u64,
}

impl EventSender {
    pub(crate) fn new(messages: Sender<Message>, boot: u64) -> Self {
        Self { messages, boot }
    }

    pub(crate) fn send(&self, event: Event) {
        // The `vmm` thread outlives the vCPUs; if it is gone all the same, nobody is there to be told.
        let _ = self.messages.send(Message::Event { boot: self.boot, event });
    }
}
