//! The two devices that can be typed at.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use devices::legacy::serial::SerialPort;
use devices::virtio::console::ConsoleInput;
use vmm_sys_util::eventfd::EventFd;

use crate::console::InputPort;

/// The serial port. It belongs to its board: what it printed last must be out when that is gone, whoever still types.
pub(super) struct Serial {
    port: Weak<Mutex<SerialPort>>,
    room: EventFd,
}

impl Serial {
    /// `room` is what the port signals when it has room.
    pub(super) fn new(port: &Arc<Mutex<SerialPort>>, room: EventFd) -> Self {
        Self { port: Arc::downgrade(port), room }
    }
}

impl InputPort for Serial {
    fn push(&self, bytes: &[u8]) -> usize {
        // While the guest reboots there is none.
        let Some(port) = self.port.upgrade() else { return 0 };
        port.lock().unwrap_or_else(PoisonError::into_inner).enqueue(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use devices::irq::IrqLine;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use crate::console::Console;

    #[test]
    fn a_connected_console_does_not_keep_a_port_of_an_old_board() {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let port = SerialPort::new(IrqLine::new(event()), Box::new(std::io::sink()), event(), None).unwrap();
        let port = Arc::new(Mutex::new(port));
        let console = Console::default();
        let input = Serial::new(&port, event());
        let old = Arc::downgrade(&port);
        console.connect(Some(Arc::new(input)));
        drop(port);
        assert!(old.upgrade().is_none());
    }
}
