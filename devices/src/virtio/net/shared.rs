//! What the threads of one device and the device object know of each other: the link, and which queue pairs are in use.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::device::Interrupt;

/// How far the thread of a queue pair is with what was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// It has no port.
    Off,
    /// It has one.
    On,
    /// The back end gave it none.
    Failed,
}

/// One queue pair as the others see it.
#[derive(Debug)]
struct Side {
    state: AtomicU8,
    /// Something here changed that it has to look at.
    news: EventFd,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Shared {
    link_up: AtomicBool,
    /// How many pairs the driver wants to use: those with smaller indexes.
    wanted: AtomicU16,
    /// What the driver asked to be given since the features were agreed on, as bits of features. Locked alone.
    offloads: Mutex<Option<u64>>,
    sides: Vec<Side>,
}

impl Shared {
    /// Of `pairs` queue pairs, of which one is used.
    pub(super) fn new(pairs: u16) -> io::Result<Arc<Self>> {
        let side = |_| Ok(Side { state: AtomicU8::new(0), news: EventFd::new(EFD_NONBLOCK)? });
        let sides = (0..pairs).map(side).collect::<io::Result<_>>()?;
        let (link_up, wanted) = (AtomicBool::new(true), AtomicU16::new(1));
        Ok(Arc::new(Self { link_up, wanted, offloads: Mutex::default(), sides }))
    }

    pub(super) fn link_up(&self) -> bool {
        self.link_up.load(Ordering::SeqCst)
    }

    /// The network is there, or not. Tells the guest if that is new, and returns whether it is.
    pub(super) fn set_link(&self, up: bool, interrupt: &Interrupt) -> bool {
        // Read first: it is asked for each frame.
        let new = self.link_up() != up && self.link_up.swap(up, Ordering::SeqCst) != up;
        if new {
            interrupt.config_changed();
        }
        new
    }

    /// The link is as it was saved; nobody is told.
    pub(super) fn restore_link(&self, up: bool) {
        self.link_up.store(up, Ordering::SeqCst);
    }

    /// What the driver asked to be given, if it did.
    pub(super) fn offloads(&self) -> Option<u64> {
        *self.offloads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver asked to be given these and no others; `None` is what was agreed on.
    pub(super) fn set_offloads(&self, bits: Option<u64>) {
        *self.offloads.lock().unwrap_or_else(PoisonError::into_inner) = bits;
    }

    /// What pair `index` is woken by.
    pub(super) fn news(&self, index: u16) -> io::Result<EventFd> {
        let side = self.sides.get(usize::from(index)).ok_or(io::ErrorKind::NotFound)?;
        side.news.try_clone()
    }

    pub(super) fn wanted(&self) -> u16 {
        self.wanted.load(Ordering::SeqCst)
    }

    /// The driver wants to use `pairs`, or the device was reset.
    pub(super) fn want(&self, pairs: u16) {
        if self.wanted.swap(pairs, Ordering::SeqCst) != pairs {
            self.sides.iter().for_each(|side| ring(&side.news));
        }
    }

    /// Pair `index` has come so far.
    pub(super) fn reached(&self, index: u16, state: State) {
        if let Some(side) = self.sides.get(usize::from(index)) {
            side.state.store(state as u8, Ordering::SeqCst);
        }
        // The first has the control queue.
        self.sides.iter().take(1).for_each(|first| ring(&first.news));
    }

    /// Whether the pairs do as wanted: `None` while some do not yet, false if one cannot.
    pub(super) fn settled(&self) -> Option<bool> {
        let wanted = self.wanted();
        let mut settled = Some(true);
        // The first is always in use.
        for (index, side) in (0_u16..).zip(&self.sides).skip(1) {
            let state = side.state.load(Ordering::SeqCst);
            if index < wanted && state == State::Failed as u8 {
                return Some(false);
            }
            let goal = if index < wanted { State::On } else { State::Off };
            if state != goal as u8 {
                settled = None;
            }
        }
        settled
    }
}

fn ring(event: &EventFd) {
    // Fails only with the counter at its maximum, which rings as well.
    let _ = event.write(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_settled_when_each_does_as_wanted() {
        let shared = Shared::new(3).unwrap();
        assert_eq!((shared.wanted(), shared.settled()), (1, Some(true)));
        shared.want(3);
        assert!(shared.news(2).unwrap().read().is_ok());
        assert_eq!(shared.settled(), None);
        shared.reached(2, State::On);
        assert_eq!(shared.settled(), None);
        shared.reached(1, State::Failed);
        assert_eq!(shared.settled(), Some(false));
        shared.want(1);
        assert_eq!(shared.settled(), None);
        shared.reached(1, State::Off);
        shared.reached(2, State::Off);
        assert_eq!(shared.settled(), Some(true));
    }
}
