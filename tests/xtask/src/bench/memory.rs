//! What a running VM costs beyond its guest's RAM: the private pages of all other mappings (proc_pid_smaps(5)).

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::script::{self, Where};
use super::table::{Line, Target, Unit};
use super::{Bench, linux};
use crate::progress::Step;

const MEBIBYTES: u64 = 128;
const TARGET: Target = Target::AtMost(4.0);

/// A bare-metal guest that works its disk, on this machine; and Linux idling where Linux runs.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let disk = bench.work.join("memory.img");
    let file = File::create(&disk).with_context(|| format!("cannot make {}", disk.display()))?;
    file.set_len(64 << 20).with_context(|| format!("cannot make {}", disk.display()))?;
    let small = bare_metal(bench, &disk)?;
    let large = with_linux(bench, &disk)?;
    let line = |name: &str, value: Private| {
        let line = Line::new("memory", name, value.mebibytes(), Unit::Mebibytes).target(TARGET);
        line.peer("of it dirty", Some(value.dirty as f64 / 1024.0))
    };
    Ok(vec![
        line("private memory beyond guest RAM, 1 disk: Linux", large),
        line("  a guest that reads its disk 32 deep", small),
    ])
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

fn bare_metal(bench: &Bench, disk: &Path) -> Result<Private> {
    let step = Step::start("looking at the memory of a VM");
    let load = ["--transport", "mmio", "--cmdline", "jobs=randread:4096:32 ms=20000"];
    let words = command(bench, &bench.guest("ioguest"), disk, &load);
    let (program, rest) = words.split_first().context("there is no command")?;
    let child = Command::new(program).args(rest).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = Ended(child.context("cannot run skiff")?);
    let pipe = child.0.stdout.take().context("there is no pipe")?;
    let mut line = String::new();
    BufReader::new(pipe).read_line(&mut line).context("the guest says nothing")?;
    ensure!(line.starts_with("tsc-khz"), "the guest did not start: {line}");
    // Its disk is at work soon after.
    std::thread::sleep(Duration::from_millis(500));
    let smaps = format!("/proc/{}/smaps", child.0.id());
    let smaps = std::fs::read_to_string(&smaps).with_context(|| format!("cannot read {smaps}"))?;
    step.done();
    Private::of(&smaps)
}

fn with_linux(bench: &Bench, disk: &Path) -> Result<Private> {
    let guest = linux()?;
    let step = Step::start("looking at the memory of a VM with Linux");
    let mut rest = vec!["--serial", "file=/run/skiff-bench.log", "--cmdline", "console=ttyS0 skiff.do=idle"];
    let initrd = guest.initramfs.to_str().context("the target directory's name is not UTF-8")?;
    rest.extend(["--initrd", initrd]);
    let words = script::quote(&command(bench, &guest.kernel.image(), disk, &rest))?;
    let script = format!(
        "{words} </dev/null >/dev/null & \
         for _ in $(seq 60); do grep -q 'skiff-guest: idle' /run/skiff-bench.log 2>/dev/null && break; sleep 1; done; \
         grep -q 'skiff-guest: idle' /run/skiff-bench.log && cat /proc/$!/smaps; \
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
