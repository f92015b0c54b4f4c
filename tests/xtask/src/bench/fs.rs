//! A folder of the host in a Linux guest: skiff's virtio-fs beside QEMU's 9p, with the same kernel, program and folder.
//!
//! The folder is in memory where it can be, so that the host's disk is not what is measured. 9p is mounted in two ways: as it comes,
//! which keeps nothing in the guest's memory, and `cache=loose`, which keeps everything and never asks again. virtio-fs is between the two.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

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
/// What a guest has for all of it, and its box, which starts first.
const GUEST_TIME: Duration = Duration::from_secs(400);
const BOX_TIME: Duration = Duration::from_secs(460);
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

/// Somebody whose guest has the folder.
struct Monitor {
    /// As the table calls it.
    name: &'static str,
    /// Starts the guest, for the shell.
    command: String,
}

/// One guest after the other, and in boxes each in one of its own, so that an emulator that hangs costs one of them.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    // The cloud flavour has no 9p.
    let guest = linux(Flavour::Generic)?;
    let initrd = initrd(&guest, &bench.work)?;
    let monitors = monitors(bench, &guest, &initrd)?;
    let mut said = vec![String::new(); monitors.len()];
    let rounds = if matches!(Place::of_machine(), Place::Host(_)) { ROUNDS } else { 1 };
    for _ in 0..rounds {
        for (index, (monitor, said)) in monitors.iter().zip(&mut said).enumerate() {
            let step = Step::start(format!("a shared folder of {}", monitor.name));
            match script::run_within(Where::Anywhere, &script(monitor)?, BOX_TIME) {
                Ok(output) if !output.contains("skiff-guest: problem") => said.push_str(&output),
                Ok(output) => bail!("a guest of {} has a problem:\n{output}", monitor.name),
                // The first is skiff itself.
                Err(error) if index == 0 => return Err(error),
                Err(error) => eprintln!("  nothing to compare with: {error:#}"),
            }
            step.done();
        }
    }
    let names: Vec<&str> = monitors.iter().map(|monitor| monitor.name).collect();
    lines(&names, &said)
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

/// skiff first, and those to compare it with.
fn monitors(bench: &Bench, guest: &Guest, initrd: &Path) -> Result<Vec<Monitor>> {
    let (kernel, elf) = (guest.kernel.image(), guest.kernel.unpacked()?);
    let cmdline = "console=ttyS0 quiet skiff.do=shared,poweroff";
    let mut skiff: Vec<OsString> = vec![bench.skiff.clone().into(), "run".into(), "--kernel".into()];
    skiff.extend([kernel.clone().into(), "--initrd".into(), initrd.into()]);
    skiff.extend(
        ["--cpus", "1", "--memory", &format!("{MEBIBYTES}M"), "--cmdline", cmdline].map(OsString::from),
    );
    let command = format!("{} --fs path={FOLDER},tag=shared", script::quote(&skiff)?);
    let mut monitors = vec![Monitor { name: "skiff", command }];
    if tool::find("qemu-system-x86_64").is_none() {
        return Ok(monitors);
    }
    let loose = format!("{cmdline} skiff.loose");
    for (name, cmdline) in [("QEMU 9p", cmdline), ("QEMU 9p, cache=loose", &loose)] {
        let work = Work { kernel: &kernel, elf: &elf, initrd: Some(initrd), cmdline, mebibytes: MEBIBYTES };
        let qemu = script::quote(&Peer::QemuQ35.command(&work, &bench.work)?)?;
        let command = format!("{qemu} -virtfs local,path={FOLDER},mount_tag=shared,security_model=none");
        monitors.push(Monitor { name, command });
    }
    Ok(monitors)
}

/// Starts the guest with an empty folder and prints what it says.
fn script(monitor: &Monitor) -> Result<String> {
    let mut script = "set -e\nplace=$(mktemp -d -p /run skiff-bench.XXXXXX 2>/dev/null || mktemp -d)\ntrap 'rm -rf \"$place\"' EXIT\n".to_owned();
    writeln!(script, "mkdir {FOLDER}")?;
    writeln!(script, "export XDG_STATE_HOME=\"$place\"/state")?;
    let (seconds, command) = (GUEST_TIME.as_secs(), &monitor.command);
    writeln!(
        script,
        "timeout -s KILL {seconds} {command} </dev/null 2>&1 | grep -a '^skiff-guest: ' || true"
    )?;
    Ok(script)
}

/// What each monitor of `names` did, by what its guests `said`: the first's, and the others' beside it.
fn lines(names: &[&str], said: &[String]) -> Result<Vec<Line>> {
    let lines = JOBS.map(|(job, name, unit)| {
        let mut rates = names.iter().zip(said).map(|(name, said)| (*name, rate(said, job)));
        let (_, ours) = rates.next().context("there is no monitor")?;
        let ours = ours.with_context(|| format!("nothing was measured for {job}: {said:?}"))?;
        Ok(rates.fold(Line::new("fs", name, ours, unit), |line, (peer, rate)| line.peer(peer, rate)))
    });
    lines.into_iter().collect()
}

/// What was done of `job` a second: the middle of all lines `JOB: FROM TO COUNT` that guests said.
fn rate(said: &str, job: &str) -> Option<f64> {
    let rate = |line: &str| {
        let said = line.trim().strip_prefix("skiff-guest: ")?.strip_prefix(job)?.strip_prefix(": ")?;
        let numbers: Vec<f64> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [from, to, count] = numbers[..] else { return None };
        // The clock's own step, so that nothing takes no time.
        Some(count / (to - from).max(0.01))
    };
    let rates: Vec<f64> = said.lines().filter_map(rate).collect();
    (!rates.is_empty()).then(|| median(&rates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_monitor_has_what_its_guests_said() {
        let ours = "skiff-guest: write: 1.00 2.00 64\r\nskiff-guest: read: 1.00 x 64\nskiff-guest: write: 1.00 1.50 64\r\n";
        assert!((rate(ours, "write").unwrap() - 96.0).abs() < 1e-9);
        assert_eq!(rate(ours, "read"), None);
        let all = JOBS.map(|(job, ..)| format!("skiff-guest: {job}: 1.00 2.00 64\n")).concat();
        let rows = lines(&["skiff", "QEMU 9p"], &[all.clone(), String::new()]).unwrap();
        let json = crate::bench::table::to_json(&rows).unwrap();
        assert_eq!(json.matches("\"value\": 64.0").count(), JOBS.len(), "{json}");
        assert_eq!(json.matches("\"value\": null").count(), JOBS.len(), "{json}");
        assert!(lines(&["skiff", "QEMU 9p"], &[String::new(), all]).is_err());
    }
}
