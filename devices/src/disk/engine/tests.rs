//! One suite that every engine passes.

use super::super::tests::{file, layered, options, pattern};
use super::super::{DiskOptions, Erase, Extent, SECTOR};
use super::*;

use std::time::{Duration, Instant};

use tempfile::{NamedTempFile, TempDir};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use arch::memory::{GuestRam, SharedRam};

use crate::virtio::chain::Segment;

const SIZE: usize = 1 << 20;

/// A disk with an engine, and guest memory to use with it.
struct Bench {
    file: NamedTempFile,
    _layers: Option<TempDir>,
    disk: Arc<Disk>,
    ram: SharedRam,
    kick: EventFd,
    kill: EventFd,
    engine: Box<dyn Engine<u32>>,
}

impl Bench {
    fn new(
        kind: EngineKind,
        file: NamedTempFile,
        layers: Option<TempDir>,
        options: &DiskOptions,
    ) -> Option<Self> {
        let disk = match Disk::open(options) {
            Err(super::super::DiskError::NoDirect { .. }) => return None,
            disk => Arc::new(disk.unwrap()),
        };
        // Two regions that touch, so that a buffer may lie across them.
        let ranges = [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 1 << 20)];
        let ram = Arc::new(GuestRam::from_ranges(&ranges).unwrap());
        let [kick, kill] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let events = Events { kick: kick.try_clone().unwrap(), kill: kill.try_clone().unwrap() };
        let engine = new(kind, Arc::clone(&disk), events, 32).unwrap();
        Some(Self { file, _layers: layers, disk, ram, kick, kill, engine })
    }

    fn buffers(&self, segments: &[(u64, u32)]) -> Buffers {
        let segments = segments.iter().map(|&(addr, len)| Segment { addr: GuestAddress(addr), len });
        Buffers::new(&self.ram, segments.collect())
    }

    /// Carry out one request and wait for it.
    fn run(&mut self, io: Io) -> io::Result<()> {
        self.engine.start(7, io);
        assert_eq!(self.engine.in_flight(), 1);
        let mut done = self.collect(1);
        let done = done.remove(0);
        assert_eq!(done.token, 7);
        done.result
    }

    fn collect(&mut self, count: usize) -> Vec<Done<u32>> {
        let mut done = Vec::new();
        while done.len() < count {
            self.engine.turn(Sleep::Forever, &mut done).unwrap();
        }
        assert_eq!((done.len(), self.engine.in_flight()), (count, 0));
        done
    }

    fn put(&self, addr: u64, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(addr)).unwrap();
    }

    fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }

    fn content(&self) -> Vec<u8> {
        self.disk.content()
    }
}

/// Run `test` on every engine that this host has, with and without direct I/O, on a raw disk and on layers.
fn everywhere(test: impl Fn(Bench)) {
    for kind in [EngineKind::Plain, EngineKind::Uring] {
        if kind == EngineKind::Uring && probe_uring().is_err() {
            continue;
        }
        for (direct, has_layers) in [(false, false), (true, false), (false, true), (true, true)] {
            let file = file(SIZE);
            let (layers, options) = match has_layers {
                false => (None, options(&file)),
                true => {
                    let (dir, options) = layered(&file);
                    (Some(dir), options)
                }
            };
            if let Some(bench) = Bench::new(kind, file, layers, &DiskOptions { direct, ..options }) {
                eprintln!("{kind:?}, direct: {direct}, layers: {has_layers}");
                test(bench);
            }
        }
    }
}

#[test]
fn reads_fill_every_segment() {
    everywhere(|mut bench| {
        let buffers = bench.buffers(&[(0x1000, 4096), (0x8000, 512), (0x4000, 8192)]);
        bench.run(Io::Read { offset: 4096, buffers }).unwrap();
        let expected = &pattern(0, SIZE)[4096..4096 + 12800];
        assert!(bench.get(0x1000, 4096) == expected[..4096]);
        assert!(bench.get(0x8000, 512) == expected[4096..4608]);
        assert!(bench.get(0x4000, 8192) == expected[4608..]);
    });
}

#[test]
fn writes_take_every_segment() {
    everywhere(|mut bench| {
        let data = pattern(3, 5120);
        bench.put(0x2000, &data[..512]);
        bench.put(0x6000, &data[512..]);
        for durable in [false, true] {
            let offset = if durable { 512 } else { 65536 };
            let buffers = bench.buffers(&[(0x2000, 512), (0x6000, 4608)]);
            bench.run(Io::Write { offset, buffers, durable }).unwrap();
            let mut expected = pattern(0, SIZE);
            expected[offset as usize..][..5120].copy_from_slice(&data);
            assert!(bench.content()[offset as usize..][..6000] == expected[offset as usize..][..6000]);
        }
    });
}

