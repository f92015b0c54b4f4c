//! Snapshots, restore, rollback and clones of bare-metal guests, as a user has them: by the program's own verbs, and by
//! what it says of its pauses.

mod firecracker;
mod vm;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::table::{Line, Target, Unit};
use super::{Bench, median};
use crate::progress::Step;
use firecracker::Firecracker;
use vm::{Taken, User};

const ROUNDS: usize = 7;
const CLONES: usize = 50;
const MIB: f64 = (1 << 20) as f64;
/// What a guest writes first is written by then.
const SETTLE: Duration = Duration::from_millis(500);

/// All of it.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let user = User::new(bench)?;
    let firecracker = Firecracker::found(bench);
    let mut lines = idle(&user, firecracker.as_ref())?;
    lines.extend(busy(&user)?);
    for mebibytes in [256, 4096] {
        lines.push(restore(&user, mebibytes, firecracker.as_ref())?);
    }
    lines.extend(clones(&user)?);
    lines.extend(rollback(&user)?);
    Ok(lines)
}

fn millis(micros: &[f64]) -> f64 {
    median(micros) / 1e3
}

/// A guest with 1 GiB that does nothing: its first snapshot, and the one after it.
fn idle(user: &User<'_>, firecracker: Option<&Firecracker<'_>>) -> Result<Vec<Line>> {
    let step = Step::start("snapshots of an idle guest with 1 GiB");
    let (mut first, mut second, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        user.start("idle", "testguest", "1G", "test=idle")?;
        std::thread::sleep(SETTLE);
        first.push(user.snapshot("idle")?);
        files.push(occupied(&user.snapshots())? / MIB);
        second.push(user.snapshot("idle")?);
        user.remove(&["idle"])?;
    }
    let theirs = firecracker.map(|firecracker| firecracker.idle(ROUNDS)).transpose()?;
    step.done();
    let of = |taken: &[Taken], what: fn(&Taken) -> f64| millis(&taken.iter().map(what).collect::<Vec<_>>());
    let line =
        |name: &str, value, unit, most| Line::new("snapshot", name, value, unit).target(Target::AtMost(most));
    let mut lines = vec![
        line(
            "snapshot of an idle guest, 1 GiB: pause",
            of(&first, |taken| taken.pause),
            Unit::Milliseconds,
            5.0,
        ),
        line("  until it is on disk", of(&first, |taken| taken.total), Unit::Milliseconds, 20.0),
        line("  its files", median(&files), Unit::Mebibytes, 4.0),
        line("  the next one: pause", of(&second, |taken| taken.pause), Unit::Milliseconds, 1.5),
    ];
    if let Some(theirs) = theirs {
        let [pause, next, file] = theirs;
        lines[0] = lines[0].clone().peer("Firecracker", Some(pause));
        lines[2] = lines[2].clone().peer("Firecracker", Some(file));
        lines[3] = lines[3].clone().peer("Firecracker", Some(next));
    }
    Ok(lines)
}

/// A guest with 1 GiB that writes 200 MiB a second all over it.
fn busy(user: &User<'_>) -> Result<Vec<Line>> {
    let step = Step::start("snapshots of a guest that writes 200 MiB a second");
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        user.start("busy", "memguest", "1G", "span=900 rate=200 say=50")?;
        user.wait_for("busy", "count 4")?;
        first.push(user.snapshot("busy")?.pause);
        for _ in 0..3 {
            std::thread::sleep(SETTLE);
            later.push(user.snapshot("busy")?.pause);
        }
        ensure!(!user.said("busy")?.contains("FAIL"), "the guest's memory is not what it wrote");
        user.remove(&["busy"])?;
    }
    step.done();
    let line = |name: &str, value| {
        Line::new("snapshot", name, value, Unit::Milliseconds).target(Target::AtMost(10.0))
    };
    Ok(vec![
        line("a guest that writes 200 MiB/s, 1 GiB: pause", millis(&first)),
        line("  of those after the first", millis(&later)),
    ])
}

