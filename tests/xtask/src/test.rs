//! `cargo xtask test`: every check and test, in stages. A stage that fails does not keep the later ones from
//! running, unless they need what it makes.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::kvmbox::{self, Io, Options};
use crate::linux_guest::Guest;
use crate::place::Place;
use crate::{guests, paths, setup, tool};

/// Memory of the box in MiB: the largest guest has 5 GiB and skiff gives no guest more than its host has. What no
/// guest touches costs the real machine nothing.
const BOX_MEMORY: &str = "6144";
/// All whole-machine tests together.
const BOX_TIME: Duration = Duration::from_secs(20 * 60);
/// A box that says nothing for so long has hung: no test waits for its guest longer than four minutes.
const SILENCE: Duration = Duration::from_secs(420);
/// How many boxes are tried for one share of the tests.
const BOXES: u32 = 3;

/// Runs everything, or the tests with `filter` in their name.
///
/// # Errors
/// When the machine cannot be set up. Failures of tests are counted, not returned.
pub fn run(filter: Option<&str>) -> Result<ExitCode> {
    let mut stages = Stages { filter: filter.unwrap_or_default().to_string(), done: Vec::new() };
    stages.run("setup", |_| setup::run().map(|()| Count::default()));
    // The optimising build keeps one processor busy for minutes, at its end with a single crate: the others check meanwhile.
    let built = thread::scope(|scope| {
        let build = scope.spawn(build);
        if filter.is_none() {
            stages.run("format", |_| format());
            stages.run("clippy", |_| clippy());
        }
        stages.run("unit tests", unit_tests);
        build.join().unwrap_or_else(|_| Err(anyhow!("the thread that built skiff died")))
    });
    stages.run("build", |_| built.and_then(|count| build_testers().map(|()| count)));
    stages.run("bare-metal guests", bare_metal);
    stages.run("Linux guests", linux_guests);
    Ok(stages.report())
}

/// Results of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u32,
    failed: u32,
}

impl Count {
    const ONE: Count = Count { passed: 1, failed: 0 };

    fn plus(self, other: Count) -> Count {
        Count { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }
}

struct Stages {
    filter: String,
    done: Vec<(&'static str, Duration, Count)>,
}

impl Stages {
    /// Runs a stage. One that cannot do its work counts as a failed test.
    fn run(&mut self, name: &'static str, stage: impl FnOnce(&str) -> Result<Count>) {
        println!("== {name}");
        let start = Instant::now();
        let count = stage(&self.filter).unwrap_or_else(|error| {
            println!("FAILED {name}: {error:#}");
            Count { passed: 0, failed: 1 }
        });
        println!("== {name}: {:.1} s", start.elapsed().as_secs_f64());
        self.done.push((name, start.elapsed(), count));
    }

