//! A virtio device that the crate has no name for, by its registers (virtio 1.2, 4.1.4.3 and 4.2.2).

use alloc::vec::Vec;

use virtio_drivers::transport::pci::bus::ConfigurationAccess;

use crate::ring::{Buffer, F_VERSION_1, Ring};
use crate::{acpi, clock, pci, virtio};

const MAGIC: u32 = 0x7472_6976;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK.
const STATUS: [u8; 4] = [1, 3, 11, 15];

/// Where its registers are.
#[derive(Clone, Copy)]
enum Place {
    Pci { common: u64, notify: u64, multiplier: u32, config: u64 },
    Mmio(u64),
}

/// The device, with no features but that it is of today.
pub struct Raw {
    place: Place,
    /// Its queues.
    pub rings: Vec<Ring>,
}

fn get32(at: u64) -> u32 {
    // SAFETY: a register of a device.
    unsafe { (at as *const u32).read_volatile() }
}

fn set32(at: u64, value: u32) {
    // SAFETY: as above.
    unsafe { (at as *mut u32).write_volatile(value) }
}

fn get16(at: u64) -> u16 {
    // SAFETY: as above.
    unsafe { (at as *const u16).read_volatile() }
}

fn set16(at: u64, value: u16) {
    // SAFETY: as above.
    unsafe { (at as *mut u16).write_volatile(value) }
}

fn get8(at: u64) -> u8 {
    // SAFETY: as above.
    unsafe { (at as *const u8).read_volatile() }
}

fn set8(at: u64, value: u8) {
    // SAFETY: as above.
    unsafe { (at as *mut u8).write_volatile(value) }
}

/// The first device with this virtio ID.
fn find(id: u16) -> Option<Place> {
    if acpi::ecam().is_some() {
        pci::assign();
        let wanted = 0x1af4 | (0x1040 + u32::from(id)) << 16;
        for device in 0..32 {
            let function = pci::function(device, 0);
            if pci::memory().read_word(function, 0) == wanted {
                let (common, _) = pci::virtio_config(function, 1)?;
                let (notify, multiplier) = pci::virtio_config(function, 2)?;
                let (config, _) = pci::virtio_config(function, 4)?;
                return Some(Place::Pci { common, notify, multiplier, config });
            }
        }
    }
    let is_it = |at: &u64| get32(*at) == MAGIC && get32(at + 8) == u32::from(id);
    virtio::slots().map(|(at, _)| at).find(is_it).map(Place::Mmio)
}

impl Raw {
    /// Start the first device with this virtio ID, its queues no longer than `max_size`.
    pub fn start(id: u16, max_size: u16) -> Option<Self> {
        let place = find(id)?;
        let mut device = Self { place, rings: Vec::new() };
        device.set_status(0);
        clock::until(1000, || device.status() == 0);
        device.set_status(STATUS[0]);
        device.set_status(STATUS[1]);
        device.set_features(F_VERSION_1);
        device.set_status(STATUS[2]);
        while let size @ 1.. = device.select(device.rings.len() as u16) {
            let ring = Ring::new(size.min(max_size), false);
            device.enable(&ring);
            device.rings.push(ring);
        }
        device.set_status(STATUS[3]);
        Some(device)
    }

    /// Its status register.
    pub fn status(&self) -> u8 {
        match self.place {
            Place::Pci { common, .. } => get8(common + 20),
            Place::Mmio(at) => get32(at + 0x70) as u8,
        }
    }

    fn set_status(&self, status: u8) {
        match self.place {
            Place::Pci { common, .. } => set8(common + 20, status),
            Place::Mmio(at) => set32(at + 0x70, status.into()),
        }
    }

    fn set_features(&self, features: u64) {
        for half in 0..2 {
            let word = (features >> (32 * half)) as u32;
            match self.place {
                Place::Pci { common, .. } => {
                    set32(common + 8, half);
                    set32(common + 12, word);
                }
                Place::Mmio(at) => {
                    set32(at + 0x24, half);
                    set32(at + 0x20, word);
                }
            }
        }
    }

    /// Turn to queue `index`; how long it may be.
    fn select(&self, index: u16) -> u16 {
        match self.place {
            Place::Pci { common, .. } => {
                if index >= get16(common + 18) {
                    return 0;
                }
                set16(common + 22, index);
                get16(common + 24)
            }
            Place::Mmio(at) => {
                set32(at + 0x30, index.into());
                get32(at + 0x34) as u16
            }
        }
    }

    fn enable(&self, ring: &Ring) {
        let parts = [ring.table(), ring.driver(), ring.device()];
        match self.place {
            Place::Pci { common, .. } => {
                set16(common + 24, ring.size);
                for (at, part) in [32, 40, 48].into_iter().zip(parts) {
                    set32(common + at, part as u32);
                    set32(common + at + 4, (part >> 32) as u32);
                }
                set16(common + 28, 1);
            }
            Place::Mmio(base) => {
                set32(base + 0x38, ring.size.into());
                for (at, part) in [0x80, 0x90, 0xa0].into_iter().zip(parts) {
                    set32(base + at, part as u32);
                    set32(base + at + 4, (part >> 32) as u32);
                }
                set32(base + 0x44, 1);
            }
        }
    }

    fn notify(&self, index: u16) {
        match self.place {
            Place::Pci { common, notify, multiplier, .. } => {
                set16(common + 22, index);
                let offset = u64::from(get16(common + 30)) * u64::from(multiplier);
                set16(notify + offset, index);
            }
            Place::Mmio(at) => set32(at + 0x50, index.into()),
        }
    }

    /// A byte of its configuration space.
    pub fn config(&self, at: u64) -> u8 {
        match self.place {
            Place::Pci { config, .. } => get8(config + at),
            Place::Mmio(base) => get8(base + 0x100 + at),
        }
    }

    /// Send one request on queue `index` and wait for its end. `None` if that takes longer than ten seconds, else the used length.
    pub fn request(&mut self, index: u16, buffers: &[Buffer]) -> Option<u32> {
        let ring = self.rings.get_mut(usize::from(index))?;
        let head = ring.chain(buffers);
        ring.offer(head);
        if ring.publish(0) {
            self.notify(index);
        }
        let ring = self.rings.get_mut(usize::from(index))?;
        let mut used = None;
        clock::until(10_000, || {
            used = ring.take();
            used.is_some()
        });
        used.map(|(_, len)| len)
    }
}
