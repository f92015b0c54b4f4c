//! The serial port: vm-superio's 16550A with an interrupt line, an output and a way to feed it input.
//!
//! vCPU threads run the registers; the thread that reads the host's side of the port calls
//! [`SerialPort::enqueue`]. Both go through the bus's lock of the device, which is held for one register
//! access at a time.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState as Uart};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BusDevice, Effect};
use crate::irq::IrqLine;
use crate::state::{Hex, RestoreError};

/// Where the first port's registers begin (COM1).
pub const SERIAL_PORTS: u64 = 0x3f8;
/// How many registers there are.
pub const SERIAL_PORTS_LEN: u64 = 8;

/// What is saved of the port: its registers by the names that 16550s have for them, and what was received and not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub dll: u8,
    /// Divisor latch, high byte.
    pub dlm: u8,
    /// Interrupt enable register.
    pub ier: u8,
    /// Interrupt identification register.
    pub iir: u8,
    /// Line control register.
    pub lcr: u8,
    /// Line status register.
    pub lsr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Modem status register.
    pub msr: u8,
    /// Scratch register.
    pub scr: u8,
    /// Received and not read, at most 64 bytes.
    pub received: Hex,
    /// How often the line status was read since the last write to any register.
    pub polls: u8,
}

/// A serial port.
///
/// ```text
///             the guest enables the receive interrupt, or polls the line status
///   deaf ────────────────────────────────────────────────────────────────────────► listening
///     ▲         it disables the interrupt, or stops to poll and writes                 │
///     └────────────────────────────────────────────────────────────────────────────────┘
/// ```
///
/// A deaf port takes no input: Linux's driver empties the FIFO when it starts (and reads it with the line in
/// loopback while it probes), so what was typed or piped before that would be lost. So is a paused one: what its guest can see
/// stays as it is.
pub struct SerialPort {
    uart: Serial<Line, Room, Output>,
    /// How often the line status was read since the last write to any register.
    polls: u8,
    paused: bool,
}

impl SerialPort {
    /// A port that interrupts through `line` and transmits to `out`.
    ///
    /// `out` is given every byte in a `write` of its own, from a vCPU thread: it buffers, and must not block
    /// for long. It is never flushed. `room` becomes readable when there is room again for input that
    /// [`SerialPort::enqueue`] did not take. It is as at power-on, or paused and as `state` says.
    ///
    /// # Errors
    /// If it cannot be what `state` says.
    pub fn new(
        line: IrqLine,
        out: Box<dyn Write + Send>,
        room: EventFd,
        state: Option<&SerialState>,
    ) -> Result<Self, RestoreError> {
        let room = Room { event: room, wanted: AtomicBool::new(false) };
        let uart = state.map_or_else(Uart::default, uart_of);
        let polls = state.map_or(0, |state| state.polls.min(POLLS));
        let paused = state.is_some();
        // It would be too early for a machine that is being restored: `resume` does it.
        let line = Line { line, held: AtomicBool::new(paused), due: AtomicBool::new(false) };
        let uart = Serial::from_state(&uart, line, room, Output(out)).map_err(|_| {
            RestoreError::new("the serial port", "received", "it is more than the port holds")
        })?;
        Ok(Self { uart, polls, paused })
    }

    /// To be saved.
    #[must_use]
    pub fn save(&self) -> SerialState {
        let uart = self.uart.state();
        SerialState {
            dll: uart.baud_divisor_low,
            dlm: uart.baud_divisor_high,
            ier: uart.interrupt_enable,
            iir: uart.interrupt_identification,
            lcr: uart.line_control,
            lsr: uart.line_status,
            mcr: uart.modem_control,
            msr: uart.modem_status,
            scr: uart.scratch,
            received: uart.in_buffer.into(),
            polls: self.polls,
        }
    }

    /// Take no input from now on.
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Take input again. After a restore, interrupt again for what the guest was interrupted for and has not looked at.
    pub fn resume(&mut self) {
        self.paused = false;
        self.uart.interrupt_evt().release();
        self.call_for_input();
    }

