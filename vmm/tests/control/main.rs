//! A running VM and what can be asked of it, with guests of a few instructions on /dev/kvm. Without a usable /dev/kvm
//! these tests say so and pass.

mod balloon;
mod console;
mod guests;
mod snapshots;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use vmm::api::types::Ended;
use vmm::control::{Controller, Outcome, RunState, Vm, VmAction, VmReply};
use vmm::machine::{Setup, start};
use vmm::notice::Notice;
use vmm::spec::{Memory, MemorySpec, Stream, Transport, VmSpec};
use vmm::stats::VmStats;

use guests::Code;

const PATIENCE: Duration = Duration::from_secs(20);
const SERIAL: u16 = 0x3f8;
/// The reset control register, and a reset in it.
const RESET: (u16, u8) = (0xcf9, 0x06);
/// The sleep control register, and S5 in it.
const OFF: (u16, u8) = (0x600, 0x34);

/// The registers of a device on virtio-mmio, by its number. The console is the first, and without disks the entropy source
/// the second, the balloon the third.
fn device(number: u64) -> u32 {
    (arch::layout::MMIO_SLOTS + number * arch::layout::MMIO_SLOT_LEN) as u32
}

/// A VM in a test. It is killed at the end.
struct Running {
    vm: Option<Vm>,
    controller: Controller,
    notices: Receiver<Notice>,
    _dir: tempfile::TempDir,
}

/// Start `code`; `None` where no VM can run.
fn run(code: &Code, change: impl FnOnce(&mut VmSpec)) -> Option<Running> {
    run_with(code, change, |_| {})
}

/// As [`run`], with another setup.
fn run_with(
    code: &Code,
    change: impl FnOnce(&mut VmSpec),
    set_up: impl FnOnce(&mut Setup),
) -> Option<Running> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("skipped: /dev/kvm: {error}");
        return None;
    }
    let (dir, kernel) = code.file();
    let mut spec = VmSpec {
        kernel,
        initrd: None,
        cmdline: String::new(),
        cpus: 1,
        memory: MemorySpec { size: Memory(64 << 20), hugepages: false, overcommit: false },
        transport: Transport::Mmio,
        serial: Stream::Null,
        console: Stream::Null,
        disks: Vec::new(),
        nets: Vec::new(),
        ports: Vec::new(),
        vsock: None,
        folders: Vec::new(),
        cpu_template: None,
        balloon: true,
    };
    change(&mut spec);
    let (told, notices) = channel();
    let listener = Box::new(move |notice| drop(told.send(notice)));
    let mut setup = Setup {
        name: "test".to_owned(),
        stdout: None,
        log: None,
        dir: None,
        home: None,
        from: None,
        listener,
    };
    set_up(&mut setup);
    let vm = start(spec, setup).unwrap();
    let controller = vm.controller();
    Some(Running { vm: Some(vm), controller, notices, _dir: dir })
}

impl Running {
    fn act(&self, action: VmAction) -> VmReply {
        self.controller.act(action)
    }

    fn done(&self, action: VmAction) {
        assert_eq!(self.act(action), VmReply::Done);
    }

    fn stats(&self) -> VmStats {
        match self.act(VmAction::Stats) {
            VmReply::Stats(stats) => *stats,
            other => panic!("{other:?}"),
        }
    }

    /// How often the guest has written to a port.
    fn written(&self) -> u64 {
        self.stats().vcpus[0].exits["io_out"]
    }

    fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < end, "{what}: it never happens");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(mut self) -> (Outcome, Vec<Notice>) {
        let outcome = self.vm.take().unwrap().wait().unwrap();
        (outcome, self.notices.try_iter().collect())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.vm.is_some() {
            drop(self.controller.request(VmAction::Kill));
        }
    }
}

/// Initialise `device` up to FEATURES_OK with VERSION_1 and these features.
fn negotiate(code: Code, device: u32, features: u32) -> Code {
    let code = code.store(device + 0x70, 3).store(device + 0x20, features);
    code.store(device + 0x24, 1).store(device + 0x20, 1).store(device + 0x70, 11)
}

/// Enable queue `index` of `device`, of 8 entries, its parts each on a page from `at` on.
fn queue(code: Code, device: u32, index: u32, at: u32) -> Code {
    let code = code.store(device + 0x30, index).store(device + 0x38, 8).store(device + 0x80, at);
    code.store(device + 0x90, at + 0x1000).store(device + 0xa0, at + 0x2000).store(device + 0x44, 1)
}

/// Prints for ever.
fn printing() -> Code {
    Code::default().out(SERIAL, b'x').again()
}

