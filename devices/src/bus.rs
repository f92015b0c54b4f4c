//! The address spaces that a vCPU's exits land in: one [`Bus`] for MMIO, one for port I/O.
//!
//! A bus maps ranges to devices. vCPU threads read and write it concurrently; ranges change only when the
//! guest moves a PCI BAR. What an access does to the machine as a whole is *returned* as an [`Effect`]
//! and acted on by the vmm after every lock is dropped.
//!
//! Lock order: the range table (read) is released before a device's lock is taken. No device calls out
//! with its lock held.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// What a guest's write asks of the whole machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an effect that is dropped is a guest request that is lost"]
pub enum Effect {
    /// Nothing beyond the device itself.
    None,
    /// The guest switched itself off (ACPI S5).
    Shutdown,
    /// The guest asked for a reset (ACPI reset register, i8042, port 0xcf9).
    Reset,
    /// The guest's kernel says that it panicked (pvpanic).
    Panicked,
    /// A driver has started its virtio device (DRIVER_OK): whoever waits for the guest's kernel may know.
    DriverReady,
    /// The guest moved, enabled or disabled PCI BARs: `pci::PciHost::settle_bars` puts their ranges where
    /// configuration space says, before the vCPU runs on.
    MoveBars,
}

/// A device that answers a range of a bus. Offsets are relative to the start of its range.
pub trait BusDevice: Send {
    /// Fill `data` from the registers at `offset`. Registers that do not exist read as all ones or zero,
    /// as the hardware's do; this never fails.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Write `data` to the registers at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]) -> Effect;
}

/// A device as a bus holds it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// A range could not be put on the bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or runs past the end of the address space.
    #[error("the range {base:#x}+{len:#x} is empty or wraps around")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device answers part of the range.
    #[error("the range {base:#x}+{len:#x} overlaps a device at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
        /// Where the other device starts.
        other: u64,
    },
}

struct Entry {
    len: u64,
    device: SharedDevice,
}

/// One address space.
#[derive(Default)]
pub struct Bus {
    ranges: RwLock<BTreeMap<u64, Entry>>,
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Let `device` answer `len` bytes from `base`.
    ///
    /// # Errors
    /// If the range is empty, wraps, or overlaps another.
    pub fn insert(&self, base: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let last = match len.checked_sub(1).and_then(|l| base.checked_add(l)) {
            Some(last) => last,
            None => return Err(BusError::BadRange { base, len }),
        };
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        // Ranges never overlap, so only the last one that starts at or below our end can reach into us.
        if let Some((&other, entry)) = ranges.range(..=last).next_back()
            && other.saturating_add(entry.len - 1) >= base
        {
            return Err(BusError::Overlap { base, len, other });
        }
        ranges.insert(base, Entry { len, device });
        Ok(())
    }

    /// Take away the range that starts at `base`, and return its device.
    pub fn remove(&self, base: u64) -> Option<SharedDevice> {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        ranges.remove(&base).map(|entry| entry.device)
    }

    /// Read `data.len()` bytes at `addr`. Where no device answers, all ones, and `false`.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((offset, device)) => {
                lock(&device).read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Write `data` at `addr`. Where no device answers it is dropped.
    pub fn write(&self, addr: u64, data: &[u8]) -> Effect {
        match self.find(addr, data.len()) {
            Some((offset, device)) => lock(&device).write(offset, data),
            None => Effect::None,
        }
    }

    /// The device whose range holds all of `[addr, addr + len)`, and the offset into it.
    fn find(&self, addr: u64, len: usize) -> Option<(u64, SharedDevice)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (&base, entry) = ranges.range(..=addr).next_back()?;
        let offset = addr - base;
        let end = offset.checked_add(len as u64)?;
        (end <= entry.len).then(|| (offset, Arc::clone(&entry.device)))
    }
}

/// A poisoned lock means that a device's thread panicked; its registers are still there to be read.
fn lock<T: ?Sized>(device: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Probe(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
            self.0.push((offset, data.to_vec()));
            Effect::Reset
        }
    }

    fn probe() -> Arc<Mutex<Probe>> {
        Arc::new(Mutex::new(Probe(Vec::new())))
    }

    #[test]
    fn accesses_reach_the_device_with_an_offset_into_its_range() {
        let bus = Bus::new();
        let device = probe();
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        let mut data = [0; 4];
        assert!(bus.read(0x1008, &mut data));
        assert_eq!(data, [8; 4]);
        assert_eq!(bus.write(0x100c, &[1, 2, 3, 4]), Effect::Reset);
        assert_eq!(device.lock().unwrap().0, [(0xc, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn nothing_answers_outside_or_across_the_end_of_a_range() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x10, probe()).unwrap();
        for addr in [0xffc, 0x100d, 0x1010, u64::MAX] {
            let mut data = [0; 4];
            assert!(!bus.read(addr, &mut data), "{addr:#x}");
            assert_eq!(data, [0xff; 4]);
            assert_eq!(bus.write(addr, &data), Effect::None);
        }
    }

    #[test]
    fn overlaps_and_empty_ranges_are_refused() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x10, probe()).unwrap();
        for (base, len) in [(0x1000, 0x10), (0xff8, 9), (0x100f, 1), (0x800, 0x1000)] {
            assert!(matches!(bus.insert(base, len, probe()), Err(BusError::Overlap { other: 0x1000, .. })));
        }
        assert!(matches!(bus.insert(0, 0, probe()), Err(BusError::BadRange { .. })));
        assert!(matches!(bus.insert(u64::MAX, 2, probe()), Err(BusError::BadRange { .. })));
        bus.insert(0x1010, 1, probe()).unwrap();
        bus.insert(0xff8, 8, probe()).unwrap();
        bus.insert(u64::MAX, 1, probe()).unwrap();
    }

    #[test]
    fn a_removed_range_is_free_again() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x10, probe()).unwrap();
        let device = bus.remove(0x1000).unwrap();
        assert!(bus.remove(0x1000).is_none());
        bus.insert(0x1008, 0x10, device).unwrap();
        assert!(bus.read(0x1010, &mut [0; 4]));
    }
}
