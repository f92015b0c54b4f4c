//! The two devices that can be typed at.

use std::sync::{Arc, Mutex, PoisonError};

use devices::legacy::serial::SerialPort;
use devices::virtio::console::ConsoleInput;
use vmm_sys_util::eventfd::EventFd;

use crate::console::InputPort;

/// The serial port.
pub(super) struct Serial {
    port: Arc<Mutex<SerialPort>>,
    room: EventFd,
}

impl Serial {
    /// `room` is what the port signals when it has room.
    pub(super) fn new(port: Arc<Mutex<SerialPort>>, room: EventFd) -> Self {
        Self { port, room }
    }
}

impl InputPort for Serial {
    fn push(&self, bytes: &[u8]) -> usize {
        self.port.lock().unwrap_or_else(PoisonError::into_inner).enqueue(bytes)
    }

    fn room(&self) -> &EventFd {
        &self.room
    }
}

impl InputPort for ConsoleInput {
    fn push(&self, bytes: &[u8]) -> usize {
        Self::push(self, bytes)
    }

    fn room(&self) -> &EventFd {
        Self::room(self)
    }
}
