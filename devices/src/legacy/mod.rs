//! The devices of a PC that predate PCI, each at its fixed ports.
//!
//! The registers are plain values; where a device needs an interrupt, a clock or an eventfd, a thin shell
//! around them has it. vCPU threads run them under the bus's lock of the device.

pub mod i8042;
pub mod power;
pub mod pvpanic;
pub mod rtc;
pub mod serial;

pub use i8042::I8042;
pub use power::Power;
pub use pvpanic::Pvpanic;
pub use rtc::Rtc;
pub use serial::SerialPort;
