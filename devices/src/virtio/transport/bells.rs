//! The doorbells of one transport: which are registered now, and that they are taken back.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::irq::{Doorbell, Doorbells};

/// Doorbells that ring a device's kick events. Dropping it takes them back.
pub(super) struct Bells {
    registrar: Arc<dyn Doorbells>,
    kicks: Arc<[EventFd]>,
    placed: Vec<(Doorbell, usize)>,
}

impl Bells {
    /// None yet.
    pub(super) fn new(registrar: Arc<dyn Doorbells>, kicks: Arc<[EventFd]>) -> Self {
        Self { registrar, kicks, placed: Vec::new() }
    }

    /// Take back all doorbells and put one at `place(queue)` for each of `queues`. Where one cannot be put
    /// the guest's write reaches the transport, which is slower and otherwise the same.
    pub(super) fn place(&mut self, queues: &[u16], place: impl Fn(u16) -> Option<Doorbell>) {
        self.clear();
        for &queue in queues {
            let index = usize::from(queue);
            let (Some(bell), Some(kick)) = (place(queue), self.kicks.get(index)) else { continue };
            match self.registrar.register(bell, kick) {
                Ok(()) => self.placed.push((bell, index)),
                Err(error) => crate::ratelog::warn(format_args!(
                    "no doorbell at {:#x} for queue {queue}, which is slower: {error}",
                    bell.address
                )),
            }
        }
    }

    /// Take back all doorbells.
    pub(super) fn clear(&mut self) {
        for (bell, index) in self.placed.drain(..) {
            if let Some(kick) = self.kicks.get(index)
                && let Err(error) = self.registrar.unregister(bell, kick)
            {
                log::warn!("the doorbell at {:#x} cannot be taken back: {error}", bell.address);
            }
        }
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        self.clear();
    }
}
