//! Printing on the first serial port: a line is put together first and then handed to ring 0 in one go.

use core::fmt::{self, Write};

/// The first serial port's base.
pub const PORT: u16 = 0x3f8;

const LINE_MAX: usize = 512;

struct Line {
    bytes: [u8; LINE_MAX],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.len == LINE_MAX {
                crate::cpu::out_serial(&self.bytes);
                self.len = 0;
            }
            self.bytes[self.len] = byte;
            self.len += 1;
        }
        Ok(())
    }
}

/// What [`println!`] calls.
pub fn print(text: fmt::Arguments) {
    let mut line = Line { bytes: [0; LINE_MAX], len: 0 };
    let _ = line.write_fmt(text);
    crate::cpu::out_serial(&line.bytes[..line.len]);
}

/// Print a line on the first serial port.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => { $crate::serial::print(format_args!("{}\n", format_args!($($text)*))) };
}
