//! pvpanic: one port by which a guest's kernel says that it panicked (QEMU's `docs/specs/pvpanic`).
//!
//! A plain value with no state.

use crate::bus::{BusDevice, Effect};

/// The device's port, as its ACPI node (QEMU0001) announces it.
pub const PVPANIC_PORT: u64 = 0x505;
/// How many ports it has.
pub const PVPANIC_PORT_LEN: u64 = 1;

/// The guest panicked.
const PANICKED: u8 = 1 << 0;
/// The guest panicked and has loaded a crash kernel, which will see to it.
const CRASH_LOADED: u8 = 1 << 1;

/// The port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pvpanic;

impl BusDevice for Pvpanic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        match (offset, data.first()) {
            (0, Some(events)) if events & PANICKED != 0 => Effect::Panicked,
            (0, Some(events)) if events & CRASH_LOADED != 0 => {
                log::info!("the guest panicked and starts its crash kernel");
                Effect::None
            }
            _ => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_says_which_events_it_takes() {
        let mut data = [0; 2];
        Pvpanic.read(0, &mut data);
        assert_eq!(data, [0b11, 0xff]);
        Pvpanic.read(7, &mut data);
        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn a_panic_ends_the_vm_but_not_if_a_crash_kernel_is_loaded() {
        assert_eq!(Pvpanic.write(0, &[0b01]), Effect::Panicked);
        assert_eq!(Pvpanic.write(0, &[0b10]), Effect::None);
        assert_eq!(Pvpanic.write(0, &[0b100]), Effect::None);
        assert_eq!(Pvpanic.write(1, &[0b01]), Effect::None);
        assert_eq!(Pvpanic.write(0, &[]), Effect::None);
    }
}
