//! What the vmm asks of the guest's balloon driver, and what the driver says.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::pages::PAGE;
use super::stats::GuestStats;
use crate::counters::Counter;
use crate::virtio::state::BalloonState;

/// The vmm's end of a balloon. It belongs to the VM: the target survives reboots of the guest. Cheap to clone, usable from
/// any thread, never blocks.
#[derive(Clone)]
pub struct BalloonControl(Arc<Shared>);

/// Lock order: the statistics' lock is taken alone.
struct Shared {
    /// In pages, as all that follow.
    target: AtomicU32,
    actual: AtomicU32,
    poison: AtomicU32,
    /// A driver has started the device and not reset it since.
    driver: AtomicBool,
    /// The target was changed and the driver not told.
    resized: AtomicBool,
    /// Somebody wants to know of the guest's memory.
    asked: AtomicBool,
    /// Wakes the device's thread for either.
    wake: EventFd,
    /// In bytes.
    reported: Counter,
    guest: Mutex<GuestStats>,
}

impl BalloonControl {
    /// Of a balloon that is to hold nothing.
    ///
    /// # Errors
    /// If the host has no more file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            poison: AtomicU32::new(0),
            driver: AtomicBool::new(false),
            resized: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
            reported: Counter::default(),
            guest: Mutex::default(),
        })))
    }

    /// Let the balloon hold `bytes` of the guest's memory, rounded down to whole pages. The driver obeys when it can.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        if self.0.target.swap(pages, Ordering::SeqCst) != pages {
            self.0.resized.store(true, Ordering::SeqCst);
            self.ring();
        }
    }

    /// How much the balloon holds, as its driver says, in bytes.
    #[must_use]
    pub fn held(&self) -> u64 {
        u64::from(self.actual_pages()) * PAGE
    }

    /// How much the guest has reported free and the host taken back since the VM started, in bytes.
    #[must_use]
    pub fn reported_free(&self) -> u64 {
        self.0.reported.get()
    }

    /// Whether there is a driver.
    #[must_use]
    pub fn has_driver(&self) -> bool {
        self.0.driver.load(Ordering::SeqCst)
    }

    /// Ask the driver to tell of the guest's memory anew; [`BalloonControl::guest`] has the answer some time later.
    pub fn ask(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// What the driver told last, by name and in bytes where that is the unit; nothing if there is no driver.
    #[must_use]
    pub fn guest(&self) -> GuestStats {
        self.lock().clone()
    }

    fn ring(&self) {
        // Fails only with the counter at its maximum, which wakes as well.
        let _ = self.0.wake.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, GuestStats> {
        self.0.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) -> io::Result<EventFd> {
        self.0.wake.try_clone()
    }

    pub(super) fn target_pages(&self) -> u32 {
        self.0.target.load(Ordering::SeqCst)
    }

    pub(super) fn actual_pages(&self) -> u32 {
        self.0.actual.load(Ordering::SeqCst)
    }

    pub(super) fn set_actual_pages(&self, pages: u32) {
        self.0.actual.store(pages, Ordering::SeqCst);
    }

    pub(super) fn poison(&self) -> u32 {
        self.0.poison.load(Ordering::SeqCst)
    }

    pub(super) fn set_poison(&self, value: u32) {
        self.0.poison.store(value, Ordering::SeqCst);
    }

    pub(super) fn set_driver(&self) {
        self.0.driver.store(true, Ordering::SeqCst);
    }

    pub(super) fn take_resized(&self) -> bool {
        self.0.resized.swap(false, Ordering::SeqCst)
    }

    pub(super) fn take_asked(&self) -> bool {
        self.0.asked.swap(false, Ordering::SeqCst)
    }

    pub(super) fn add_reported(&self, bytes: u64) {
        self.0.reported.add(bytes);
    }

    pub(super) fn set_guest(&self, stats: GuestStats) {
        *self.lock() = stats;
    }

    pub(super) fn save(&self) -> BalloonState {
        let shared = &*self.0;
        BalloonState {
            target: self.target_pages(),
            resized: shared.resized.load(Ordering::SeqCst),
            actual: self.actual_pages(),
            poison: self.poison(),
            driver: self.has_driver(),
        }
    }

    /// Any state can be: the target is what a user asked for, and the rest the word of a driver.
    pub(super) fn restore(&self, state: &BalloonState) {
        let &BalloonState { target, resized, actual, poison, driver } = state;
        let shared = &*self.0;
        shared.target.store(target, Ordering::SeqCst);
        shared.actual.store(actual, Ordering::SeqCst);
        shared.poison.store(poison, Ordering::SeqCst);
        shared.driver.store(driver, Ordering::SeqCst);
        shared.resized.store(resized, Ordering::SeqCst);
        self.lock().clear();
        // The device's thread is to look at what is asked when it is there.
        self.ring();
    }

    /// The driver is gone, and so is what it said. The next one reads the target by itself.
    pub(super) fn forget(&self) {
        let shared = &*self.0;
        shared.driver.store(false, Ordering::SeqCst);
        shared.actual.store(0, Ordering::SeqCst);
        shared.poison.store(0, Ordering::SeqCst);
        shared.resized.store(false, Ordering::SeqCst);
        self.lock().clear();
    }
}