#[test]
fn buffers_need_not_be_aligned() {
    everywhere(|mut bench| {
        // Odd addresses and lengths, together more than one bounce buffer.
        let segments = [(0x1001, 700), (0x3003, 100_000), (0x80_001, 30_372)];
        let len = 131_072;
        bench.run(Io::Read { offset: 512, buffers: bench.buffers(&segments[..2]) }).err();
        bench.run(Io::Read { offset: 512, buffers: bench.buffers(&segments) }).unwrap();
        let mut read = bench.get(0x1001, 700);
        read.extend(bench.get(0x3003, 100_000));
        read.extend(bench.get(0x80_001, 30_372));
        assert!(read == pattern(0, SIZE)[512..512 + len]);
        bench.run(Io::Write { offset: 262_144, buffers: bench.buffers(&segments), durable: false }).unwrap();
        assert!(bench.content()[262_144..][..len] == read);
    });
}

#[test]
fn a_buffer_may_lie_across_two_regions_of_memory() {
    everywhere(|mut bench| {
        let start = (1 << 20) - 4096;
        bench.run(Io::Read { offset: 0, buffers: bench.buffers(&[(start, 8192)]) }).unwrap();
        assert!(bench.get(start, 8192) == pattern(0, 8192));
    });
}

#[test]
fn a_thousand_segments_are_one_request() {
    everywhere(|mut bench| {
        let segments: Vec<_> = (0..1024).map(|i| ((1023 - i) * 512, 512)).collect();
        bench.run(Io::Read { offset: 0, buffers: bench.buffers(&segments) }).unwrap();
        let expected = pattern(0, SIZE);
        for (i, (addr, _)) in segments.iter().enumerate() {
            assert!(bench.get(*addr, 512) == expected[i * 512..(i + 1) * 512], "segment {i}");
        }
        bench.run(Io::Write { offset: 0, buffers: bench.buffers(&segments), durable: false }).unwrap();
        assert!(bench.content() == expected);
    });
}

#[test]
fn a_guest_cannot_make_its_raw_disk_an_image() {
    everywhere(|mut bench| {
        let mut data = pattern(5, 8192);
        data[..4].copy_from_slice(b"QFI\xfb");
        bench.put(0x2000, &data);
        let segments = [(0x2000, 512), (0x2200, 7680)];
        let result = bench.run(Io::Write { offset: 0, buffers: bench.buffers(&segments), durable: false });
        if bench.disk.is_layered() {
            result.unwrap();
            return;
        }
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(bench.content() == pattern(0, SIZE), "nothing is written");
        bench.run(Io::Write { offset: 4096, buffers: bench.buffers(&segments), durable: false }).unwrap();
        bench.put(0x2000, b"text");
        bench.run(Io::Write { offset: 0, buffers: bench.buffers(&segments), durable: false }).unwrap();
        assert!(bench.content()[4..8192] == data[4..]);
    });
}

#[test]
fn nothing_to_do_is_done() {
    everywhere(|mut bench| {
        bench.run(Io::Read { offset: 0, buffers: bench.buffers(&[]) }).unwrap();
        bench.run(Io::Erase(Vec::new())).unwrap();
    });
}

#[test]
fn extents_are_erased_in_order() {
    everywhere(|mut bench| {
        let extent = |offset, len, how| Extent { offset, len, how };
        let extents = vec![
            extent(4096, 4096, Erase::Zero),
            extent(12288, 8192, Erase::Unmap),
            extent(512, 1024, Erase::Zero),
            extent(65536, 4096, Erase::Discard),
        ];
        bench.run(Io::Erase(extents)).unwrap();
        let mut expected = pattern(0, SIZE);
        for range in [4096..8192, 12288..20480, 512..1536] {
            expected[range].fill(0);
        }
        let content = bench.content();
        assert!(content[..65536] == expected[..65536] && content[69632..] == expected[69632..]);
        bench.run(Io::Flush).unwrap();
    });
}

