//! The bare-metal tests. `test=a,b,…` on the command line chooses which; each prints what it wants the host to see,
//! then `ok a`, or `FAIL a: why`. The last line is `done`, then the machine is switched off, unless a test is about
//! another end.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::String;

use rt::{println, pvh};

mod balloon;
mod block;
mod console;
mod ends;
mod folder;
mod grow;
mod hostile;
mod interrupts;
mod journal;
mod machine;
mod misuse;
mod mmio;
mod net;
mod pci;
mod serial;
mod smp;
mod snapshots;
mod tree;
mod vsock;
mod vsock_speed;

rt::guest_main!(run);

/// What a test comes to.
type Outcome = Result<(), String>;

/// A test: its name, and what it does.
type Test = (&'static str, fn() -> Outcome);

const TESTS: &[Test] = &[
    ("cmdline", machine::cmdline),
    ("memory", machine::memory),
    ("acpi", machine::acpi),
    ("rtc", machine::rtc),
    ("cpuid", machine::cpuid),
    ("serial", serial::registers),
    ("serial-echo", serial::echo),
    ("serial-flood", serial::flood),
    ("serial-endless", serial::endless),
    ("timer", interrupts::timer),
    ("serial-irq", interrupts::serial),
    ("virtio-irq", interrupts::virtio),
    ("msix", interrupts::msix_mask),
    ("pci", pci::scan),
    ("bar", pci::bars),
    ("bar-move", pci::move_bar),
    ("mmio", mmio::probe),
    ("block", block::contents),
    ("block-large", block::large),
    ("block-discard", block::discard),
    ("block-readonly", block::readonly),
    ("block-queues", block::queues),
    ("block-errors", block::errors),
    ("block-full", block::full),
    ("block-grow", grow::disk),
    ("block-throttled", block::throttled),
    ("journal", journal::endless),
    ("console", console::write),
    ("console-echo", console::echo),
    ("rng", console::rng),
    ("balloon", balloon::pages_go),
    ("folder", folder::files),
    ("folder-beats", folder::beats),
    ("folder-tree", tree::copy),
    ("net", net::echo),
    ("net-queues", net::queues),
    ("net-link", net::link),
    ("smp", smp::start),
    ("vsock-serve", vsock::serve),
    ("vsock-connect", vsock::connect),
    ("vsock-bulk", vsock::bulk),
    ("vsock-half", vsock::half),
    ("vsock-speed", vsock_speed::speed),
    ("snapshots", snapshots::work),
    ("reboot", ends::reboot),
    ("reboots", ends::reboots),
    ("panic", ends::panic),
    ("triple-fault", ends::triple_fault),
    ("hang", ends::hang),
    ("idle", ends::idle),
    ("sse-in-ring0", ends::sse_in_ring0),
    ("hostile-queues", hostile::queues),
    ("hostile-rings", hostile::rings),
    ("hostile-reset", hostile::reset_in_flight),
    ("hostile-registers", hostile::registers),
    ("misuse-bars", misuse::bars),
    ("misuse-configuration", misuse::configuration),
    ("misuse-messages", misuse::messages),
    ("misuse-ports", misuse::ports),
];

/// Fail the test with a text unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(alloc::format!($($text)+));
        }
    };
}

fn run() {
    let mut names = pvh::arg("test").unwrap_or("cmdline").split(',');
    for name in &mut names {
        let Some((_, test)) = TESTS.iter().find(|(known, _)| *known == name) else {
            println!("FAIL {name}: no such test");
            continue;
        };
        match test() {
            Ok(()) => println!("ok {name}"),
            Err(why) => println!("FAIL {name}: {why}"),
        }
    }
    println!("done");
}
