//! What a running VM costs beyond its guest's RAM: the private pages of all other mappings (proc_pid_smaps(5)).

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::net::Tap;
use super::script::{self, Where};
use super::table::{Line, Target, Unit};
use super::{Bench, linux};
use crate::debian::kernel::Flavour;
use crate::progress::Step;

const MEBIBYTES: u64 = 128;
const TARGET: Target = Target::AtMost(4.0);

/// With a network, too.
const TARGET_WITH_NET: Target = Target::AtMost(5.0);

/// A bare-metal guest that works its disk or its network, on this machine; and Linux idling where Linux runs.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let disk = bench.work.join("memory.img");
    let file = File::create(&disk).with_context(|| format!("cannot make {}", disk.display()))?;
    file.set_len(64 << 20).with_context(|| format!("cannot make {}", disk.display()))?;
    let small = bare_metal(bench, "ioguest", &disk, &["--cmdline", "jobs=randread:4096:32 ms=20000"])?;
    let large = with_linux(bench, &disk)?;
    let line = |name: &str, value: Private, target: Target| {
        let line = Line::new("memory", name, value.mebibytes(), Unit::Mebibytes).target(target);
        line.peer("of it dirty", Some(value.dirty as f64 / 1024.0))
    };
    let mut lines = vec![
        line("private memory beyond guest RAM, 1 disk: Linux", large, TARGET),
        line("  a guest that reads its disk 32 deep", small, TARGET),
    ];
    match Tap::make() {
        Ok(tap) => {
            let load = ["--net", &tap.flag(), "--cmdline", "jobs=txgso:65000 ms=20000"];
            let busy = bare_metal(bench, "netguest", &disk, &load)?;
            lines.push(line("  a guest that sends all it can, 1 disk, 1 net", busy, TARGET_WITH_NET));
        }
        Err(error) => eprintln!("no tap can be made: memory with a network is not measured ({error:#})"),
    }
    Ok(lines)
}

fn command(bench: &Bench, kernel: &Path, disk: &Path, rest: &[&str]) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec![bench.skiff.clone().into(), "run".into(), "--kernel".into()];
    words.push(kernel.into());
    words.extend(["--memory".into(), format!("{MEBIBYTES}M").into(), "--disk".into()]);
    let mut path = OsString::from("path=");
    path.push(disk);
    words.push(path);
    words.extend(rest.iter().map(OsString::from));
    words
}

fn bare_metal(bench: &Bench, guest: &str, disk: &Path, load: &[&str]) -> Result<Private> {
    let step = Step::start("looking at the memory of a VM");
    let words = command(bench, &bench.guest(guest), disk, &[&["--transport", "mmio"], load].concat());
    let (program, rest) = words.split_first().context("there is no command")?;
    let child = Command::new(program).args(rest).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = Ended(child.context("cannot run skiff")?);
    let pipe = child.0.stdout.take().context("there is no pipe")?;
    let mut line = String::new();
    BufReader::new(pipe).read_line(&mut line).context("the guest says nothing")?;
    ensure!(line.starts_with("tsc-khz"), "the guest did not start: {line}");
    // Its disk is at work soon after.
    std::thread::sleep(Duration::from_millis(500));
    let smaps = format!("/proc/{}/smaps", vm_of(child.0.id())?);
    let smaps = std::fs::read_to_string(&smaps).with_context(|| format!("cannot read {smaps}"))?;
    step.done();
    Private::of(&smaps)
}

/// The process of the VM for which `front` has the terminal: its only child.
fn vm_of(front: u32) -> Result<u32> {
    let path = format!("/proc/{front}/task/{front}/children");
    let children = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let vm = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
    vm.context("skiff has no child that is the VM")
}

fn with_linux(bench: &Bench, disk: &Path) -> Result<Private> {
    let guest = linux(Flavour::Cloud)?;
    let step = Step::start("looking at the memory of a VM with Linux");
    let mut rest = vec!["--serial", "file=/run/skiff-bench.log", "--cmdline", "console=ttyS0 skiff.do=idle"];
    let initrd = guest.initramfs.to_str().context("the target directory's name is not UTF-8")?;
    rest.extend(["--initrd", initrd]);
    let words = script::quote(&command(bench, &guest.kernel.image(), disk, &rest))?;
    let script = format!(
        "{words} </dev/null >/dev/null & \
         for _ in $(seq 60); do grep -q 'skiff-guest: idle' /run/skiff-bench.log 2>/dev/null && break; sleep 1; done; \
         grep -q 'skiff-guest: idle' /run/skiff-bench.log && cat /proc/$(cut -d ' ' -f 1 /proc/$!/task/$!/children)/smaps; \
         code=$?; kill $!; rm -f /run/skiff-bench.log; exit $code"
    );
    let smaps = script::run(Where::Anywhere, &script)?;
    step.done();
    Private::of(&smaps)
}

/// A process that does not outlive its use.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Private pages beyond the guest's RAM, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Private {
    dirty: u64,
    clean: u64,
}

impl Private {
    fn mebibytes(self) -> f64 {
        (self.dirty + self.clean) as f64 / 1024.0
    }

    /// Adds up all mappings that are smaller than the guest's RAM.
    fn of(smaps: &str) -> Result<Private> {
        let (mut sum, mut is_ram, mut seen) = (Private::default(), false, false);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let (Some(key), Some(Ok(kib))) = (words.next(), words.next().map(str::parse::<u64>)) else {
                continue;
            };
            match key {
                "Size:" => is_ram = kib >= MEBIBYTES * 1024,
                "Private_Dirty:" if !is_ram => sum.dirty += kib,
                "Private_Clean:" if !is_ram => sum.clean += kib,
                _ => {}
            }
            seen |= is_ram;
        }
        ensure!(seen, "the guest's RAM is not among the mappings:\n{smaps}");
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_ram_does_not_count() {
        let smaps = "7f00-7f01 rw-p 00000000 00:00 0\nSize:  131072 kB\nPrivate_Clean: 9 kB\nPrivate_Dirty: 5000 kB\n\
                     7f02-7f03 r-xp 00000000 08:01 7 /bin/skiff\nSize: 400 kB\nPrivate_Clean: 30 kB\nPrivate_Dirty: 4 kB\n";
        assert_eq!(Private::of(smaps).unwrap(), Private { dirty: 4, clean: 30 });
        assert!(Private::of("").is_err());
    }
}
