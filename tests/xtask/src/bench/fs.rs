//! A folder of the host in a Linux guest: skiff's virtio-fs beside QEMU's 9p, with the same kernel, program and folder.
//!
//! The folder is in memory where it can be, so that the host's disk is not what is measured. 9p is mounted in two ways: as it comes,
//! which keeps nothing in the guest's memory, and `cache=loose`, which keeps everything and never asks again. virtio-fs is between the two.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::peers::{Peer, Work};
use super::script::{self, Where};
use super::table::{Line, Unit};
use super::{Bench, linux, median};
use crate::debian::kernel::Flavour;
use crate::initramfs::Archive;
use crate::linux_guest::{Guest, add_modules};
use crate::place::Place;
use crate::progress::Step;
use crate::{paths, tool};

const MEBIBYTES: u32 = 512;
/// How much is written and read, in MiB, and how many files are made, looked at and removed.
const BYTES: u32 = 64;
const FILES: u32 = 1000;
/// Monitors take turns this often, and once where the processor is emulated and a boot takes its time.
const ROUNDS: usize = 3;
/// The folder, for the shell.
const FOLDER: &str = "\"$place\"/shared";

/// What the guest does: `init.sh` sources it. Only `dd`, `rm` and `ls` are programs of their own; the rest the shell does by itself.
const EXTRA: &str = r#"
do_shared() {
    /bin/busybox --install -s /bin
    mkdir /shared
    if mount -t virtiofs shared /shared 2>/dev/null; then
        # As the agent does.
        echo 1024 >/sys/class/bdi/0:$(stat -c %d /shared)/read_ahead_kb || say "problem read-ahead=failed"
    else
        load 9pnet_virtio
        load 9p
        options=trans=virtio,version=9p2000.L,msize=1048576
        case "$(cat /proc/cmdline)" in *skiff.loose*) options=$options,cache=loose ;; esac
        mount -t 9p -o $options shared /shared || say "problem mount=failed"
    fi
    cd /shared
    timed write BYTES dd if=/dev/zero of=large bs=1M count=BYTES conv=fsync
    echo 3 >/proc/sys/vm/drop_caches
    timed read BYTES dd if=large of=/dev/null bs=1M
    rm large
    mkdir files
    cd files
    timed create FILES each make
    echo 3 >/proc/sys/vm/drop_caches
    timed stat FILES each look
    timed list FILES ls -l
    timed unlink FILES each remove
}

# The clock is in hundredths of a second.
timed() {
    what=$1 count=$2
    shift 2
    read -r from idle </proc/uptime
    "$@" >/dev/null 2>&1
    read -r to idle </proc/uptime
    say "$what: $from $to $count"
}

each() {
    number=0
    case $1 in
    make) while [ $number -lt FILES ]; do : >$number; number=$((number + 1)); done ;;
    look) while [ $number -lt FILES ]; do [ -e $number ] || say "problem gone=$number"; number=$((number + 1)); done ;;
    remove) cd .. && rm -r files ;;
    esac
}
"#;

/// What is measured, as the guest calls it, and how it is read.
const JOBS: [(&str, &str, Unit); 6] = [
    ("write", "shared folder, sequential write", Unit::MebibytesPerSecond),
    ("read", "shared folder, sequential read", Unit::MebibytesPerSecond),
    ("create", "shared folder, files made", Unit::Requests),
    ("stat", "shared folder, files looked up", Unit::Requests),
    ("list", "shared folder, files listed with attributes", Unit::Requests),
    ("unlink", "shared folder, files removed", Unit::Requests),
];

/// One guest after the other in one place.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    // The cloud flavour has no 9p.
    let guest = linux(Flavour::Generic)?;
    let initrd = initrd(&guest, &bench.work)?;
    let has_qemu = tool::find("qemu-system-x86_64").is_some();
    let step = Step::start("a shared folder, skiff and QEMU in turn");
    let output = script::run(Where::Anywhere, &script(bench, &guest, &initrd, has_qemu)?)?;
    step.done();
    ensure!(!output.contains("skiff-guest: problem"), "a guest has a problem:\n{output}");
    lines(&output, has_qemu)
}

/// The Linux guest's initramfs with the drivers and what is to be done behind it.
fn initrd(guest: &Guest, dir: &Path) -> Result<PathBuf> {
    let mut bytes =
        fs::read(&guest.initramfs).with_context(|| format!("cannot read {}", guest.initramfs.display()))?;
    let mut archive = Archive::default();
    archive.dir("modules");
    add_modules(&mut archive, &guest.kernel, &["virtiofs", "9pnet_virtio", "9p"])?;
    let extra = EXTRA.replace("BYTES", &BYTES.to_string()).replace("FILES", &FILES.to_string());
    archive.file("extra.sh", 0o644, extra.as_bytes());
    bytes.extend(archive.finish());
    let path = dir.join("shared.initramfs");
    paths::write_whole(&path, &bytes)?;
    Ok(path)
}

