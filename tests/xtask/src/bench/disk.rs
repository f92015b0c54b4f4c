//! Block throughput: a guest that polls from ring 3, beside the same load by the host itself on the same file.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::table::{Line, Target, Unit};
use super::{Bench, median};
use crate::progress::Step;
use crate::tool;

const MIB: usize = 1 << 20;
const FILE_MIB: usize = 512;
/// Guest and host take turns this often with each job.
const ROUNDS: usize = 5;
const MILLIS: u32 = 400;

/// The job as guest and host read it, and as people do.
const JOBS: [(&str, &str); 6] = [
    ("randread:4096:1", "4 KiB random read, depth 1"),
    ("randwrite:4096:1", "4 KiB random write, depth 1"),
    ("randread:4096:32", "4 KiB random read, depth 32"),
    ("randwrite:4096:32", "4 KiB random write, depth 32"),
    ("seqread:1048576:4", "1 MiB sequential read, depth 4"),
    ("seqwrite:1048576:4", "1 MiB sequential write, depth 4"),
];

/// Through the host's page cache, and past it where the file system can.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let disk = make_disk(bench)?;
    let mut lines = Vec::new();
    for direct in [false, true] {
        if direct && host(bench, &disk, JOBS[0].0, true).is_err() {
            eprintln!("no direct I/O in {}: not measured", bench.work.display());
            continue;
        }
        let how = if direct { "direct" } else { "buffered" };
        let step = Step::start(format!("{how} disk I/O, guest and host in turn"));
        for (index, (job, name)) in JOBS.iter().enumerate() {
            let (mut guests, mut hosts) = (Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                step.detail(format!("{name}, {} of {}", index * ROUNDS + round + 1, JOBS.len() * ROUNDS));
                guests.push(guest(bench, &disk, job, direct)?);
                hosts.push(host(bench, &disk, job, direct)?);
            }
            lines.push(line(job, format!("{name}, {how}"), &guests, &hosts));
        }
        step.done();
    }
    std::fs::remove_file(&disk).with_context(|| format!("cannot remove {}", disk.display()))?;
    Ok(lines)
}

fn line(job: &str, name: String, guests: &[f64], hosts: &[f64]) -> Line {
    // Of each pair, so that a slow moment of the machine is in both.
    let shares: Vec<f64> = guests.iter().zip(hosts).map(|(guest, host)| 100.0 * guest / host).collect();
    let unit = if job.starts_with("seq") { Unit::MebibytesPerSecond } else { Unit::Requests };
    let line = Line::new("disk", name, median(&shares), Unit::Percent).target(Target::AtLeast(80.0));
    line.peer_in("guest", Some(median(guests)), unit).peer_in("host", Some(median(hosts)), unit)
}

/// A file with all its blocks there and nothing alike in them.
pub(super) fn make_disk(bench: &Bench) -> Result<PathBuf> {
    let path = bench.work.join("disk.img");
    let step = Step::start(format!("making a disk of {FILE_MIB} MiB"));
    let mut file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..FILE_MIB {
        let mut piece = Vec::with_capacity(MIB);
        while piece.len() < MIB {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            piece.extend_from_slice(&noise.to_le_bytes());
        }
        file.write_all(&piece).with_context(|| format!("cannot write {}", path.display()))?;
    }
    file.sync_all().with_context(|| format!("cannot write {}", path.display()))?;
    step.done();
    Ok(path)
}

/// What a guest gets done on the disk whose file is `disk`, in requests (or MiB) a second.
pub(super) fn guest(bench: &Bench, disk: &Path, job: &str, direct: bool) -> Result<f64> {
    let mut drive = OsString::from("path=");
    drive.push(disk);
    drive.push(if direct { ",direct=on" } else { "" });
    let mut command = Command::new(&bench.skiff);
    command.args(["run", "--memory", "128M", "--transport", "mmio", "--kernel"]).arg(bench.guest("ioguest"));
    command.args(["--cmdline", &format!("jobs={job} ms={MILLIS}"), "--disk"]).arg(drive);
    rate(job, &tool::capture(&mut command)?)
}

fn host(bench: &Bench, disk: &Path, job: &str, direct: bool) -> Result<f64> {
    let mut command = Command::new(&bench.host_io);
    command.arg(disk).args([job, &MILLIS.to_string()]).args(direct.then_some("direct"));
    rate(job, &tool::capture(&mut command)?)
}

/// From `result randread bs 4096 depth 1 ios N nanos T …`: requests a second, or MiB a second if sequential.
fn rate(job: &str, output: &str) -> Result<f64> {
    let find = |wanted: &str| {
        let result = output.lines().find_map(|line| line.trim().strip_prefix("result "))?;
        let mut words = result.split_whitespace().skip_while(|word| *word != wanted);
        words.nth(1)?.parse::<f64>().ok()
    };
    let numbers = find("ios").zip(find("nanos")).zip(find("bs"));
    let ((ios, nanos), bytes) = numbers.with_context(|| format!("{job} has no result:\n{output}"))?;
    let size = if job.starts_with("seq") { bytes / MIB as f64 } else { 1.0 };
    Ok(ios * size / (nanos / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_from_either_end() {
        let said = "tsc-khz 2\r\nresult seqread bs 2097152 depth 4 ios 10 nanos 2000000000 iops 5 kib-per-second 9\r\n";
        assert!((rate("seqread:2097152:4", said).unwrap() - 10.0).abs() < 1e-9);
        assert!((rate("randread:2097152:4", said).unwrap() - 5.0).abs() < 1e-9);
        assert!(rate("randread:1:1", "FAIL").is_err());
    }
}
