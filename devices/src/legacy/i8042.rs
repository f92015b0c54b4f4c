//! The keyboard controller, of which only the reset line is left.
//!
//! A plain value. There is no keyboard and no mouse; the ACPI tables say so. A system that looks all the same
//! must not wait long for answers, which decides what the status register says: the output buffer is always
//! full, so whoever tries to empty it gives up at once instead of waiting for a reply to each command; and the
//! input buffer is always empty, so whoever resets by keyboard controller need not wait to say so.

use crate::bus::{BusDevice, Effect};

/// Where the ports begin: data at 0x60, status and command at 0x64. What is between belongs to others
/// (0x61 to KVM's PIT, which answers it without an exit).
pub const I8042_PORTS: u64 = 0x60;
/// How many ports there are.
pub const I8042_PORTS_LEN: u64 = 5;

const DATA: u64 = 0;
const COMMAND: u64 = 4;
/// Status: output buffer full; input buffer empty.
const STATUS_OUTPUT_FULL: u8 = 1 << 0;
/// Command: pulse output line 0, which resets the processor.
const PULSE_RESET: u8 = 0xfe;

/// The controller. It has no state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct I8042;

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(byte) = data.first_mut() {
            *byte = match offset {
                DATA => 0,
                COMMAND => STATUS_OUTPUT_FULL,
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        match (offset, data.first()) {
            (COMMAND, Some(&PULSE_RESET)) => Effect::Reset,
            _ => Effect::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offset: u64) -> u8 {
        let mut data = [0; 1];
        I8042.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn pulsing_the_reset_line_resets() {
        assert_eq!(I8042.write(COMMAND, &[0xfe]), Effect::Reset);
        assert_eq!(I8042.write(DATA, &[0xfe]), Effect::None);
        assert_eq!(I8042.write(COMMAND, &[0xaa]), Effect::None);
        assert_eq!(I8042.write(COMMAND, &[]), Effect::None);
    }

    /// What Linux does before it resets by keyboard controller (`kb_wait`).
    #[test]
    fn a_reset_never_waits_for_the_input_buffer() {
        assert_eq!(read(COMMAND) & 0b10, 0);
    }

    /// What Linux does to find out whether there is a controller (`i8042_flush`): 16 bytes at most.
    #[test]
    fn the_output_buffer_cannot_be_emptied() {
        for _ in 0..17 {
            assert_eq!(read(COMMAND) & 0b01, 1);
            assert_eq!(read(DATA), 0);
        }
    }

    #[test]
    fn other_ports_and_wide_reads_are_ones() {
        assert_eq!(read(1), 0xff);
        let mut data = [0; 4];
        I8042.read(COMMAND, &mut data);
        assert_eq!(data, [1, 0xff, 0xff, 0xff]);
        I8042.read(DATA, &mut []);
    }
}
