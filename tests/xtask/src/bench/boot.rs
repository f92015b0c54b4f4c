//! From a stock kernel's first instruction to its init, on the guest's own clock.
//!
//! In a box that counts instructions as time, so that it repeats whatever else the machine does. Two command lines: the
//! one most people use, where each line of the kernel's log is many exits to the emulated serial port, and `quiet`.

use std::ffi::OsString;
use std::fmt::Write;

use anyhow::{Context, Result};

use super::peers::{Peer, Work};
use super::script::{self, Where};
use super::table::{Line, Target, Unit};
use super::{Bench, linux};
use crate::debian::kernel::Flavour;
use crate::linux_guest::Guest;
use crate::progress::Step;

const MEBIBYTES: u32 = 256;
const CMDLINES: [(&str, &str); 2] = [
    ("kernel → init, console=ttyS0", "console=ttyS0 skiff.do=poweroff"),
    ("kernel → init, console=ttyS0 quiet", "console=ttyS0 quiet skiff.do=poweroff"),
];
/// What init says first.
const MARK: &str = "skiff-guest: init uptime=";

/// Boots with each, one after the other, in one box.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let guest = linux(Flavour::Cloud)?;
    let peers = Peer::found();
    let step =
        Step::start(format!("booting Linux with {} in a box that counts instructions", 1 + peers.len()));
    let output = script::run(Where::Icount, &script(bench, &guest, &peers)?)?;
    step.done();
    let times = parse(&output);
    let time = |name: &str| times.iter().find(|(said, _)| said == name).and_then(|(_, time)| *time);
    let mut lines = Vec::new();
    for (index, (name, _)) in CMDLINES.iter().enumerate() {
        let ours = time(&format!("skiff/{index}"));
        let ours = ours.with_context(|| format!("skiff's guest did not reach its init:\n{output}"))?;
        let mut line = Line::new("boot", *name, ours, Unit::Seconds).target(Target::AtMost(1.36));
        for peer in &peers {
            line = line.peer(peer.name(), time(&format!("{}/{index}", peer.name())));
        }
        lines.push(line);
    }
    Ok(lines)
}

fn script(bench: &Bench, guest: &Guest, peers: &[Peer]) -> Result<String> {
    let (kernel, elf) = (guest.kernel.image(), guest.kernel.unpacked()?);
    // The end of a boot is the end of its monitor; one that hangs has a minute of the box's time.
    let mut script = format!(
        "boot() {{ echo \"boot $1\"; shift; timeout -s KILL 60 \"$@\" </dev/null 2>&1 | grep -a -m1 '{MARK}'; }}\n"
    );
    for (index, (_, cmdline)) in CMDLINES.iter().enumerate() {
        let mut skiff: Vec<OsString> = vec![bench.skiff.clone().into(), "run".into(), "--kernel".into()];
        skiff.extend([kernel.clone().into(), "--initrd".into(), guest.initramfs.clone().into()]);
        skiff.extend(["--cpus", "1", "--memory", "256M", "--cmdline", cmdline].map(OsString::from));
        writeln!(script, "boot skiff/{index} {}", script::quote(&skiff)?)?;
        let work = Work {
            kernel: &kernel,
            elf: &elf,
            initrd: Some(&guest.initramfs),
            cmdline,
            mebibytes: MEBIBYTES,
        };
        for peer in peers {
            let command = script::quote(&peer.command(&work, &bench.work)?)?;
            writeln!(script, "boot '{}/{index}' {command}", peer.name())?;
        }
    }
    script.push_str("true\n");
    Ok(script)
}

/// Each boot by name, with the uptime that its init saw, in seconds.
fn parse(output: &str) -> Vec<(String, Option<f64>)> {
    let mut boots: Vec<(String, Option<f64>)> = Vec::new();
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("boot ") {
            boots.push((name.trim().to_owned(), None));
        } else if let (Some((_, time)), Some(last)) = (line.split_once(MARK), boots.last_mut()) {
            last.1 = time.trim().parse().ok();
        }
    }
    boots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_without_an_init_have_no_time() {
        let output = "boot a b/0\r\n[  1.2] skiff-guest: init uptime=1.36\r\nboot c/0\nboot d/1\nskiff-guest: init uptime=2\n";
        let names: Vec<_> = parse(output);
        assert_eq!(names, [("a b/0".into(), Some(1.36)), ("c/0".into(), None), ("d/1".into(), Some(2.0))]);
    }
}
