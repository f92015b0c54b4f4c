//! What the conformance suite cannot see: the host's side of the console.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::*;
use crate::virtio::testing::{Buf, Guest, GuestQueue, Kind, Source, eventually, features};

/// Passes on what is written to it.
struct Pipe(Sender<Vec<u8>>);

impl io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A few at a time, as a terminal may.
        let some = &bytes[..bytes.len().min(1000)];
        self.0.send(some.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(some.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Blocks until it is opened. Then it keeps what it is given.
#[derive(Clone, Default)]
struct Dam(Arc<(Mutex<Option<Vec<u8>>>, Condvar)>);

impl Dam {
    fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
        self.0.1.notify_all();
    }

    fn said(&self) -> Vec<u8> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }
}

impl io::Write for Dam {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let closed = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.0.1.wait_while(closed, |said| said.is_none());
        open.unwrap_or_else(PoisonError::into_inner).get_or_insert_default().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn with_sink(sink: impl io::Write + Send + 'static) -> (Guest, ConsoleInput) {
    let size = ConsoleSize { columns: 80, rows: 25 };
    let (console, input) = Console::new("con0", Box::new(sink), Some(size), Arc::default()).unwrap();
    (Guest::new(Kind::Mmio, Box::new(console)), input)
}

fn start(guest: &mut Guest) -> (GuestQueue, GuestQueue) {
    let mut queues = guest.start(u64::MAX).into_iter();
    (queues.next().unwrap(), queues.next().unwrap())
}

fn collect(output: &Receiver<Vec<u8>>, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        all.extend(output.recv_timeout(Duration::from_secs(10)).expect("output"));
    }
    all
}

#[test]
fn output_comes_out_whole_and_in_order() {
    let (sender, output) = channel();
    let (mut guest, _) = with_sink(Pipe(sender));
    let (_, mut transmit) = start(&mut guest);
    let text: Vec<u8> = (0..50_000_u32).map(|i| (i % 251) as u8).collect();
    let at = guest.put(&text);
    let half = text.len() as u32 / 2;
    guest.request(&mut transmit, &[Buf::readable(at, half), Buf::readable(at + u64::from(half), half)]);
    guest.request(&mut transmit, &[Buf::readable(at, 5)]);
    let expected: Vec<u8> = text.iter().chain(&text[..5]).copied().collect();
    assert_eq!(collect(&output, expected.len()), expected);
}

#[test]
fn output_that_was_accepted_is_written_before_the_console_goes() {
    let (sender, output) = channel();
    let (mut guest, _) = with_sink(Pipe(sender));
    let (_, mut transmit) = start(&mut guest);
    let at = guest.put(&[7; 100_000]);
    guest.request(&mut transmit, &[Buf::readable(at, 100_000)]);
    drop(guest);
    assert_eq!(output.try_iter().map(|piece| piece.len()).sum::<usize>(), 100_000);
}

#[test]
fn a_request_longer_than_the_buffer_passes_in_pieces() {
    let (sender, output) = channel();
    let (mut guest, _) = with_sink(Pipe(sender));
    let (_, mut transmit) = start(&mut guest);
    let len = 1_000_000;
    let at = guest.put(&vec![9; len]);
    guest.request(&mut transmit, &[Buf::readable(at, len as u32)]);
    assert_eq!(collect(&output, len), vec![9; len]);
}

#[test]
fn a_sink_that_blocks_holds_up_output_and_nothing_else() {
    let dam = Dam::default();
    let (mut guest, input) = with_sink(dam.clone());
    let (mut receive, mut transmit) = start(&mut guest);
    let at = guest.put(&[1; 0x1_0000]);
    for _ in 0..16 {
        transmit.add(&[Buf::readable(at, 0x1_0000)]);
    }
    guest.registers.notify(1);
    // The buffer takes what it can hold; nothing after that.
    assert!(eventually(|| transmit.used_index() >= 4));
    std::thread::sleep(Duration::from_millis(5));
    assert!(transmit.used_index() < 16);
    // Input goes on.
    let to = guest.alloc(8);
    input.push(b"hi");
    assert_eq!(guest.request(&mut receive, &[Buf::writable(to, 8)]), 2);
    // So does everything of the vmm's.
    let start = Instant::now();
    guest.transport().pause();
    assert!(start.elapsed() < Duration::from_secs(2));
    guest.transport().resume();
    dam.open();
    assert!(eventually(|| transmit.used_index() == 16));
    assert!(!guest.broken());
}

#[test]
fn a_sink_that_blocks_for_ever_does_not_keep_the_console() {
    let dam = Dam::default();
    let (mut guest, _) = with_sink(dam.clone());
    let (_, mut transmit) = start(&mut guest);
    let at = guest.put(b"unheard");
    guest.request(&mut transmit, &[Buf::readable(at, 7)]);
    let start = Instant::now();
    drop(guest);
    assert!(start.elapsed() < Duration::from_secs(5));
    dam.open();
}

#[test]
fn a_sink_that_is_gone_is_written_to_no_more() {
    let (sender, output) = channel();
    drop(output);
    let (mut guest, _) = with_sink(Pipe(sender));
    let (_, mut transmit) = start(&mut guest);
    let at = guest.put(&[0; 0x1_0000]);
    for _ in 0..40 {
        guest.request(&mut transmit, &[Buf::readable(at, 0x1_0000)]);
    }
}

