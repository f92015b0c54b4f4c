//! `cargo xtask bench`: the rulers for speed and size, as a table and as JSON.
//!
//! Each row of the table has a module that measures it and returns its lines. What other virtual machine
//! monitors on PATH need for the same work is measured in the same run, for comparison.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::debian::Release;
use crate::debian::kernel::Flavour;
use crate::linux_guest::Guest;
use crate::progress::Step;
use crate::{guests, paths, setup, tool};

mod boot;
mod disk;
mod fleet;
mod fs;
mod guest;
mod layers;
mod matrix;
mod memory;
mod net;
mod peers;
mod script;
mod snapshot;
mod startup;
mod table;
mod vsock;

use table::{Line, Target, Unit};

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// From the process's start to the first byte of a tiny guest
    Startup,
    /// From a stock kernel's start to init, on the guest's clock
    Boot,
    /// Memory beyond the guest's own
    Memory,
    /// The release binary
    Size,
    /// Block throughput beside the host's own
    Disk,
    /// Random reads through layers beside a raw disk
    Layers,
    /// Frames through a tap beside QEMU
    Net,
    /// Bytes through vsock
    Vsock,
    /// A shared folder beside 9p in QEMU
    Fs,
    /// Twenty VMs at once
    Fleet,
    /// Debian 12 from its name to the first command's end, commands and copies
    Guest,
    /// One command on three systems, warm
    Matrix,
    /// Snapshots, restore, rollback and clones
    Snapshot,
}

/// What rows need.
struct Bench {
    skiff: PathBuf,
    /// Built from `tests/bench`.
    bare_kvm: PathBuf,
    host_io: PathBuf,
    host_net: PathBuf,
    /// The bare-metal guests' directory.
    guests: PathBuf,
    /// For files of a run. On a real disk.
    work: PathBuf,
}

/// Measures `rows` (all if empty), prints the table and writes it to `json` (unless given, `target/bench.json`). The lines of a row are shown
/// when it is done, and a row that cannot be measured costs none of the others.
///
/// # Errors
/// When something cannot be built. A missed target is none: the table says so. A row that cannot be measured is said, and makes the exit code 1.
pub fn run(rows: &[Row], json: Option<&Path>) -> Result<ExitCode> {
    let rows = if rows.is_empty() { Row::value_variants() } else { rows };
    let bench = Bench::prepare(rows)?;
    let busy = others_busy();
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    for row in rows {
        match bench.measure(*row) {
            Ok(measured) => {
                eprint!("{}", table::render(&measured));
                lines.extend(measured);
            }
            Err(error) => {
                let failure = format!("cannot measure {row:?}: {error:#}");
                eprintln!("{failure}");
                failures.push(failure);
            }
        }
    }
    println!("\n{}", table::render(&lines));
    for note in busy.iter().chain(&failures) {
        println!("{note}");
    }
    let json =
        json.map_or_else(|| paths::target().map(|dir| dir.join("bench.json")), |path| Ok(path.into()))?;
    paths::write_whole(&json, table::to_json(&lines)?.as_bytes())?;
    eprintln!("The same as JSON: {}", json.display());
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Bench {
    fn prepare(rows: &[Row]) -> Result<Bench> {
        setup::run()?;
        let target = paths::target()?;
        eprintln!("… building skiff and what it is measured against");
        let mut words = vec!["build", "--release", "--locked", "--package", "skiff", "--bin", "skiff"];
        if rows.iter().any(|row| matches!(row, Row::Startup | Row::Disk | Row::Net)) {
            words.extend([
                "--package",
                "skiff-tests",
                "--bin",
                "bare-kvm",
                "--bin",
                "host-io",
                "--bin",
                "host-net",
            ]);
        }
        tool::show(&mut tool::cargo(&words)?)?;
        let work = target.join("bench");
        paths::make_dir(&work)?;
        let release = |name: &str| target.join("release").join(name);
        Ok(Bench {
            skiff: release("skiff"),
            bare_kvm: release("bare-kvm"),
            host_io: release("host-io"),
            host_net: release("host-net"),
            guests: guests::build(&target)?,
            work,
        })
    }

    fn measure(&self, row: Row) -> Result<Vec<Line>> {
        match row {
            Row::Startup => startup::measure(self),
            Row::Boot => boot::measure(self),
            Row::Memory => memory::measure(self),
            Row::Size => size(self),
            Row::Disk => disk::measure(self),
            Row::Layers => layers::measure(self),
            Row::Net => net::measure(self),
            Row::Vsock => vsock::measure(self),
            Row::Fs => fs::measure(self),
            Row::Fleet => fleet::measure(self),
            Row::Guest => guest::measure(self),
            Row::Matrix => matrix::measure(self),
            Row::Snapshot => snapshot::measure(self),
        }
    }

    fn guest(&self, name: &str) -> PathBuf {
        self.guests.join(name)
    }
}

/// A warning when others keep this machine's processors busy for half a second.
fn others_busy() -> Option<String> {
    // Of the first line: user, nice, system, idle, iowait, … in ticks over all processors (proc_stat(5)).
    let ticks = || -> Option<(u64, u64)> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let fields: Vec<u64> =
            text.lines().next()?.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        Some((fields.iter().take(8).sum(), fields.get(3)? + fields.get(4)?))
    };
    let (all, idle) = ticks()?;
    std::thread::sleep(Duration::from_millis(500));
    let (all_then, idle_then) = ticks()?;
    let all = all_then.saturating_sub(all).max(1);
    let busy = 100 - 100 * idle_then.saturating_sub(idle).min(all) / all;
    (busy > 20).then(|| {
        format!(
            "Others used {busy} % of this machine's processors when this began. A VM wants two that are free: \
             its times and its throughput beside the host's cannot be judged."
        )
    })
}

/// The Linux guest of the rows that boot one.
fn linux(flavour: Flavour) -> Result<Guest> {
    let step = Step::start("a stock Debian 12 kernel");
    let guest = Guest::ensure(Release::Bookworm, flavour)?;
    step.done();
    Ok(guest)
}

fn size(bench: &Bench) -> Result<Vec<Line>> {
    let size = bench.skiff.metadata().with_context(|| format!("cannot look at {}", bench.skiff.display()))?;
    let line = Line::new("size", "release binary", size.len() as f64 / f64::from(1 << 20), Unit::Mebibytes);
    Ok(vec![line.target(Target::AtMost(8.0))])
}

/// The middle value; of an even number, the mean of the two in the middle. 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        None => 0.0,
        Some(value) if sorted.len() % 2 == 1 => *value,
        Some(value) => (sorted[middle - 1] + value) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }
}
