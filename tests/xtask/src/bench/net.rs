//! Network throughput through a tap: a guest that polls from ring 3, under skiff and under QEMU without vhost in turn.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::table::{Line, Target, Unit};
use super::{Bench, median, peers};
use crate::progress::Step;
use crate::tool;

const TAP: &str = "skbench0";
const QEMU: &str = "qemu-system-x86_64";
const ROUNDS: usize = 5;
const MILLIS: u32 = 500;
/// The longest segment that one frame can be.
const SEGMENT: usize = 65_000;

/// What is measured.
struct Job {
    name: &'static str,
    /// As the guest reads it.
    guest: &'static str,
    /// What the host sends meanwhile, in bytes a frame.
    host: Option<usize>,
    /// Bytes count, not frames.
    bulk: bool,
}

const JOBS: [Job; 4] = [
    Job { name: "60-byte frames out", guest: "tx:60", host: None, bulk: false },
    Job { name: "60-byte frames in", guest: "rx", host: Some(60), bulk: false },
    Job { name: "bulk out", guest: "txgso:65000", host: None, bulk: true },
    Job { name: "bulk in", guest: "rx", host: Some(SEGMENT), bulk: true },
];

/// How a monitor ends when its guest is done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// With the guest, which switches itself off.
    PowersOff,
    /// A microvm knows no such switch.
    MustBeKilled,
}

/// Both take turns, so that a slow moment of the machine meets both.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let tap = match Tap::make() {
        Ok(tap) => tap,
        Err(error) => {
            eprintln!("no tap can be made: networks are not measured ({error:#})");
            return Ok(Vec::new());
        }
    };
    let mut has_qemu = tool::find(QEMU).is_some();
    let step = Step::start("frames through a tap, skiff and QEMU in turn");
    let mut lines = Vec::new();
    for (index, job) in JOBS.iter().enumerate() {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            step.detail(format!("{}, {} of {}", job.name, index * ROUNDS + round + 1, JOBS.len() * ROUNDS));
            ours.push(run(bench, job, End::PowersOff, skiff(bench, job))?);
            if has_qemu {
                match run(bench, job, End::MustBeKilled, qemu(bench, job)) {
                    Ok(rate) => theirs.push(rate),
                    Err(error) => {
                        eprintln!("  nothing to compare with: QEMU: {error:#}");
                        has_qemu = false;
                    }
                }
            }
        }
        lines.push(line(job, &ours, &theirs));
    }
    step.done();
    drop(tap);
    Ok(lines)
}

fn line(job: &Job, ours: &[f64], theirs: &[f64]) -> Line {
    let unit = if job.bulk { Unit::MebibytesPerSecond } else { Unit::Requests };
    let name = format!("tap, {}", job.name);
    if theirs.is_empty() {
        return Line::new("net", name, median(ours), unit);
    }
    let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
    let line = Line::new("net", name, median(&ratios), Unit::Ratio).target(Target::AtLeast(1.2));
    line.peer_in("skiff", Some(median(ours)), unit).peer_in("QEMU", Some(median(theirs)), unit)
}

fn skiff(bench: &Bench, job: &Job) -> Command {
    let mut command = Command::new(&bench.skiff);
    command.args(["run", "--memory", "128M", "--transport", "mmio", "--kernel"]).arg(bench.guest("netguest"));
    command.args(["--cmdline", &format!("jobs={} ms={MILLIS}", job.guest), "--net", &format!("tap={TAP}")]);
    command
}

/// A microvm, whose first slot for a virtio-mmio device is named: it would take the last.
fn qemu(bench: &Bench, job: &Job) -> Command {
    let mut command = Command::new(QEMU);
    command.args(["-cpu", peers::qemu_cpu()]);
    let words = "-accel kvm -smp 1 -nodefaults -no-user-config -display none -serial stdio -no-reboot \
                 -M microvm -m 128M -global virtio-mmio.force-legacy=false \
                 -device virtio-net-device,netdev=n0,bus=virtio-mmio-bus.0 -netdev";
    command.args(words.split_whitespace());
    command.arg(format!("tap,id=n0,ifname={TAP},script=no,downscript=no,vhost=off"));
    command.arg("-kernel").arg(bench.guest("netguest"));
    let slots = "mmio=4272947200 mmio_step=512";
    command.args(["-append", &format!("jobs={} ms={MILLIS} {slots}", job.guest)]);
    command
}

/// One run: frames a second, or MiB a second if bulk.
fn run(bench: &Bench, job: &Job, end: End, mut command: Command) -> Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut monitor = Ended(command.spawn().context("cannot start a guest")?);
    let pipe = monitor.0.stdout.take().context("there is no pipe")?;
    let mut sender = None;
    let mut said = String::new();
    for line in BufReader::new(pipe).lines() {
        let line = line.context("the guest's output breaks off")?;
        if let (true, Some(bytes)) = (line.starts_with("ready"), job.host) {
            sender = Some(send(bench, bytes)?);
        }
        if let Some(result) = line.trim().strip_prefix("result ") {
            drop(sender);
            let rate = rate(job, result).with_context(|| format!("{} has no result: {line}", job.name))?;
            if end == End::PowersOff {
                // The tap is free when the VM is gone, and not when whoever stands in front of it is.
                monitor.0.wait().context("waiting for the guest's end")?;
            }
            return Ok(rate);
        }
        said.push_str(&line);
        said.push('\n');
    }
    bail!("{} has no result:\n{said}", job.name)
}

/// More than the guest listens for.
fn send(bench: &Bench, bytes: usize) -> Result<Ended> {
    let millis = Duration::from_millis(u64::from(MILLIS)) * 3;
    let words: [OsString; 3] = [TAP.into(), bytes.to_string().into(), millis.as_millis().to_string().into()];
    let child = Command::new(&bench.host_net).args(words).stdout(Stdio::null()).spawn();
    child.map(Ended).context("cannot run host-net")
}

/// From `tx bytes-per-frame 60 frames N bytes B nanos T …`.
fn rate(job: &Job, result: &str) -> Option<f64> {
    let number = |wanted: &str| {
        let mut words = result.split_whitespace().skip_while(|word| *word != wanted);
        words.nth(1)?.parse::<f64>().ok()
    };
    let count = if job.bulk { number("bytes")? / f64::from(1 << 20) } else { number("frames")? };
    Some(count / (number("nanos")? / 1e9))
}

/// A process that does not outlive its use.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A tap of ours.
pub struct Tap(());

impl Tap {
    pub fn make() -> Result<Self> {
        let ip = |words: &str| tool::capture(Command::new("ip").args(words.split(' ')));
        ip(&format!("tuntap add dev {TAP} mode tap"))?;
        let tap = Self(());
        ip(&format!("link set {TAP} up"))?;
        Ok(tap)
    }

    /// What `--net` takes.
    pub fn flag(&self) -> String {
        format!("tap={TAP}")
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", TAP]).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_frames_or_of_bytes() {
        let said = "tx bytes-per-frame 60 frames 1000 bytes 2097152 nanos 500000000 kicks 3";
        assert!((rate(&JOBS[0], said).unwrap() - 2000.0).abs() < 1e-9);
        assert!((rate(&JOBS[2], said).unwrap() - 4.0).abs() < 1e-9);
        assert!(rate(&JOBS[0], "FAIL").is_none());
    }
}
