//! Power: the ACPI sleep, reset and power button registers, and the PC's reset control register.
//!
//! The machine is hardware-reduced ACPI (ACPI 6.5 §4.1): instead of the PM1 block there are a sleep control
//! and a sleep status register (§4.8.3.7), a reset register (§4.8.3.6), and a Generic Event Device (§5.6.9)
//! whose AML reads the event register. [`PowerBlock`] and [`ResetControl`] are the registers, plain values;
//! [`Power`] is the shell with the interrupt line. vCPU threads run the registers, the vmm's control
//! loop presses the button.

use serde::{Deserialize, Serialize};

use crate::bus::{BusDevice, Effect};
use crate::irq::IrqLine;
use crate::state::RestoreError;

/// Where the block's ports begin.
pub const POWER_PORTS: u64 = 0x600;
/// How many ports it has.
pub const POWER_PORTS_LEN: u64 = 4;
/// Offset of the sleep control register (FADT SLEEP_CONTROL_REG).
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register (FADT SLEEP_STATUS_REG).
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register (FADT RESET_REG).
pub const RESET: u64 = 2;
/// Offset of the event register, which the GED's `_EVT` method reads.
pub const EVENTS: u64 = 3;

/// What is written to the reset register to reset (FADT RESET_VALUE).
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of S5, as the DSDT's `_S5` package gives it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The power button's bit in the event register.
pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
/// The bit of a new VM generation in the event register.
pub const EVENT_GENERATION: u8 = 1 << 1;
/// All events that there are.
const EVENTS_KNOWN: u8 = EVENT_POWER_BUTTON | EVENT_GENERATION;

/// Sleep control register: SLP_EN.
const SLEEP_ENABLE: u8 = 1 << 5;

/// The four registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PowerBlock {
    events: u8,
}

impl PowerBlock {
    /// Read a register. Reading the events clears them. The others read as zero: the machine has never
    /// slept, so there is no wake status.
    pub fn read(&mut self, offset: u64) -> u8 {
        match offset {
            EVENTS => std::mem::take(&mut self.events),
            SLEEP_CONTROL | SLEEP_STATUS | RESET => 0,
            _ => 0xff,
        }
    }

    /// Write a register.
    pub fn write(&mut self, offset: u64, value: u8) -> Effect {
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_S5 => Effect::Shutdown,
            RESET if value == RESET_VALUE => Effect::Reset,
            _ => Effect::None,
        }
    }

    /// Remember an event until the guest reads it.
    pub fn post(&mut self, event: u8) {
        self.events |= event;
    }
}

/// What is saved of the block.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PowerState {
    /// Events that the guest has not read.
    pub events: u8,
}

/// The power block on its ports, with the GED's interrupt.
#[derive(Debug)]
pub struct Power {
    block: PowerBlock,
    line: IrqLine,
}

impl Power {
    /// A block whose GED interrupts through `line`.
    #[must_use]
    pub fn new(line: IrqLine) -> Self {
        Self { block: PowerBlock::default(), line }
    }

    /// Press and release the power button: what the guest makes of it is its own choice.
    pub fn press_power_button(&mut self) {
        self.post(EVENT_POWER_BUTTON);
    }

    /// Tell the guest that it is another life of its VM: the identifier in its memory is a new one.
    pub fn announce_generation(&mut self) {
        self.post(EVENT_GENERATION);
    }

    fn post(&mut self, event: u8) {
        self.block.post(event);
        self.line.raise();
    }

    /// To be saved.
    #[must_use]
    pub fn save(&self) -> PowerState {
        PowerState { events: self.block.events }
    }

    /// Become what was saved. Nothing is raised before [`Power::resume`].
    ///
    /// # Errors
    /// If there are no such events.
    pub fn restore(&mut self, state: &PowerState) -> Result<(), RestoreError> {
        if state.events & !EVENTS_KNOWN != 0 {
            let reason = format_args!("{:#x} has events that there are not", state.events);
            return Err(RestoreError::new("the power device", "events", reason));
        }
        self.block.events = state.events;
        Ok(())
    }

    /// The machine goes on after a restore: interrupt again for what the guest has not read.
    pub fn resume(&mut self) {
        if self.block.events != 0 {
            self.line.raise();
        }
    }
}

impl BusDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (i, byte) in (0..).zip(data) {
            *byte = self.block.read(offset.saturating_add(i));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        // Each register is a byte; a wider write is one write to the first register it covers.
        data.first().map_or(Effect::None, |value| self.block.write(offset, *value))
    }
}

/// The reset control register at port 0xCF9, as Intel's chipsets have it (ICH9 §13.7.5). It lies within
/// PCI's configuration ports, which hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResetControl(u8);

