//! virtio-vsock: stream sockets between guest and host (virtio 1.2, 5.10).
//!
//! On the host they are Unix sockets, as Firecracker and Cloud Hypervisor have them: a client that connects to the VM's
//! socket ([`VsockListener`]) and writes `CONNECT PORT\n` is connected to that port of the guest and told `OK HOSTPORT\n`;
//! what the guest connects to on port P of the host (CID 2) is whoever listens at the same path with `_P` after it.
//!
//! ```text
//!  client ── PATH ──────► listener ─┐                       ┌─► receiveq   (to the guest)
//!                                   ├─► Hub: connections ◄──┤
//!  server ◄── PATH_PORT ────────────┘     (dev:<id>)        ◄── transmitq  (from the guest)
//!                                                           └─► eventq
//! ```
//!
//! `dev:<id>` owns the queues and the connections ([`hub`]) while the device is active. A device that is stopped keeps its
//! connections; one that its driver resets drops them. Payload goes between sockets and guest memory by one system call
//! without a copy in between; what a socket has no room for waits in a buffer whose size is the credit that the guest was
//! given. The listener belongs to the VM: clients that come while the guest has no driver wait.

mod credit;
mod guest;
mod host;
mod hub;
mod link;
mod listener;
mod packet;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::hub::Hub;
use self::worker::{FIRST_ID, State};
use super::device::{
    ActivateError, Activation, DeviceKind, RING_FEATURES, VirtioDevice, read_space, take_queue,
};
use super::queue::Queue;
use super::state::{DeviceState, VsockState};
use crate::counters::Counters;
use crate::state::RestoreError;
use crate::worker::Worker;

pub use listener::{MAX_VSOCK_PATH, VsockError, VsockListener};

/// Context IDs that a guest can have: those below are reserved, the last means any (5.10.4).
pub const GUEST_CIDS: std::ops::RangeInclusive<u32> = 3..=0xffff_fffe;

/// Entries of receiveq, transmitq and eventq.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// The device.
pub struct Vsock {
    id: String,
    cid: u32,
    listener: Arc<VsockListener>,
    counters: Arc<Counters>,
    reset: Arc<EventFd>,
    /// How long the guest may take to accept a connection.
    answer: Duration,
    /// The connections while it is stopped.
    hub: Option<Hub>,
    worker: Option<Worker<State>>,
}

/// A way to tell the guest that its connections are void. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct TransportReset(Arc<EventFd>);

impl TransportReset {
    /// Drop every connection that the guest knows, and tell it so (5.10.6.7): after it was restored, its ends of them are
    /// older than the host's. If the device is not active it does so when it is.
    pub fn send(&self) {
        // Fails only with the counter at its maximum, which rings as well.
        let _ = self.0.write(1);
    }
}

impl Vsock {
    /// A device called `id`, whose guest has the context ID `cid`, one of [`GUEST_CIDS`].
    ///
    /// # Errors
    /// If the host has no more file descriptors.
    pub fn new(
        id: &str,
        cid: u32,
        listener: Arc<VsockListener>,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        let reset = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (id, answer) = (id.to_owned(), hub::ANSWER);
        Ok(Self { id, cid, listener, counters, reset, answer, hub: None, worker: None })
    }

    /// What tells the guest that its connections are void.
    #[must_use]
    pub fn transport_reset(&self) -> TransportReset {
        TransportReset(Arc::clone(&self.reset))
    }

    fn hub(&mut self) -> std::io::Result<Hub> {
        let mut hub = match self.hub.take() {
            Some(hub) => hub,
            None => Hub::new(self.cid, Arc::clone(&self.listener), Arc::clone(&self.counters), FIRST_ID)?,
        };
        hub.answer = self.answer;
        hub.resume()?;
        Ok(hub)
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn id(&self) -> &str {
        &self.id
    }

    /// Of the device's own features none: stream sockets are what a driver gets that accepts nothing (5.10.3).
    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `guest_cid` (5.10.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.cid).to_le_bytes();
        read_space(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { ram, mut queues, interrupt, .. } = activation;
        let mut take = |index| take_queue(&mut queues, index);
        let (receive, transmit, event) = (take(0)?, take(1)?, take(2)?);
        let reset = self.reset.try_clone().map_err(ActivateError::Events)?;
        let hub = self.hub().map_err(ActivateError::Events)?;
        let state = State { id: self.id.clone(), ram, interrupt, receive, transmit, event, hub, reset };
        state.watch().map_err(ActivateError::Events)?;
        let name = format!("dev:{}", self.id);
        let worker = Worker::start(&name, state, State::run);
        self.worker = Some(worker.map_err(|source| ActivateError::Thread { name, source })?);
        Ok(())
    }

    fn stop(&mut self) -> Vec<Queue> {
        let Some(state) = self.worker.take().and_then(Worker::stop) else { return Vec::new() };
        self.hub = Some(state.hub);
        vec![state.receive, state.transmit, state.event]
    }

    /// The guest's driver forgets its connections: so does the device.
    fn reset(&mut self) {
        self.hub = None;
        let _ = self.reset.read();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock(VsockState {})
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock(VsockState {}) = state else { return Err(state.is_not(&self.id, "vsock")) };
        // Whatever connections the guest knows, here are none of them.
        self.transport_reset().send();
        Ok(())
    }
}

#[cfg(test)]
#[path = "vsock/tests.rs"]
mod tests;