#[test]
fn a_file_that_shrank_is_an_error() {
    everywhere(|mut bench| {
        bench.file.as_file().set_len(8192).unwrap();
        let error = bench.run(Io::Read { offset: 4096, buffers: bench.buffers(&[(0, 8192)]) }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        bench.run(Io::Read { offset: 4096, buffers: bench.buffers(&[(0, 4096)]) }).unwrap();
    });
}

#[test]
fn a_disk_that_fails_is_an_error() {
    everywhere(|mut bench| {
        // Beyond what any file can have.
        let offset = i64::MAX as u64 & !(SECTOR - 1);
        let buffers = bench.buffers(&[(0, 512)]);
        bench.run(Io::Write { offset, buffers, durable: false }).unwrap_err();
        bench.run(Io::Flush).unwrap();
    });
}

#[test]
fn many_at_once_are_told_apart() {
    everywhere(|mut bench| {
        let mut started = 0;
        while !bench.engine.is_full() && started < 32 {
            let buffers = bench.buffers(&[(u64::from(started) * 4096, 4096)]);
            bench.engine.start(started, Io::Read { offset: u64::from(31 - started) * 4096, buffers });
            started += 1;
        }
        assert_eq!(started, 32);
        let mut tokens: Vec<_> = bench.collect(32).into_iter().map(|done| done.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..32).collect::<Vec<_>>());
        let expected = pattern(0, SIZE);
        for i in 0..32 {
            assert!(bench.get(i * 4096, 4096) == expected[(31 - i as usize) * 4096..][..4096]);
        }
    });
}

/// A sleep ends when its time is over, and before that when something has ended.
fn sleeps_as_long_as_it_is_told(bench: &mut Bench) {
    let (start, time) = (Instant::now(), Duration::from_millis(20));
    let mut done = Vec::new();
    while start.elapsed() < time {
        let wake = bench.engine.turn(Sleep::For(time.saturating_sub(start.elapsed())), &mut done).unwrap();
        assert_eq!((wake, done.len()), (Wake::default(), 0));
    }
    bench.engine.start(1, Io::Read { offset: 0, buffers: bench.buffers(&[(0, 4096)]) });
    while done.is_empty() {
        bench.engine.turn(Sleep::For(Duration::from_secs(1000)), &mut done).unwrap();
    }
}

/// Both events wake the engine, however often, and it sleeps in between.
fn is_woken_by_its_events(mut bench: Bench) {
    let mut done = Vec::new();
    assert_eq!(bench.engine.turn(Sleep::No, &mut done).unwrap(), Wake::default());
    for _ in 0..5 {
        bench.kick.write(1).unwrap();
        let mut wake = Wake::default();
        while !wake.kick {
            wake = bench.engine.turn(Sleep::Forever, &mut done).unwrap();
        }
        assert!(!wake.kill);
    }
    let kick = bench.kick.try_clone().unwrap();
    let bell = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        kick.write(1).unwrap();
    });
    let start = Instant::now();
    while !bench.engine.turn(Sleep::Forever, &mut done).unwrap().kick {}
    assert!(start.elapsed() >= Duration::from_millis(10), "it slept");
    sleeps_as_long_as_it_is_told(&mut bench);
    bell.join().unwrap();
    bench.kill.write(1).unwrap();
    while !bench.engine.turn(Sleep::Forever, &mut done).unwrap().kill {}
    assert!(done.is_empty());
}

#[test]
fn events_end_the_wait_again_and_again() {
    everywhere(is_woken_by_its_events);
}

#[test]
fn events_end_the_wait_on_an_old_kernel_too() {
    if probe_uring().is_err() {
        return;
    }
    let file = file(SIZE);
    let options = options(&file);
    let mut bench = Bench::new(EngineKind::Plain, file, None, &options).unwrap();
    let [kick, kill] = [&bench.kick, &bench.kill].map(|event| event.try_clone().unwrap());
    let events = Events { kick, kill };
    bench.engine = Box::new(Uring::new(Arc::clone(&bench.disk), &events, 32).unwrap().like_an_old_kernel());
    is_woken_by_its_events(bench);
}

#[test]
fn drain_leaves_nothing_in_flight() {
    everywhere(|mut bench| {
        for i in 0..16 {
            let buffers = bench.buffers(&[(i * 4096, 4096)]);
            bench.engine.start(i as u32, Io::Write { offset: i * 4096, buffers, durable: true });
        }
        let mut done = Vec::new();
        bench.engine.drain(&mut done);
        assert_eq!((done.len(), bench.engine.in_flight()), (16, 0));
        assert!(done.iter().all(|done| done.result.is_ok()));
    });
}