impl ResetControl {
    /// RST_CPU: reset when it goes from 0 to 1.
    const RESET: u8 = 1 << 2;
    /// FULL_RST, RST_CPU and SYS_RST.
    const WRITABLE: u8 = 0b1110;

    /// As it was saved; `None` if it cannot be so.
    #[must_use]
    pub fn restore(value: u8) -> Option<Self> {
        (value & !(Self::WRITABLE & !Self::RESET) == 0).then_some(Self(value))
    }

    /// Read the register.
    #[must_use]
    pub fn read(&self) -> u8 {
        self.0
    }

    /// Write the register. Systems write the kind of reset first, then again with the reset bit.
    pub fn write(&mut self, value: u8) -> Effect {
        // The reset bit is not stored, so every write of it is a rising edge.
        self.0 = value & Self::WRITABLE & !Self::RESET;
        if value & Self::RESET != 0 { Effect::Reset } else { Effect::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    #[test]
    fn a_guest_that_enters_s5_switches_off() {
        let mut block = PowerBlock::default();
        assert_eq!(block.write(SLEEP_CONTROL, SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE), Effect::Shutdown);
        assert_eq!(block.write(SLEEP_CONTROL, SLEEP_TYPE_S5 << 2), Effect::None, "not enabled");
        assert_eq!(block.write(SLEEP_CONTROL, 3 << 2 | SLEEP_ENABLE), Effect::None, "S3 is not there");
        assert_eq!(block.read(SLEEP_STATUS), 0);
    }

    #[test]
    fn only_the_reset_value_resets() {
        let mut block = PowerBlock::default();
        assert_eq!(block.write(RESET, 0), Effect::None);
        assert_eq!(block.write(RESET, RESET_VALUE), Effect::Reset);
        assert_eq!(block.write(EVENTS, 0xff), Effect::None);
        assert_eq!(block.write(u64::MAX, 1), Effect::None);
    }

    #[test]
    fn a_pressed_button_interrupts_and_is_seen_once() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut power = Power::new(IrqLine::new(event.try_clone().unwrap()));
        power.press_power_button();
        assert_eq!(event.read().unwrap(), 1);
        let mut data = [0; 1];
        power.read(EVENTS, &mut data);
        assert_eq!(data, [EVENT_POWER_BUTTON]);
        power.read(EVENTS, &mut data);
        assert_eq!(data, [0]);
    }

    #[test]
    fn wide_accesses_are_taken_apart() {
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let mut power = Power::new(IrqLine::new(event));
        power.press_power_button();
        let mut data = [0xaa; 8];
        power.read(SLEEP_CONTROL, &mut data);
        assert_eq!(data, [0, 0, 0, EVENT_POWER_BUTTON, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(power.write(RESET, &[RESET_VALUE, 0]), Effect::Reset);
        assert_eq!(power.write(SLEEP_CONTROL, &[]), Effect::None);
    }

    #[test]
    fn the_reset_control_register_resets_on_6_and_e() {
        let mut control = ResetControl::default();
        assert_eq!(control.write(0x02), Effect::None);
        assert_eq!(control.read(), 0x02);
        assert_eq!(control.write(0x06), Effect::Reset);
        assert_eq!(control.write(0x0e), Effect::Reset);
    }

    #[test]
    fn an_event_that_was_not_read_is_announced_again_when_the_machine_goes_on() {
        let line = || EventFd::new(EFD_NONBLOCK).unwrap();
        let mut old = Power::new(IrqLine::new(line()));
        old.press_power_button();
        old.announce_generation();
        let file = serde_json::to_string(&old.save()).unwrap();
        let event = line();
        let mut new = Power::new(IrqLine::new(event.try_clone().unwrap()));
        new.restore(&serde_json::from_str(&file).unwrap()).unwrap();
        assert_eq!(new.save(), old.save());
        assert!(event.read().is_err(), "too early");
        new.resume();
        assert_eq!(event.read().unwrap(), 1);
        let mut data = [0; 1];
        new.read(EVENTS, &mut data);
        assert_eq!(data, [EVENT_POWER_BUTTON | EVENT_GENERATION]);
        new.resume();
        assert!(event.read().is_err(), "nothing is left");
        assert!(new.restore(&PowerState { events: 4 }).is_err());
    }

    #[test]
    fn the_reset_control_register_is_restored_if_it_can_be_so() {
        let mut control = ResetControl::default();
        let _ = control.write(0x0a);
        assert_eq!(ResetControl::restore(control.read()), Some(control));
        for wrong in [1, 4, 6, 0x10, 0xff] {
            assert_eq!(ResetControl::restore(wrong), None, "{wrong:#x}");
        }
    }
}