fn script(bench: &Bench, guest: &Guest, initrd: &Path, has_qemu: bool) -> Result<String> {
    let mut script = "set -e\nplace=$(mktemp -d -p /run skiff-bench.XXXXXX 2>/dev/null || mktemp -d)\ntrap 'rm -rf \"$place\"' EXIT\n".to_owned();
    writeln!(script, "mkdir {FOLDER}")?;
    writeln!(script, "export XDG_STATE_HOME=\"$place\"/state")?;
    // A guest that hangs has five minutes.
    writeln!(
        script,
        "boot() {{ echo \"by $1\"; shift; timeout -s KILL 300 \"$@\" </dev/null 2>&1 | grep -a '^skiff-guest: ' || true; }}"
    )?;
    let (kernel, elf) = (guest.kernel.image(), guest.kernel.unpacked()?);
    let cmdline = "console=ttyS0 quiet skiff.do=shared,poweroff";
    let mut skiff: Vec<OsString> = vec![bench.skiff.clone().into(), "run".into(), "--kernel".into()];
    skiff.extend([kernel.clone().into(), "--initrd".into(), initrd.into()]);
    skiff.extend(
        ["--cpus", "1", "--memory", &format!("{MEBIBYTES}M"), "--cmdline", cmdline].map(OsString::from),
    );
    let skiff = script::quote(&skiff)?;
    let qemu = |cmdline: &str| {
        let work = Work { kernel: &kernel, elf: &elf, initrd: Some(initrd), cmdline, mebibytes: MEBIBYTES };
        script::quote(&Peer::QemuQ35.command(&work, &bench.work)?)
    };
    let (plain, loose) = (qemu(cmdline)?, qemu(&format!("{cmdline} skiff.loose"))?);
    let rounds = if matches!(Place::of_machine(), Place::Host(_)) { ROUNDS } else { 1 };
    for _ in 0..rounds {
        writeln!(script, "boot skiff {skiff} --fs path={FOLDER},tag=shared")?;
        for (name, command) in [("9p", &plain), ("loose", &loose)].iter().filter(|_| has_qemu) {
            writeln!(
                script,
                "boot {name} {command} -virtfs local,path={FOLDER},mount_tag=shared,security_model=none"
            )?;
        }
    }
    Ok(script)
}

fn lines(output: &str, has_qemu: bool) -> Result<Vec<Line>> {
    let lines = JOBS.map(|(job, name, unit)| {
        let ours = rate(output, "skiff", job);
        let ours = ours.with_context(|| format!("nothing was measured for {job}:\n{output}"))?;
        let mut line = Line::new("fs", name, ours, unit);
        if has_qemu {
            line = line.peer("QEMU 9p", rate(output, "9p", job));
            line = line.peer("QEMU 9p, cache=loose", rate(output, "loose", job));
        }
        Ok(line)
    });
    lines.into_iter().collect()
}

/// What `by` did of `job` a second: the middle of all lines `JOB: FROM TO COUNT` that it said.
fn rate(output: &str, by: &str, job: &str) -> Option<f64> {
    let mut rates = Vec::new();
    let mut is_by = false;
    for line in output.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("by ") {
            is_by = name == by;
        }
        let said =
            line.strip_prefix("skiff-guest: ").and_then(|said| said.strip_prefix(job)?.strip_prefix(": "));
        let numbers: Vec<f64> =
            said.unwrap_or_default().split(' ').filter_map(|word| word.parse().ok()).collect();
        if let ([from, to, count], true) = (&numbers[..], is_by) {
            // The clock's own step, so that nothing takes no time.
            rates.push(count / (to - from).max(0.01));
        }
    }
    (!rates.is_empty()).then(|| median(&rates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_monitor_has_what_its_guests_said() {
        let said = "by skiff\nskiff-guest: write: 1.00 2.00 64\r\nby 9p\nskiff-guest: write: 1.00 3.00 64\r\nskiff-guest: problem mount=failed\n\
                    by skiff\nskiff-guest: write: 1.00 1.50 64\r\n";
        assert!((rate(said, "skiff", "write").unwrap() - 96.0).abs() < 1e-9);
        assert!((rate(said, "9p", "write").unwrap() - 32.0).abs() < 1e-9);
        assert_eq!(rate(said, "loose", "write"), None);
        assert_eq!(rate(said, "skiff", "read"), None);
    }
}
