//! The code at the reset vector, where firmware would be: it writes the ACPI reset register.
//!
//! Linux reboots a hardware-reduced machine by EFI, and where there is none by a jump to f000:fff0 in real mode:
//! it comes to the ACPI reset register, which the FADT names, only when told to with `reboot=a`.

use crate::layout::{port, power};

/// Real-mode code, position independent.
pub fn code() -> [u8; 9] {
    let [low, high] = port::RESET.to_le_bytes();
    // mov dx, port; mov al, value; out dx, al; hlt; jmp to the hlt
    [0xba, low, high, 0xb0, power::RESET, 0xee, 0xf4, 0xeb, 0xfd]
}