    /// The line receives `bytes`. Returns how many were taken; the rest is for when `room` is readable.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        if !self.listens() {
            self.uart.events().wanted.store(true, Ordering::Relaxed);
            return 0;
        }
        // In loopback mode the line is disconnected: nothing is taken, and nothing would say when to retry,
        // so the bytes are lost as they are on the wire.
        if self.uart.read(MODEM_CONTROL) & LOOPBACK != 0 {
            return bytes.len();
        }
        // The only errors are a full FIFO, which takes nothing, and a line that cannot be raised, which ours can.
        let taken = self.uart.enqueue_raw_bytes(bytes).unwrap_or(0);
        if taken < bytes.len() {
            self.uart.events().wanted.store(true, Ordering::Relaxed);
        }
        taken
    }

    fn listens(&self) -> bool {
        let asked = self.polls >= POLLS || self.uart.state().interrupt_enable & RECEIVE_INTERRUPT != 0;
        asked && !self.paused
    }

    /// Call for the input that waits for the guest to listen, if it does now.
    fn call_for_input(&self) {
        let room = self.uart.events();
        if room.wanted.load(Ordering::Relaxed) && self.listens() {
            room.in_buffer_empty();
        }
    }
}

/// So many reads of the line status with no write between them wait for input: a driver that waits to transmit
/// finds this port ready at once.
const POLLS: u8 = 16;

/// The interrupt enable register, and its bit for received data.
const INTERRUPT_ENABLE: u8 = 1;
const RECEIVE_INTERRUPT: u8 = 1;

/// The line status register.
const LINE_STATUS: u8 = 5;

/// The modem control register, and its loopback bit.
const MODEM_CONTROL: u8 = 4;
const LOOPBACK: u8 = 1 << 4;

impl BusDevice for SerialPort {
    /// The registers are bytes; a wider access is one to each register that it covers, as on an ISA bus.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (i, byte) in (0..).zip(data) {
            let Some(register) = register(offset, i) else {
                *byte = 0xff;
                continue;
            };
            *byte = self.uart.read(register);
            if register == LINE_STATUS && self.polls < POLLS {
                self.polls += 1;
                self.call_for_input();
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        for (i, byte) in (0..).zip(data) {
            let Some(register) = register(offset, i) else { break };
            // The output failing is not the guest's concern; the byte is lost as if nothing were plugged in.
            if let Err(error) = self.uart.write(register, *byte) {
                log::debug!("serial output: {error}");
            }
            self.polls = 0;
            if register == INTERRUPT_ENABLE {
                self.call_for_input();
            }
        }
        Effect::None
    }
}

/// The register `i` bytes after `offset`.
fn register(offset: u64, i: u64) -> Option<u8> {
    let register = offset.checked_add(i).filter(|r| *r < SERIAL_PORTS_LEN)?;
    u8::try_from(register).ok()
}

/// The port's interrupt line. Its atomics are for a trait that lends it; they are used under the port's lock.
struct Line {
    line: IrqLine,
    /// What would be raised waits.
    held: AtomicBool,
    /// And something does.
    due: AtomicBool,
}

impl Line {
    /// Raise what has waited, and all from now on at once.
    fn release(&self) {
        self.held.store(false, Ordering::Relaxed);
        if self.due.swap(false, Ordering::Relaxed) {
            self.line.raise();
        }
    }
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if self.held.load(Ordering::Relaxed) {
            self.due.store(true, Ordering::Relaxed);
        } else {
            self.line.raise();
        }
        Ok(())
    }
}

/// The registers as vm-superio has them.
fn uart_of(state: &SerialState) -> Uart {
    Uart {
        baud_divisor_low: state.dll,
        baud_divisor_high: state.dlm,
        interrupt_enable: state.ier,
        interrupt_identification: state.iir,
        line_control: state.lcr,
        line_status: state.lsr,
        modem_control: state.mcr,
        modem_status: state.msr,
        scratch: state.scr,
        in_buffer: state.received.0.clone(),
    }
}