    fn report(self) -> ExitCode {
        println!();
        for (name, time, count) in &self.done {
            let Count { passed, failed } = count;
            println!("{name:<20} {:>7.1} s {passed:>5} passed {failed:>4} failed", time.as_secs_f64());
        }
        let total = self.done.iter().fold(Count::default(), |sum, (.., count)| sum.plus(*count));
        println!("{} passed, {} failed", total.passed, total.failed);
        if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn format() -> Result<Count> {
    tool::show(&mut tool::cargo(&["fmt", "--all", "--check"])?)?;
    guests::check_format()?;
    Ok(Count::ONE)
}

fn clippy() -> Result<Count> {
    let words = ["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"];
    tool::show(&mut tool::cargo(&words)?)?;
    guests::clippy(&paths::target()?)?;
    Ok(Count::ONE)
}

/// The tests that run no machine: of every crate, and of the workspace itself.
fn unit_tests(filter: &str) -> Result<Count> {
    let whole = ["--package", "skiff-tests", "--lib", "--bins", "--test", "layers"];
    let crates = ["--workspace", "--exclude", "skiff-tests"];
    let mut sum = Count::default();
    for which in [&crates[..], &whole[..]] {
        let mut cargo = tool::cargo(&["test", "--locked", "--no-fail-fast"])?;
        let (success, output) = tool::tee(cargo.args(which).args(["--", filter]))?;
        let count = count_libtest(&output);
        if !success && count.failed == 0 {
            bail!("cargo test did not get to run all tests");
        }
        sum = sum.plus(count);
    }
    Ok(sum)
}

/// What the whole-machine tests use: skiff as users get it. Its words, if it fails, come at once.
fn build() -> Result<Count> {
    tool::capture(&mut tool::cargo(&["build", "--release", "--locked", "--package", "skiff"])?)?;
    Ok(Count::default())
}

/// The programs that drive skiff from outside and inside.
fn build_testers() -> Result<()> {
    tool::show(&mut tool::cargo(&["build", "--locked", "--package", "skiff-tests", "--bins"])?)?;
    guests::build(&paths::target()?).map(drop)
}

/// Runs on any `/dev/kvm`, even one that works in software; without one, in the box.
fn bare_metal(filter: &str) -> Result<Count> {
    let target = paths::target()?;
    let mut words: Vec<OsString> = vec!["env".into()];
    for (name, path) in [("SKIFF_BIN=", "release/skiff"), ("SKIFF_GUESTS=", "guests")] {
        let mut word = OsString::from(name);
        word.push(target.join(path));
        words.push(word);
    }
    words.push(test_program("bare_metal")?.into());
    words.push(filter.into());
    let output = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => tool::tee(Command::new("env").args(&words[1..]))?.1,
        Err(error) => {
            println!("running in kvmbox: /dev/kvm cannot be opened here ({error})");
            in_box(&words, &Options { timeout: BOX_TIME, ..Options::default() })?
        }
    };
    if !output.contains("test result: ") {
        bail!("the tests did not run to their end");
    }
    Ok(count_libtest(&output))
}

/// Builds an integration test of the `tests` crate and returns its program.
fn test_program(name: &str) -> Result<PathBuf> {
    let words =
        ["test", "--locked", "--no-run", "--package", "skiff-tests", "--message-format=json", "--test"];
    let messages = tool::capture(tool::cargo(&words)?.arg(name))?;
    // Cargo builds the package's other programs too, and names them all.
    let tests = messages.lines().filter(|line| line.contains("\"kind\":[\"test\"]"));
    let mut programs = tests.filter_map(|line| line.split_once("\"executable\":\""));
    let program = programs.next().and_then(|(_, rest)| rest.split('"').next());
    program.map(PathBuf::from).with_context(|| format!("cargo built no program for the tests {name}"))
}

fn linux_guests(filter: &str) -> Result<Count> {
    for guest in Guest::ensure_all()? {
        // One test boots it.
        guest.kernel.unpacked()?;
    }
    let target = paths::target()?;
    let mut words: Vec<OsString> = vec![target.join("debug/linux-guests").into()];
    words.extend([OsString::from("--skiff"), target.join("release/skiff").into()]);
    words.extend([OsString::from("--kernels"), target.join("kernels").into()]);
    words.extend(["--filter", filter].map(OsString::from));
    let (program, rest) = words.split_first().context("there is no command")?;
    if tool::capture(Command::new(program).args(rest).arg("--list"))?.is_empty() {
        return Ok(Count::default());
    }
    let place = Place::of_machine();
    println!("running {}", place.describe());
    match place {
        Place::Host(_) => count_last_line(&tool::tee(Command::new(program).args(rest))?.1),
        Place::Kvmbox(_) => linux_guests_in_boxes(&words)?,
    }
    .context("the tests did not run to their end")
}

/// A box with more than one processor is not reliable (see [`Options::cpus`]), so there is a box for each
/// processor of this machine, up to two. Each is a process of its own: they share nothing but our output.
fn linux_guests_in_boxes(words: &[OsString]) -> Result<Option<Count>> {
    let boxes = std::thread::available_parallelism().map_or(1, |count| count.get().min(2));
    let program = paths::own_program()?;
    let run = &|index: usize| run_box(&program, words, &format!("{index}/{boxes}"));
    thread::scope(|scope| {
        let started: Vec<_> = (0..boxes).map(|index| scope.spawn(move || run(index))).collect();
        let mut sum = Some(Count::default());
        for one in started {
            let count = one.join().map_err(|_| anyhow!("a thread that ran a box died"))??;
            sum = sum.zip(count).map(|(sum, count)| sum.plus(count));
        }
        Ok(sum)
    })
}

/// One box's share of the tests. An emulated machine hangs now and then, for good and with all that is in it: then another takes over
/// with the test at which that happened. A guest that hangs is no such thing: its test gives up on it much earlier.
fn run_box(program: &Path, words: &[OsString], shard: &str) -> Result<Option<Count>> {
    let mut sum = Count::default();
    for _ in 0..BOXES {
        let mut command = Command::new(program);
        command.args(["kvmbox", "--memory", BOX_MEMORY, "--timeout", &BOX_TIME.as_secs().to_string(), "--"]);
        let skip = (sum.passed + sum.failed).to_string();
        command.args(words).args(["--shard", shard, "--skip", &skip]);
        let (ended, output) = tool::tee_while_it_speaks(tool::end_with_us(&mut command), SILENCE)?;
        if ended {
            return Ok(count_last_line(&output).map(|count| sum.plus(count)));
        }
        let done = |word| output.lines().filter(|line| line.starts_with(word)).count() as u32;
        sum = sum.plus(Count { passed: done("ok "), failed: done("FAILED ") });
        println!("a box has hung: nothing came for {} s; another goes on", SILENCE.as_secs());
    }
    Ok(None)
}

/// Runs a test program in a box and returns what it printed, after showing it.
fn in_box(words: &[OsString], options: &Options) -> Result<String> {
    let outcome = kvmbox::run(options, Io { input: false, show: true, keep: true }, words)?;
    Ok(String::from_utf8_lossy(&outcome.output).into_owned())
}

/// Adds up lines like `test result: ok. 3 passed; 0 failed; …`.
fn count_libtest(output: &str) -> Count {
    let results = output.lines().filter_map(|line| line.strip_prefix("test result: "));
    let number = |line: &str, word: &str| {
        let mut parts = line.split([';', '.']).map(str::trim);
        parts.find_map(|part| part.strip_suffix(word)?.trim().parse().ok()).unwrap_or(0)
    };
    results.fold(Count::default(), |sum, line| {
        sum.plus(Count { passed: number(line, "passed"), failed: number(line, "failed") })
    })
}

/// Reads `3 passed, 0 failed` at the end of what our own test programs print.
fn count_last_line(output: &str) -> Option<Count> {
    let (passed, failed) = output.lines().last()?.split_once(" passed, ")?;
    let failed = failed.strip_suffix(" failed")?;
    Some(Count { passed: passed.trim().parse().ok()?, failed: failed.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let output = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                      test result: FAILED. 10 passed; 2 failed; 0 ignored\n";
        assert_eq!(count_libtest(output), Count { passed: 13, failed: 2 });
        assert_eq!(count_last_line("ok x\n4 passed, 1 failed\n"), Some(Count { passed: 4, failed: 1 }));
        assert_eq!(count_last_line("ok x\n"), None);
    }
}