#[test]
fn a_paused_vm_does_nothing_until_it_is_resumed() {
    let Some(vm) = run(&printing(), |_| {}) else { return };
    vm.until("the guest runs", || vm.written() > 10);
    assert_eq!(vm.act(VmAction::State), VmReply::State(RunState::Running));
    // Twice: asked again, nothing more happens.
    vm.done(VmAction::Pause);
    vm.done(VmAction::Pause);
    assert_eq!(vm.act(VmAction::State), VmReply::State(RunState::Paused));
    let before = vm.stats();
    std::thread::sleep(Duration::from_millis(50));
    let after = vm.stats();
    assert_eq!(after.vcpus[0].exits, before.vcpus[0].exits);
    assert!(after.uptime_ms > before.uptime_ms, "time goes on");
    vm.done(VmAction::Resume);
    vm.done(VmAction::Resume);
    let written = after.vcpus[0].exits["io_out"];
    vm.until("the guest goes on", || vm.written() > written + 10);
    assert!(vm.stats().vcpus[0].time_ns > before.vcpus[0].time_ns);
    vm.done(VmAction::Kill);
    let (outcome, notices) = vm.end();
    assert_eq!(outcome, Outcome::Killed);
    let stopped = Notice::Stopped { end: Ended::Outcome(Outcome::Killed) };
    assert_eq!(notices, [Notice::Started, Notice::Paused, Notice::Resumed, stopped]);
}

#[test]
fn every_vcpu_is_paused_also_those_that_never_started() {
    let Some(vm) = run(&printing(), |spec| spec.cpus = 3) else { return };
    for _ in 0..20 {
        vm.done(VmAction::Pause);
        vm.done(VmAction::Resume);
    }
    let written = vm.written();
    vm.until("the guest goes on", || vm.written() > written);
    assert_eq!(vm.stats().vcpus.len(), 3);
}

#[test]
fn a_vm_can_be_killed_while_it_is_paused() {
    let Some(vm) = run(&printing(), |_| {}) else { return };
    vm.done(VmAction::Pause);
    vm.done(VmAction::PressPowerButton);
    vm.done(VmAction::Kill);
    assert_eq!(vm.end().0, Outcome::Killed);
}

#[test]
fn a_guest_that_was_reset_stays_paused_before_its_first_instruction() {
    let Some(vm) = run(&Code::default().out(RESET.0, RESET.1).stay(), |_| {}) else { return };
    vm.until("the guest resets itself", || vm.stats().boots > 2);
    vm.done(VmAction::Pause);
    // A reset that was asked for just before is still on its way.
    let _ = vm.stats();
    let before = vm.stats();
    std::thread::sleep(Duration::from_millis(50));
    let after = vm.stats();
    assert_eq!((after.boots, &after.vcpus[0].exits), (before.boots, &before.vcpus[0].exits));
    assert_eq!(vm.act(VmAction::State), VmReply::State(RunState::Paused));
    vm.done(VmAction::Resume);
    vm.until("it goes on", || vm.stats().boots > after.boots + 2);
    // Counts are those of all boots.
    assert!(vm.written() > after.boots);
}

#[test]
fn a_driver_that_starts_its_device_is_told_of_once_a_boot() {
    let rng = device(1);
    let code = negotiate(Code::default(), rng, 0);
    let code = queue(code, rng, 0, 0x20_0000).store(rng + 0x70, 15);
    // Once more, after a reset.
    let code = code.store(rng + 0x70, 0).store(rng + 0x70, 15);
    let Some(vm) = run(&code.out(OFF.0, OFF.1).stay(), |_| {}) else { return };
    let (outcome, notices) = vm.end();
    assert_eq!(outcome, Outcome::PoweredOff);
    let stopped = Notice::Stopped { end: Ended::Outcome(Outcome::PoweredOff) };
    assert_eq!(notices, [Notice::Started, Notice::Booted, stopped]);
}

#[test]
fn a_panic_is_told_with_the_last_lines() {
    let code = Code::default().out(SERIAL, b'!').out(SERIAL, b'\n').out(0x505, 1).stay();
    let Some(vm) = run(&code, |_| {}) else { return };
    let (outcome, notices) = vm.end();
    let last_lines = vec!["!".to_owned()];
    assert_eq!(outcome, Outcome::Panicked { last_lines: last_lines.clone() });
    assert_eq!(notices[1], Notice::Panicked { last_lines });
    assert_eq!(notices[2], Notice::Stopped { end: Ended::Outcome(outcome) });
}

#[test]
fn a_vm_whose_output_nobody_reads_says_that_it_cannot_be_paused_and_goes_on() {
    let fifo = tempfile::tempdir().unwrap();
    let path = fifo.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let mut pipe = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    while pipe.write(&[0; 4096]).is_ok() {}
    let Some(vm) = run(&printing(), |spec| spec.serial = Stream::File(path)) else { return };
    // The exit is counted, and nothing stops the vCPU before it waits for room.
    vm.until("the guest prints", || vm.written() == 1);
    match vm.act(VmAction::Pause) {
        VmReply::Refused(reason) => assert!(reason.contains("read what the guest prints"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(vm.act(VmAction::State), VmReply::State(RunState::Running));
    // Once somebody reads, it goes on, and can be paused.
    rustix::io::ioctl_fionbio(&pipe, false).unwrap();
    std::thread::spawn(move || std::io::copy(&mut pipe, &mut std::io::sink()));
    vm.until("it can be paused", || vm.act(VmAction::Pause) == VmReply::Done);
    vm.done(VmAction::Kill);
    assert_eq!(vm.end().0, Outcome::Killed);
}