#[test]
fn a_request_cut_by_a_stop_is_said_whole_and_once() {
    let dam = Dam::default();
    let (mut guest, _) = with_sink(dam.clone());
    let (_, mut transmit) = start(&mut guest);
    let text: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let at = guest.put(&text);
    transmit.add(&[Buf::readable(at, 1_000_000)]);
    guest.registers.notify(1);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(5));
        guest.transport().pause();
        assert_eq!(transmit.used_index(), 0);
        guest.transport().resume();
    }
    dam.open();
    assert_eq!(transmit.wait_used(), (0, 0));
    guest.request(&mut transmit, &[Buf::readable(at, 1)]);
    assert!(eventually(|| dam.said().len() == 1_000_001));
    assert_eq!(dam.said()[..1_000_000], text);
}

#[test]
fn input_waits_for_the_guest_and_is_bounded() {
    let (mut guest, input) = with_sink(io::sink());
    // Before there is a driver.
    let text: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
    let taken = input.push(&text);
    assert!(taken > 0 && taken < text.len());
    assert_eq!(input.push(&text[taken..]), 0);
    assert!(input.room().read().is_err());
    let (mut receive, _) = start(&mut guest);
    let to = guest.alloc(0x1000);
    let mut got = Vec::new();
    let mut given = taken;
    while got.len() < text.len() {
        let len = guest.request(&mut receive, &[Buf::writable(to, 100), Buf::writable(to + 100, 900)]);
        got.extend(guest.get(to, len as usize));
        if input.room().read().is_ok() {
            given += input.push(&text[given..]);
        }
    }
    assert_eq!(got, text);
}

#[test]
fn a_new_size_is_told_with_an_interrupt() {
    let (mut guest, input) = with_sink(io::sink());
    let read = |guest: &Guest| {
        let mut config = [0xff; 8];
        guest.registers.read_config(0, &mut config);
        config
    };
    start(&mut guest);
    assert_eq!(read(&guest), [80, 0, 25, 0, 0, 0, 0, 0]);
    let generation = guest.registers.generation();
    input.resize(ConsoleSize { columns: 300, rows: 50 });
    guest.wait_interrupt(Source::Config);
    assert_eq!(guest.registers.take_isr() & 2, 2);
    assert_ne!(guest.registers.generation(), generation);
    assert_eq!(read(&guest), [44, 1, 50, 0, 0, 0, 0, 0]);
    // The same again is no news.
    input.resize(ConsoleSize { columns: 300, rows: 50 });
    guest.transport().pause();
    assert_eq!(guest.registers.take_interrupts(Source::Config), 0);
}

#[test]
fn without_a_terminal_there_is_no_size() {
    let (console, input) = Console::new("con0", Box::new(io::sink()), None, Arc::default()).unwrap();
    let guest = Guest::new(Kind::Mmio, Box::new(console));
    let size = 1 << VIRTIO_CONSOLE_F_SIZE;
    assert_eq!(guest.registers.device_features() & size, 0);
    assert_ne!(guest.registers.device_features() & features::VERSION_1, 0);
    input.resize(ConsoleSize { columns: 1, rows: 1 });
    let mut config = [0xff; 4];
    guest.registers.read_config(0, &mut config);
    assert_eq!(config, [0; 4]);
}

#[test]
fn output_that_was_half_said_is_said_to_its_end_by_the_next_machine() {
    let (before, after) = (Dam::default(), Dam::default());
    let (mut guest, _) = with_sink(before.clone());
    let (_, mut transmit) = start(&mut guest);
    let text: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let at = guest.put(&text);
    transmit.add(&[Buf::readable(at, 1_000_000)]);
    guest.registers.notify(1);
    std::thread::sleep(Duration::from_millis(20));
    let state = guest.save();
    before.open();
    after.open();
    let (console, _) =
        Console::new("con0", Box::new(after.clone()), Some(ConsoleSize::default()), Arc::default()).unwrap();
    guest.restore(Box::new(console), &state).unwrap();
    guest.transport().resume();
    assert_eq!(transmit.wait_used(), (0, 0));
    let said = || [before.said(), after.said()].concat();
    assert!(eventually(|| said().len() == 1_000_000));
    assert!(!before.said().is_empty() && said() == text);
}

#[test]
fn the_size_that_the_guest_knows_is_restored_and_the_terminals_is_told() {
    let (mut guest, input) = with_sink(io::sink());
    drop(start(&mut guest));
    input.push(b"typed to the life of before");
    let state = guest.save();
    let (console, input) =
        Console::new("con0", Box::new(io::sink()), Some(ConsoleSize::default()), Arc::default()).unwrap();
    guest.restore(Box::new(console), &state).unwrap();
    let size = |guest: &Guest| {
        let mut size = [0; 4];
        guest.registers.read_config(0, &mut size);
        size
    };
    assert_eq!(size(&guest), [80, 0, 25, 0]);
    guest.transport().resume();
    input.resize(ConsoleSize { columns: 132, rows: 50 });
    guest.wait_interrupt(Source::Config);
    assert_eq!(size(&guest), [132, 0, 50, 0]);
}
