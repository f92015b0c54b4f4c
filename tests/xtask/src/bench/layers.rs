//! What layers cost: random reads of a guest through none, one and ten of them, in turn.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::disk::{guest, make_disk};
use super::table::{Line, Target, Unit};
use super::{Bench, median};
use crate::progress::Step;
use crate::tool;

/// Guests take turns this often with each job.
const ROUNDS: usize = 5;
const DEPTH: usize = 10;
/// What one write to a layer covers, in KiB: a cluster.
const CLUSTER_KIB: usize = 64;

const JOBS: [(&str, &str); 2] =
    [("randread:4096:1", "4 KiB random read, depth 1"), ("randread:4096:32", "4 KiB random read, depth 32")];

/// Through the host's page cache, so that what the layers cost is all there is.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let raw = make_disk(bench)?;
    let step = Step::start(format!("making {} layers", DEPTH + 1));
    let one = make_layers(bench, &raw, "one", 1)?;
    let ten = make_layers(bench, &raw, "ten", DEPTH)?;
    step.done();
    let step = Step::start("disk I/O through layers, guests in turn");
    let mut lines = Vec::new();
    for (index, (job, name)) in JOBS.iter().enumerate() {
        let mut rates = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            step.detail(format!("{name}, {} of {}", index * ROUNDS + round + 1, JOBS.len() * ROUNDS));
            for (rates, chain) in rates.iter_mut().zip([std::slice::from_ref(&raw), &one, &ten]) {
                let top = chain.last().context("no layers")?;
                rates.push(guest(bench, top, job, false)?);
            }
        }
        let [raw, one, ten] = &rates;
        lines.push(line(format!("{name}, 1 layer beside raw"), one, raw, "raw", 70.0));
        lines.push(line(format!("{name}, {DEPTH} layers beside 1"), ten, one, "1 layer", 90.0));
    }
    step.done();
    for path in one.iter().chain(&ten).chain([&raw]) {
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(lines)
}

fn line(name: String, measured: &[f64], beside: &[f64], what: &str, least: f64) -> Line {
    // Of each pair, so that a slow moment of the machine is in both.
    let shares: Vec<f64> = measured.iter().zip(beside).map(|(one, other)| 100.0 * one / other).collect();
    let line = Line::new("layers", name, median(&shares), Unit::Percent).target(Target::AtLeast(least));
    let line = line.peer_in("guest", Some(median(measured)), Unit::Requests);
    line.peer_in(what, Some(median(beside)), Unit::Requests)
}

/// `depth` layers above `raw`, the lowest first, each with its share of every second cluster.
fn make_layers(bench: &Bench, raw: &Path, name: &str, depth: usize) -> Result<Vec<PathBuf>> {
    let clusters = usize::try_from(raw.metadata()?.len())? / 1024 / CLUSTER_KIB;
    let mut paths: Vec<PathBuf> = Vec::new();
    for number in 0..depth {
        let path = bench.work.join(format!("layer-{name}-{number}.qcow2"));
        let (below, format) = paths.last().map_or((raw, "raw"), |below| (below.as_path(), "qcow2"));
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(below).arg(&path);
        tool::capture(&mut create)?;
        let mut script = String::new();
        for cluster in (0..clusters).filter(|cluster| cluster % 2 == 0 && cluster / 2 % depth == number) {
            script +=
                &format!("write -q -P {} {}k {CLUSTER_KIB}k\n", 1 + cluster % 255, cluster * CLUSTER_KIB);
        }
        write(&path, &script)?;
        paths.push(path);
    }
    Ok(paths)
}

/// Carry out a script of `qemu-io` on an image.
fn write(path: &Path, script: &str) -> Result<()> {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "qcow2"]).arg(path).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut io = command.spawn().context("cannot start qemu-io")?;
    io.stdin.take().context("qemu-io has no input")?.write_all(script.as_bytes())?;
    ensure!(io.wait()?.success(), "qemu-io cannot write {}", path.display());
    Ok(())
}
