//! The 16550's registers, and bytes both ways.

use alloc::string::String;

use rt::serial::PORT;
use rt::{clock, cpu, println};

use crate::{Outcome, check};

const SCRATCH: u16 = PORT + 7;
const LINE_STATUS: u16 = PORT + 5;
const MODEM_CONTROL: u16 = PORT + 4;
const LINE_CONTROL: u16 = PORT + 3;

/// Registers hold what they should, the divisor does not print, loopback brings bytes back.
pub fn registers() -> Outcome {
    for value in [0x55, 0xaa] {
        cpu::out8(SCRATCH, value);
        let seen = cpu::in8(SCRATCH);
        check!(seen == value, "the scratch register holds {seen:#x}, not {value:#x}");
    }
    cpu::out8(LINE_CONTROL, 0x83);
    cpu::out8(PORT, 1);
    cpu::out8(PORT + 1, 0);
    let divisor = cpu::in8(PORT);
    cpu::out8(LINE_CONTROL, 3);
    check!(divisor == 1, "the divisor is {divisor}");
    check!(cpu::in8(LINE_STATUS) & 0x60 == 0x60, "the transmitter is not empty");

    cpu::out8(MODEM_CONTROL, 0x10);
    cpu::out8(PORT, b'L');
    let ready = clock::until(clock::PATIENCE, || cpu::in8(LINE_STATUS) & 1 != 0);
    let back = cpu::in8(PORT);
    cpu::out8(MODEM_CONTROL, 0x0b);
    check!(ready && back == b'L', "loopback brought {back:#x} (ready: {ready})");
    Ok(())
}

/// Read a line by polling.
pub fn read_line() -> Option<String> {
    let mut line = String::new();
    loop {
        if !clock::until(clock::PATIENCE, || cpu::in8(LINE_STATUS) & 1 != 0) {
            return None;
        }
        match cpu::in8(PORT) {
            b'\n' | b'\r' => return Some(line),
            byte => line.push(char::from(byte)),
        }
    }
}

/// A line from the host comes back in capitals.
pub fn echo() -> Outcome {
    println!("say something");
    let Some(line) = read_line() else { return Err("nothing came in".into()) };
    println!("echo {}", line.to_ascii_uppercase());
    Ok(())
}

/// Many lines in a row arrive whole and in order.
pub fn flood() -> Outcome {
    for line in 0..200 {
        println!("line {line}");
    }
    Ok(())
}

/// Never stop to print.
pub fn endless() -> Outcome {
    loop {
        println!("as much as the host takes");
    }
}
