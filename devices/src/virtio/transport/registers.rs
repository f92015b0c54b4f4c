//! The registers of one queue (virtio 1.2, 4.1.4.3 and 4.2.2), and the check that makes a ring of them.

use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemory};

use arch::memory::GuestRam;

use super::state::QueueState;

/// Why a queue that the driver enabled cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    /// Not a power of two, or more than the device can do.
    #[error("a size of {size} where powers of two up to {max} are possible")]
    Size {
        /// What the driver wrote.
        size: u16,
        /// What the device can do.
        max: u16,
    },
    /// An address that is not aligned as 2.7 demands.
    #[error("the {part} at {address:#x} is misaligned")]
    Alignment {
        /// Which part of the queue.
        part: &'static str,
        /// Guest-physical.
        address: u64,
    },
    /// Not wholly in guest RAM.
    #[error("the {part} at {address:#x} is outside guest memory")]
    Range {
        /// Which part of the queue.
        part: &'static str,
        /// Guest-physical.
        address: u64,
    },
    /// The ring library says no, though all of the above was checked.
    #[error("the queue is unusable")]
    Ring(#[source] virtio_queue::Error),
}

/// What the driver set a queue to. Unchecked until [`QueueRegisters::ring`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueueRegisters {
    max: u16,
    /// Entries.
    pub(crate) size: u16,
    /// Whether the driver enabled it.
    pub(crate) ready: bool,
    /// Descriptor table.
    pub(crate) desc: u64,
    /// Driver area: the available ring.
    pub(crate) avail: u64,
    /// Device area: the used ring.
    pub(crate) used: u64,
    next_avail: u16,
    next_used: u16,
}

impl QueueRegisters {
    /// As at power-on, at most `max` entries.
    pub(crate) fn new(max: u16) -> Self {
        Self { max, size: max, ready: false, desc: 0, avail: 0, used: 0, next_avail: 0, next_used: 0 }
    }

    /// The largest size.
    pub(crate) fn max(&self) -> u16 {
        self.max
    }

    /// As they were saved, for a queue of at most `max` entries.
    ///
    /// # Errors
    /// The field that cannot be, and why.
    pub(crate) fn restore(max: u16, state: &QueueState) -> Result<Self, (&'static str, String)> {
        let &QueueState { max: saved, size, ready, desc, avail, used, next_avail, next_used } = state;
        if saved != max {
            return Err(("max", format!("{saved} entries where this device has {max}")));
        }
        Ok(Self { max, size, ready, desc, avail, used, next_avail, next_used })
    }

    /// To be saved.
    pub(crate) fn save(&self) -> QueueState {
        let &Self { max, size, ready, desc, avail, used, next_avail, next_used } = self;
        QueueState { max, size, ready, desc, avail, used, next_avail, next_used }
    }

    /// As at power-on.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.max);
    }

    /// Remember how far a ring made of these registers has come.
    pub(crate) fn keep_positions(&mut self, ring: &virtio_queue::Queue) {
        self.next_avail = ring.next_avail();
        self.next_used = ring.next_used();
    }

    /// The ring that the registers describe, at the positions last kept.
    ///
    /// # Errors
    /// If they describe none.
    pub(crate) fn ring(&self, ram: &GuestRam, event_idx: bool) -> Result<virtio_queue::Queue, RegisterError> {
        let Self { size, max, .. } = *self;
        if !size.is_power_of_two() || size > max {
            return Err(RegisterError::Size { size, max });
        }
        let entries = usize::from(size);
        // Lengths and alignments of 2.7; both rings end in the field that EVENT_IDX uses.
        check(ram, "descriptor table", self.desc, 16 * entries, 16)?;
        check(ram, "available ring", self.avail, 6 + 2 * entries, 2)?;
        check(ram, "used ring", self.used, 6 + 8 * entries, 4)?;
        self.build(event_idx).map_err(RegisterError::Ring)
    }

    fn build(&self, event_idx: bool) -> Result<virtio_queue::Queue, virtio_queue::Error> {
        let mut ring = virtio_queue::Queue::new(self.max)?;
        ring.try_set_size(self.size)?;
        ring.try_set_desc_table_address(GuestAddress(self.desc))?;
        ring.try_set_avail_ring_address(GuestAddress(self.avail))?;
        ring.try_set_used_ring_address(GuestAddress(self.used))?;
        ring.set_event_idx(event_idx);
        ring.set_next_avail(self.next_avail);
        ring.set_next_used(self.next_used);
        ring.set_ready(true);
        Ok(ring)
    }
}

fn check(
    ram: &GuestRam,
    part: &'static str,
    address: u64,
    len: usize,
    align: u64,
) -> Result<(), RegisterError> {
    if !address.is_multiple_of(align) {
        return Err(RegisterError::Alignment { part, address });
    }
    // A range that wraps around is in no RAM, but is not for check_range to find out.
    if address.checked_add(len as u64).is_none() || !ram.check_range(GuestAddress(address), len) {
        return Err(RegisterError::Range { part, address });
    }
    Ok(())
}

/// Put `value` in the lower or upper half of a 64-bit register.
pub(crate) fn set_half(register: &mut u64, high: bool, value: u32) {
    let value = u64::from(value);
    *register = if high { *register & 0xffff_ffff | value << 32 } else { *register & !0xffff_ffff | value };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    fn good() -> QueueRegisters {
        QueueRegisters { size: 4, desc: 0x1000, avail: 0x2000, used: 0x3000, ..QueueRegisters::new(8) }
    }

    #[test]
    fn good_registers_make_a_ring_that_goes_on_where_it_stopped() {
        let mut registers = good();
        let mut ring = registers.ring(&ram(), true).unwrap();
        ring.set_next_avail(7);
        ring.set_next_used(5);
        registers.keep_positions(&ring);
        assert_eq!(registers.ring(&ram(), true).unwrap(), ring);
        assert!(ring.is_valid(&ram()) && ring.event_idx_enabled());
        registers.reset();
        assert_eq!(registers, QueueRegisters::new(8));
    }

    #[test]
    fn bad_registers_make_none() {
        for size in [0, 3, 16, 0x8000, u16::MAX] {
            let bad = QueueRegisters { size, ..good() };
            assert!(matches!(bad.ring(&ram(), false), Err(RegisterError::Size { max: 8, .. })), "{size}");
        }
        let bad = [
            QueueRegisters { desc: 0x1008, ..good() },
            QueueRegisters { avail: 0x2001, ..good() },
            QueueRegisters { used: 0x3002, ..good() },
            QueueRegisters { desc: 0xffd0, ..good() },
            QueueRegisters { avail: 0xfff4, ..good() },
            QueueRegisters { used: 0xffdc, ..good() },
            QueueRegisters { desc: u64::MAX - 15, ..good() },
            QueueRegisters { used: u64::MAX - 3, ..good() },
        ];
        for registers in bad {
            assert!(registers.ring(&ram(), false).is_err(), "{registers:x?}");
        }
    }

    #[test]
    fn halves_are_set_apart() {
        let mut register = 0;
        set_half(&mut register, true, 0x1234_5678);
        set_half(&mut register, false, 0x9abc_def0);
        assert_eq!(register, 0x1234_5678_9abc_def0);
        set_half(&mut register, true, 1);
        assert_eq!(register, 0x1_9abc_def0);
    }
}
