//! How a disk grows while a guest uses it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, DiskError};
use crate::virtio::device::Interrupt;

/// The vmm's way to make a block device's disk larger. Works whether the device is active or not. Cheap to clone, usable
/// from any thread.
#[derive(Clone)]
pub struct Resizer {
    disk: Arc<Disk>,
    driver: Arc<Driver>,
}

/// Whom to tell.
#[derive(Default)]
pub(super) struct Driver {
    /// Lock order: after the transport's, and held while the guest is interrupted, so that no interrupt comes after a stop. To
    /// interrupt takes no lock of the transport.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// While the device is active.
    interrupt: Option<Interrupt>,
    /// The size changed while it was not.
    untold: bool,
}

impl Resizer {
    pub(super) fn new(disk: Arc<Disk>, driver: Arc<Driver>) -> Self {
        Self { disk, driver }
    }

    /// Make the disk `size` bytes large, as [`Disk::resize`] does, and tell the guest (virtio 1.2, 5.2.5). If it is that large already
    /// nothing happens.
    ///
    /// # Errors
    /// Those of [`Disk::resize`].
    pub fn resize(&self, size: u64) -> Result<(), DiskError> {
        let before = self.disk.size();
        self.disk.resize(size)?;
        if self.disk.size() != before {
            self.driver.tell();
        }
        Ok(())
    }
}

impl Driver {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size changed while no driver could be told.
    pub(super) fn is_untold(&self) -> bool {
        self.lock().untold
    }

    /// The size changed.
    pub(super) fn tell(&self) {
        let mut inner = self.lock();
        match &inner.interrupt {
            Some(interrupt) => interrupt.config_changed(),
            None => inner.untold = true,
        }
    }

    /// The device is active. A driver that read the size before, or that was paused, is told what it missed.
    pub(super) fn started(&self, interrupt: &Interrupt) {
        let mut inner = self.lock();
        if std::mem::take(&mut inner.untold) {
            interrupt.config_changed();
        }
        inner.interrupt = Some(interrupt.clone());
    }

    /// The device is not active any more.
    pub(super) fn stopped(&self) {
        self.lock().interrupt = None;
    }
}