/// The output without its flush, which vm-superio does after every byte.
struct Output(Box<dyn Write + Send>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells the input side when the FIFO has been emptied, if it wants to know.
struct Room {
    event: EventFd,
    wanted: AtomicBool,
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if self.wanted.swap(false, Ordering::Relaxed) {
            // A counter at its maximum is readable just the same.
            let _ = self.event.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = super::INTERRUPT_ENABLE as u64;
    const LINE_STATUS: u64 = super::LINE_STATUS as u64;
    const DATA_READY: u8 = 1;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            panic!("flushed")
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Bench {
        port: SerialPort,
        sink: Sink,
        interrupt: EventFd,
        room: EventFd,
    }

    fn bench() -> Bench {
        bench_as(None)
    }

    fn bench_as(state: Option<&SerialState>) -> Bench {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (sink, interrupt, room) = (Sink::default(), event(), event());
        let line = IrqLine::new(interrupt.try_clone().unwrap());
        let port = SerialPort::new(line, Box::new(sink.clone()), room.try_clone().unwrap(), state).unwrap();
        Bench { port, sink, interrupt, room }
    }

    impl Bench {
        fn read(&mut self, register: u64) -> u8 {
            let mut data = [0; 1];
            self.port.read(register, &mut data);
            data[0]
        }
        fn write(&mut self, register: u64, value: u8) {
            assert_eq!(self.port.write(register, &[value]), Effect::None);
        }
    }

    #[test]
    fn what_the_guest_transmits_comes_out_unflushed() {
        let mut bench = bench();
        for byte in b"hello" {
            bench.write(DATA, *byte);
        }
        assert_eq!(*bench.sink.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn input_interrupts_and_is_read_in_order() {
        let mut bench = bench();
        bench.write(INTERRUPT_ENABLE, 1);
        assert_eq!(bench.port.enqueue(b"ok"), 2);
        assert!(bench.interrupt.read().is_ok());
        assert_eq!(bench.read(LINE_STATUS) & DATA_READY, DATA_READY);
        assert_eq!((bench.read(DATA), bench.read(DATA)), (b'o', b'k'));
        assert_eq!(bench.read(LINE_STATUS) & DATA_READY, 0);
    }

    #[test]
    fn input_that_finds_no_room_is_called_for_when_there_is() {
        let mut bench = bench();
        bench.write(INTERRUPT_ENABLE, 1);
        let input = [7; 100];
        let taken = bench.port.enqueue(&input);
        assert!(taken > 0 && taken < input.len());
        assert_eq!(bench.port.enqueue(&input[taken..]), 0);
        for _ in 1..taken {
            assert_eq!(bench.read(DATA), 7);
            assert!(bench.room.read().is_err());
        }
        bench.read(DATA);
        assert_eq!(bench.room.read().unwrap(), 1);
        assert_eq!(bench.port.enqueue(&input[taken..]), input.len() - taken);
        bench.read(DATA);
        assert!(bench.room.read().is_err(), "nobody waits");
    }

    #[test]
    fn input_waits_until_the_guest_enables_its_interrupt() {
        let mut bench = bench();
        assert_eq!(bench.port.enqueue(b"early"), 0);
        // What Linux does at its start: empty the receiver, probe in loopback, try the transmit interrupt.
        bench.read(DATA);
        assert_eq!(bench.room.read().unwrap(), 1, "the FIFO is empty, but");
        assert_eq!(bench.port.enqueue(b"early"), 0, "nobody listens");
        bench.write(u64::from(MODEM_CONTROL), LOOPBACK);
        bench.write(u64::from(MODEM_CONTROL), 0);
        bench.write(INTERRUPT_ENABLE, 2);
        assert!(bench.room.read().is_err());
        bench.write(INTERRUPT_ENABLE, 5);
        assert_eq!(bench.room.read().unwrap(), 1);
        assert_eq!(bench.port.enqueue(b"early"), 5);
        assert_eq!(bench.read(DATA), b'e');
        bench.write(INTERRUPT_ENABLE, 0);
        assert_eq!(bench.port.enqueue(b"late"), 0, "the guest closed the port");
    }

    #[test]
    fn a_guest_that_polls_is_heard_and_one_that_transmits_does_not_poll() {
        let mut bench = bench();
        assert_eq!(bench.port.enqueue(b"early"), 0);
        for _ in 0..1000 {
            bench.read(LINE_STATUS);
            bench.write(DATA, b'x');
        }
        assert!(bench.room.read().is_err());
        for _ in 0..POLLS {
            bench.read(LINE_STATUS);
        }
        assert_eq!(bench.room.read().unwrap(), 1);
        assert_eq!(bench.port.enqueue(b"early"), 5);
        assert_eq!((bench.read(DATA), bench.read(DATA)), (b'e', b'a'));
        assert_eq!(bench.port.enqueue(b"more"), 4, "reading does not end the polling");
    }

    #[test]
    fn loopback_disconnects_the_line() {
        let mut bench = bench();
        bench.write(INTERRUPT_ENABLE, 1);
        bench.write(u64::from(MODEM_CONTROL), LOOPBACK);
        assert_eq!(bench.port.enqueue(b"lost"), 4);
        assert_eq!(bench.read(LINE_STATUS) & DATA_READY, 0);
        bench.write(DATA, b'x');
        assert_eq!(bench.read(DATA), b'x');
        assert!(bench.sink.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_broken_output_does_not_stop_the_guest() {
        let line = IrqLine::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let mut port =
            SerialPort::new(line, Box::new(Broken), EventFd::new(EFD_NONBLOCK).unwrap(), None).unwrap();
        assert_eq!(port.write(DATA, b"x"), Effect::None);
        let mut status = [0; 1];
        port.read(LINE_STATUS, &mut status);
        assert_eq!(status[0] & 0x60, 0x60, "transmitter empty");
    }

    #[test]
    fn any_access_is_survived() {
        let mut bench = bench();
        for offset in (0..10).chain([u64::MAX]) {
            for len in 0..=8 {
                let mut data = [0xa5; 8];
                assert_eq!(bench.port.write(offset, &data[..len]), Effect::None);
                bench.port.read(offset, &mut data[..len]);
            }
        }
        let mut data = [0; 2];
        bench.port.read(7, &mut data);
        assert_eq!(data[1], 0xff);
    }

    /// The same port on another machine, as a file would have it.
    fn moved(bench: &Bench) -> Bench {
        let file = serde_json::to_string(&bench.port.save()).unwrap();
        bench_as(Some(&serde_json::from_str(&file).unwrap()))
    }

    #[test]
    fn what_was_received_and_not_read_is_read_on_another_machine() {
        let mut old = bench();
        old.write(INTERRUPT_ENABLE, 1);
        old.write(7, 0x5a);
        assert_eq!(old.port.enqueue(b"typed"), 5);
        assert_eq!(old.read(DATA), b't');
        let mut new = moved(&old);
        assert_eq!(new.port.save(), old.port.save());
        assert!(new.interrupt.read().is_err(), "too early");
        new.port.resume();
        assert_eq!(new.read(7), 0x5a);
        let rest: Vec<u8> = (0..4).map(|_| new.read(DATA)).collect();
        assert_eq!(rest, b"yped");
        assert_eq!(new.read(LINE_STATUS) & DATA_READY, 0);
        assert_eq!(new.port.enqueue(b"x"), 1);
        assert!(new.interrupt.read().is_ok());
    }

    #[test]
    fn an_interrupt_that_the_guest_has_not_looked_at_is_raised_again() {
        let mut old = bench();
        old.write(INTERRUPT_ENABLE, 1);
        old.port.enqueue(b"x");
        let mut new = moved(&old);
        new.port.resume();
        assert_eq!(new.interrupt.read().unwrap(), 1);
        // Looked at: nothing is due.
        new.read(2);
        new.read(DATA);
        let mut third = moved(&new);
        third.port.resume();
        assert!(third.interrupt.read().is_err());
    }

    #[test]
    fn a_paused_port_takes_no_input_until_it_goes_on() {
        let mut bench = bench();
        bench.write(INTERRUPT_ENABLE, 1);
        bench.port.pause();
        let before = bench.port.save();
        assert_eq!(bench.port.enqueue(b"early"), 0);
        assert_eq!(bench.port.save(), before);
        assert!(bench.room.read().is_err());
        bench.port.resume();
        assert_eq!(bench.room.read().unwrap(), 1, "whoever types is called");
        assert_eq!(bench.port.enqueue(b"early"), 5);
    }

    #[test]
    fn any_registers_are_a_port_but_not_more_than_it_holds() {
        let good = bench().port.save();
        for value in [0, 1, 0x55, 0xaa, 0xff] {
            let [dll, dlm, ier, iir, lcr, lsr, mcr, msr, scr] = [value; 9];
            let state =
                SerialState { dll, dlm, ier, iir, lcr, lsr, mcr, msr, scr, polls: value, ..good.clone() };
            let mut odd = bench_as(Some(&state));
            odd.port.resume();
            for register in 0..8 {
                odd.read(register);
            }
            odd.port.enqueue(&[1; 100]);
        }
        let state = SerialState { received: vec![0; 65].into(), ..good };
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let port = SerialPort::new(IrqLine::new(event()), Box::new(io::sink()), event(), Some(&state));
        let error = port.err().unwrap().to_string();
        assert!(error.contains("the serial port") && error.contains("received"), "{error}");
    }
}
