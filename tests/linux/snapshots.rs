//! Snapshots, rollback and clones of a guest that works all the time and checks itself (see `tool/life.rs`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::bytes::hash;
use crate::cli::Cli;
use crate::facts::{Fact, Facts};
use crate::vm::Kernel;

const DISK: usize = 64 << 20;
/// How many turns of the guest's clock pass between the steps.
const TURNS: u64 = 4;

/// A guest with so many vCPUs is snapshotted twice while it works, put back to the first and cloned.
pub fn live(skiff: &Path, kernel: &Kernel, cpus: u32, dir: &Path) -> Result<()> {
    let cli = Cli::new(skiff, dir)?;
    let base = make_disk(dir)?;
    let before = hash(&base, DISK)?;
    run(&cli, kernel, cpus, &base, dir)?;
    cli.wait_for("one", "job")?;
    pass(&cli, "one", TURNS)?;
    cli.run(["snapshot", "create", "one", "first", "--comment", "while it works"])?;
    pass(&cli, "one", TURNS)?;
    cli.run(["snapshot", "create", "one", "second"])?;
    let at_second = ticks(&cli, "one")?;
    pass(&cli, "one", TURNS)?;
    roll_back(&cli, at_second)?;
    clones_differ(&cli)?;
    for vm in ["one", "two-1", "two-2"] {
        cli.run(["kill", vm]).with_context(|| last_words(&cli, vm))?;
    }
    check_layers(&cli.layers(), dir)?;
    ensure!(hash(&base, DISK)? == before, "the base was written");
    Ok(())
}

/// What a VM that should be there has left behind.
fn last_words(cli: &Cli<'_>, vm: &str) -> String {
    let said = |words: [&str; 2]| cli.run(words).unwrap_or_else(|error| format!("{error:#}"));
    let logs = said(["logs", vm]);
    let lines: Vec<&str> = logs.lines().collect();
    format!("{}\n{}", said(["inspect", vm]), lines[lines.len().saturating_sub(30)..].join("\n"))
}

fn run(cli: &Cli<'_>, kernel: &Kernel, cpus: u32, base: &Path, dir: &Path) -> Result<()> {
    let initrd = kernel.initrd(dir)?;
    let (image, cpus, disk) = (kernel.image(), cpus.to_string(), format!("path={}", base.display()));
    let what = ["run", "-d", "--name", "one", "--kernel", &image, "--initrd", &initrd, "--disk", &disk];
    let how = ["--cpus", &cpus, "--memory", "256M", "--transport", kernel.transport];
    let line = ["--cmdline", "console=ttyS0 quiet skiff.do=live,idle"];
    cli.run([&what[..], &how, &line].concat()).map(drop)
}

fn make_disk(dir: &Path) -> Result<PathBuf> {
    let disk = dir.join("disk.img");
    let words = ["-q", "-F", "-E", "lazy_itable_init=0", "-O", "^metadata_csum_seed,^orphan_file"];
    let size = format!("{}M", DISK >> 20);
    tool("/sbin/mkfs.ext4", words.iter().map(Path::new).chain([&*disk, Path::new(&size)]), &[0])?;
    Ok(disk)
}

/// How many turns the guest has told of, over all its lives on this console.
fn ticks(cli: &Cli<'_>, vm: &str) -> Result<u64> {
    turns(&cli.facts(vm)?).last().context("no tick")?.number("n")
}

/// What it told of each turn, `written` last.
fn turns(facts: &Facts) -> impl Iterator<Item = &Fact> {
    facts.ending_with("tick", "written")
}

/// Waits until the guest's clock has made so many turns.
fn pass(cli: &Cli<'_>, vm: &str, turns: u64) -> Result<()> {
    let said = |facts: &Facts| self::turns(facts).count() as u64;
    let start = said(&cli.facts(vm)?);
    cli.until(&format!("{vm} lives for {turns} turns"), || {
        let facts = cli.facts(vm)?;
        facts.no_problems()?;
        Ok(said(&facts) >= start + turns)
    })
}

