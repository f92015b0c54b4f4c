//! Where BARs go before the guest runs. There is no firmware to do it, so the vmm presets their addresses.
//!
//! A pure value: no locks, no file descriptors.

use std::ops::Range;

/// What a memory BAR can be mapped to (PCI 3.0 §6.2.5.1). There are no I/O BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Anywhere below 4 GiB; takes one BAR register.
    Memory32,
    /// Anywhere; takes two BAR registers.
    Memory64,
}

/// The guest-physical addresses that PCI memory may be put at, as the ACPI tables announce them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Below 4 GiB.
    pub mem32: Range<u64>,
    /// Above 4 GiB; may be empty.
    pub mem64: Range<u64>,
}

impl Windows {
    /// Whether `len` bytes from `base` are wholly in one of the windows.
    #[must_use]
    pub fn hold(&self, base: u64, len: u64) -> bool {
        let Some(end) = base.checked_add(len) else { return false };
        [&self.mem32, &self.mem64].into_iter().any(|w| base >= w.start && end <= w.end)
    }
}

/// A BAR has no address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BarError {
    /// The window has no room for it.
    #[error("no room for a PCI BAR of {len:#x} bytes in the {kind:?} window")]
    NoRoom {
        /// Its kind.
        kind: BarKind,
        /// Its length in bytes.
        len: u64,
    },
}

/// Gives out naturally aligned addresses, upwards. Nothing is given back: functions live as long as the VM.
#[derive(Clone, Debug)]
pub struct BarAllocator {
    mem32: Range<u64>,
    mem64: Range<u64>,
}

impl BarAllocator {
    /// An allocator of everything in `windows`.
    #[must_use]
    pub fn new(windows: &Windows) -> Self {
        Self { mem32: windows.mem32.clone(), mem64: windows.mem64.clone() }
    }

    /// An address for a BAR of `len` bytes, a power of two. 64-bit BARs go below 4 GiB when there is no room
    /// above it.
    ///
    /// # Errors
    /// If no window has room.
    pub fn allocate(&mut self, kind: BarKind, len: u64) -> Result<u64, BarError> {
        let address = match kind {
            BarKind::Memory32 => take(&mut self.mem32, len),
            BarKind::Memory64 => take(&mut self.mem64, len).or_else(|| take(&mut self.mem32, len)),
        };
        address.ok_or(BarError::NoRoom { kind, len })
    }
}

/// The first aligned `len` bytes of what is left, which then starts behind them.
fn take(left: &mut Range<u64>, len: u64) -> Option<u64> {
    let base = left.start.checked_next_multiple_of(len)?;
    let end = base.checked_add(len)?;
    if end > left.end {
        return None;
    }
    left.start = end;
    Some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOWS: Windows =
        Windows { mem32: 0xc000_0000..0xc010_0000, mem64: 0x40_0000_1000..0x40_0010_0000 };

    #[test]
    fn addresses_are_naturally_aligned_and_never_shared() {
        let mut bars = BarAllocator::new(&WINDOWS);
        assert_eq!(bars.allocate(BarKind::Memory32, 0x1000), Ok(0xc000_0000));
        assert_eq!(bars.allocate(BarKind::Memory32, 0x8000), Ok(0xc000_8000));
        assert_eq!(bars.allocate(BarKind::Memory32, 0x10), Ok(0xc001_0000));
        assert_eq!(bars.allocate(BarKind::Memory64, 0x8000), Ok(0x40_0000_8000));
    }

    #[test]
    fn what_finds_no_room_above_4_gib_goes_below_and_then_nowhere() {
        let mut bars = BarAllocator::new(&WINDOWS);
        assert_eq!(bars.allocate(BarKind::Memory64, 0x10_0000), Ok(0xc000_0000));
        let full = Err(BarError::NoRoom { kind: BarKind::Memory64, len: 0x10_0000 });
        assert_eq!(bars.allocate(BarKind::Memory64, 0x10_0000), full);
        assert!(bars.allocate(BarKind::Memory32, 1 << 63).is_err());
        assert!(bars.allocate(BarKind::Memory32, 0).is_err());
    }

    #[test]
    fn a_window_holds_what_is_wholly_inside() {
        assert!(WINDOWS.hold(0xc000_0000, 0x10_0000));
        assert!(!WINDOWS.hold(0xc000_0000, 0x10_0001));
        assert!(!WINDOWS.hold(0xbfff_f000, 0x1000));
        assert!(!WINDOWS.hold(u64::MAX - 0xfff, 0x1000));
    }
}
