//! The balloon, with a driver of a few instructions, and what is told of memory.

use vmm::control::{VmAction, VmReply};
use vmm::stats::MemoryStats;

use super::guests::Code;
use super::{Running, device, negotiate, queue, run};

const MIB: u64 = 1 << 20;
/// STATS_VQ and PAGE_REPORTING.
const FEATURES: u32 = 1 << 1 | 1 << 5;
/// Where the queues are: 16 KiB each.
const QUEUES: u32 = 0x20_0000;
/// The statistics, and the numbers of the pages that are inflated.
const TOLD: u32 = 0x30_0000;
const NUMBERS: u32 = 0x30_1000;
/// Memory that the guest uses, [`USED`] bytes of it, and then reports free.
const AREA: u32 = 0x100_0000;
const USED: u64 = 24 * MIB;
const REPORTED: u64 = 16 * MIB;
/// What it inflates behind that.
const PAGES: u32 = 512;

/// Make one buffer available in the queue at `ring`, and ring its bell.
fn offer(code: Code, index: u32, buffer: (u32, u32), writable: bool) -> Code {
    let ring = QUEUES + index * 0x4000;
    let code = code.store(ring, buffer.0).store(ring + 4, 0).store(ring + 8, buffer.1);
    let code = code.store(ring + 12, if writable { 2 } else { 0 });
    // The ring's flags and index, then its first entry: descriptor 0.
    code.store(ring + 0x1004, 0).store(ring + 0x1000, 1 << 16).store(device(2) + 0x50, index)
}

/// Uses memory, tells of it, and gives most of it back when it is told to.
fn driver() -> Code {
    let balloon = device(2);
    let mut code = negotiate(Code::default(), balloon, FEATURES);
    for index in 0..4 {
        code = queue(code, balloon, index, QUEUES + index * 0x4000);
    }
    code = code.touch(AREA, (USED / 4096) as u32);
    // Two figures, of 2 and 8 bytes each: free (4), and available (6).
    code = code.store(TOLD, 1234 << 16 | 4).store(TOLD + 4, 0).store(TOLD + 8, 6 << 16);
    code = code.store(TOLD + 12, 5678).store(TOLD + 16, 0);
    code = offer(code.store(balloon + 0x70, 15), 2, (TOLD, 20), false);
    // The target is the first word of configuration space.
    code = offer(code.wait(balloon + 0x100), 3, (AREA, REPORTED as u32), true);
    for page in 0..PAGES {
        code = code.store(NUMBERS + 4 * page, (AREA + REPORTED as u32) / 4096 + page);
    }
    code = offer(code, 0, (NUMBERS, 4 * PAGES), false);
    // The device has used both, and what the driver holds is the second word.
    code = code.wait(QUEUES + 3 * 0x4000 + 0x2000).wait(QUEUES + 0x2000);
    code.store(balloon + 0x104, PAGES).stay()
}

fn memory(vm: &Running) -> MemoryStats {
    vm.stats().memory
}

#[test]
fn memory_that_the_guest_gives_back_is_the_hosts_again() {
    let Some(vm) = run(&driver(), |_| {}) else { return };
    vm.until("there is a driver", || memory(&vm).guest.get("free") == Some(&1234));
    let before = memory(&vm);
    assert_eq!((before.total, before.balloon, before.reported_free), (64 * MIB, 0, 0));
    assert_eq!(before.guest["available"], 5678);
    assert!(before.resident >= USED, "{before:?}");
    vm.done(VmAction::ResizeMemory { size: 64 * MIB });
    assert_eq!(memory(&vm).balloon, 0, "it has all");
    match vm.act(VmAction::ResizeMemory { size: 63 * MIB }) {
        VmReply::Refused(reason) => assert!(reason.contains("64M to 64M are possible"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_leaves_what_it_is_asked_for() {
    let Some(vm) = run(&driver(), |spec| spec.memory.size.0 = 96 * MIB) else { return };
    vm.until("there is a driver", || memory(&vm).guest.contains_key("free"));
    let before = memory(&vm);
    vm.done(VmAction::ResizeMemory { size: 80 * MIB });
    vm.until("it gives back", || memory(&vm).balloon == u64::from(PAGES) * 4096);
    let after = memory(&vm);
    assert_eq!(after.reported_free, REPORTED);
    let given = REPORTED + u64::from(PAGES) * 4096;
    assert!(before.resident - after.resident >= given, "{before:?} {after:?}");
    let stats = vm.stats();
    let balloon = stats.devices.iter().find(|device| device.id == "balloon0").unwrap();
    assert_eq!((balloon.kind.as_str(), balloon.from_guest), ("balloon", given));
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let refused = |balloon: bool, words: &str| {
        let Some(vm) = run(&super::printing(), |spec| spec.balloon = balloon) else { return };
        match vm.act(VmAction::ResizeMemory { size: 64 * MIB }) {
            VmReply::Refused(reason) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{other:?}"),
        }
    };
    refused(true, "the guest has no balloon driver");
    refused(false, "start it with --balloon on");
}
