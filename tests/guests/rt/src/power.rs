//! Ways to end: switched off, reset, shut down.

use crate::cpu;

const SLEEP_CONTROL: u16 = 0x600;
const RESET: u16 = 0x602;
const PVPANIC: u16 = 0x505;

/// Sleep state S5 of this machine's DSDT, and the enable bit (ACPI 6.5, 4.8.3.7).
const S5: u8 = 5 << 2 | 1 << 5;

/// A way to reset the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// ACPI's reset register.
    Acpi,
    /// The keyboard controller's pulse.
    Keyboard,
    /// The chipset's reset control at 0xcf9.
    Chipset,
}

/// Switch off through the FADT's sleep control register, or where that must be if there are no tables.
pub fn off() -> ! {
    let port = crate::acpi::fadt().map_or(SLEEP_CONTROL, |fadt| fadt.sleep_control as u16);
    cpu::out8(if port == 0 { SLEEP_CONTROL } else { port }, S5);
    cpu::hang()
}

/// Reset the machine.
pub fn reset(way: Reset) -> ! {
    match way {
        Reset::Acpi => {
            let (port, value) =
                crate::acpi::fadt().map_or((RESET, 1), |fadt| (fadt.reset as u16, fadt.reset_value));
            cpu::out8(port, value);
        }
        Reset::Keyboard => cpu::out8(0x64, 0xfe),
        Reset::Chipset => cpu::out8(0xcf9, 6),
    }
    cpu::hang()
}

/// Say that the guest panicked.
pub fn panicked() -> ! {
    cpu::out8(PVPANIC, 1);
    cpu::hang()
}