/// The guest goes on from the first snapshot: its files, what it knows, its processes, and the right time.
fn roll_back(cli: &Cli<'_>, at_second: u64) -> Result<()> {
    let before = turns(&cli.facts("one")?).count();
    let (asked, jobs) = (now()?, cli.facts("one")?.count("job"));
    cli.run(["rollback", "one", "first"])?;
    pass(cli, "one", TURNS)?;
    let facts = cli.facts("one")?;
    let numbers: Vec<u64> = turns(&facts).map(|tick| tick.number("n")).collect::<Result<_>>()?;
    // What was printed between the first look and the rollback belongs to the old life.
    let back = (before.max(1)..numbers.len()).find(|at| numbers[*at] <= numbers[at - 1]);
    let back = back.with_context(|| format!("the turns never went back: {numbers:?}"))?;
    ensure!(
        numbers[back] <= at_second,
        "it went on at {}, after the second snapshot ({at_second})",
        numbers[back]
    );
    // The time that the first of them tells may have been read before the snapshot, and printed after it.
    let tick = turns(&facts).nth(back + 1).context("no second tick after the rollback")?;
    right_time(tick.number("wall")?, asked)?;
    cli.until("the job goes on", || Ok(cli.facts("one")?.count("job") > jobs + 1))
}

/// In milliseconds since 1970.
fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64)
}

/// A guest's clock that was read since `asked` is right to a second or so.
fn right_time(wall: u64, asked: u64) -> Result<()> {
    let now = now()?;
    ensure!(
        wall + 1500 >= asked && wall <= now + 1500,
        "the guest's clock says {wall} between {asked} and {now} of the host's"
    );
    Ok(())
}

/// Two clones go on from the same instant, at once with random numbers of their own, and neither disturbs the other.
fn clones_differ(cli: &Cli<'_>) -> Result<()> {
    let asked = now()?;
    cli.run(["clone", "one@first", "--name", "two", "-n", "2"])?;
    let mut first = Vec::new();
    for vm in ["two-1", "two-2"] {
        pass(cli, vm, TURNS)?;
        let facts = cli.facts(vm)?;
        // What was drawn and read just before the instant may be printed by both.
        let drawn = turns(&facts).nth(1).context("no second tick")?;
        right_time(drawn.number("wall")?, asked)?;
        first.push((drawn.number("n")?, drawn.get("random")?.to_owned()));
    }
    if let [(n, random), (m, other)] = &first[..] {
        ensure!(n == m, "the clones start at turns {n} and {m}");
        ensure!(random != other, "both clones drew {random} in turn {n}");
    }
    cli.facts("one")?.no_problems()
}

/// Whatever any disk was at the instant of any snapshot is a sound file system once its journal is replayed.
fn check_layers(layers: &Path, dir: &Path) -> Result<()> {
    let mut count = 0;
    for layer in fs::read_dir(layers).with_context(|| format!("cannot list {}", layers.display()))? {
        let layer = layer.context("cannot list the layers")?.path();
        count += 1;
        let raw = dir.join("layer.raw");
        tool("qemu-img", [Path::new("check"), &layer], &[0])?;
        let words = ["convert", "-O", "raw"].map(Path::new);
        tool("qemu-img", words.into_iter().chain([&*layer, &*raw]), &[0])?;
        tool("/sbin/e2fsck", [Path::new("-fp"), &raw], &[0, 1])?;
        tool("/sbin/e2fsck", [Path::new("-fn"), &raw], &[0])?;
        fs::remove_file(&raw).context("cannot remove a disk")?;
    }
    ensure!(count >= 5, "only {count} layers: two of snapshots and three on top were expected");
    Ok(())
}

/// Runs a program that must end with one of these codes.
fn tool<'a>(program: &str, words: impl IntoIterator<Item = &'a Path>, codes: &[i32]) -> Result<()> {
    let output =
        Command::new(program).args(words).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.code().is_some_and(|code| codes.contains(&code)) {
        let [out, err] =
            [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        bail!("{program} ends with {}: {out}{err}", output.status);
    }
    Ok(())
}