/// From the command to the first byte that the guest prints, which it does all the time.
fn restore(user: &User<'_>, mebibytes: u32, firecracker: Option<&Firecracker<'_>>) -> Result<Line> {
    let step = Step::start(format!("restoring a guest with {mebibytes} MiB"));
    let memory = format!("{mebibytes}M");
    user.start("source", "memguest", &memory, "span=64 dot=100 say=0")?;
    user.wait_for("source", "..")?;
    user.snapshot("source")?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS * 3 {
        times.push(user.restore("source@s1")?.as_secs_f64() * 1e3);
    }
    user.remove(&["source"])?;
    let theirs = firecracker.map(|firecracker| firecracker.restore(mebibytes, ROUNDS)).transpose()?;
    step.done();
    let name = format!("restore, {mebibytes} MiB: command → guest's next byte");
    let line = Line::new("snapshot", name, median(&times), Unit::Milliseconds).target(Target::AtMost(3.0));
    Ok(match theirs {
        Some(theirs) => line.peer("Firecracker", Some(theirs)),
        None => line,
    })
}

/// Many clones of one guest by one command.
fn clones(user: &User<'_>) -> Result<Vec<Line>> {
    let step = Step::start(format!("{CLONES} clones of a guest with 256 MiB"));
    user.start("source", "memguest", "256M", "span=64 rate=1 say=50")?;
    user.wait_for("source", "count 2")?;
    user.snapshot("source")?;
    let (mut times, mut private) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let start = Instant::now();
        user.clones("source@s1", "clone", CLONES)?;
        times.push(start.elapsed().as_secs_f64());
        let names: Vec<String> = (1..=CLONES).map(|index| format!("clone-{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        private.push(user.private_of(&names)? / CLONES as f64 / MIB);
        user.remove(&names)?;
    }
    user.remove(&["source"])?;
    step.done();
    let all = Line::new(
        "snapshot",
        format!("{CLONES} clones, 256 MiB: all running"),
        median(&times),
        Unit::Seconds,
    );
    let each = Line::new("snapshot", "  private memory of each", median(&private), Unit::Mebibytes);
    Ok(vec![all.target(Target::AtMost(0.5)), each.target(Target::AtMost(3.0))])
}

/// A running guest with 1 GiB that has written some 10 MiB since its snapshot is put back.
fn rollback(user: &User<'_>) -> Result<Vec<Line>> {
    let step = Step::start("rollbacks of a running guest with 1 GiB");
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        user.start("back", "memguest", "1G", "span=900 rate=20 say=50")?;
        user.wait_for("back", "count 2")?;
        user.snapshot("back")?;
        std::thread::sleep(SETTLE);
        first.push(user.roll_back("back", "s1")?);
        for _ in 0..ROUNDS {
            std::thread::sleep(SETTLE);
            later.push(user.roll_back("back", "s1")?);
        }
        ensure!(!user.said("back")?.contains("FAIL"), "the guest's memory is not what it wrote");
        user.remove(&["back"])?;
    }
    step.done();
    let line = |name: &str, value| {
        Line::new("snapshot", name, value, Unit::Milliseconds).target(Target::AtMost(20.0))
    };
    Ok(vec![
        line("rollback, 1 GiB, 10 MiB written", millis(&later)),
        line("  the first, with all 1 GiB of the guest's own", millis(&first)),
    ])
}

/// What all files below `dir` occupy, in bytes.
fn occupied(dir: &Path) -> Result<f64> {
    let mut bytes = 0.0;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.context("cannot list a directory")?;
        let metadata = entry.metadata().context("cannot look at a file")?;
        bytes += if metadata.is_dir() { occupied(&entry.path())? } else { metadata.blocks() as f64 * 512.0 };
    }
    Ok(bytes)
}
