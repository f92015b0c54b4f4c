//! `cargo xtask test`: every check and test, in stages. A stage that fails does not keep the later ones from
//! running, unless they need what it makes.
//!
//! ```text
//! setup ─ format ─ clippy ─ build ─ unit tests ─┬─ bare-metal guests
//!      ├─ skiff, optimised ─────────────────────┴─ Linux guests: kernels … images
//!      │        └─ images ─────────────────────────────────────────┘
//!      └─ kernels ──────────────────────────────┘
//! ```
//! Processors are what is scarce: what one row leaves idle another has.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc::channel;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::kvmbox::{self, Io, Options};
use crate::{guests, paths, setup, systems, tool};

mod count;
mod linux;
mod runner;

use count::Count;
use linux::LinuxGuests;

/// All tests of bare-metal guests, in a box.
const BOX_TIME: Duration = Duration::from_secs(20 * 60);

/// Runs everything, or the tests with `filter` in their name.
///
/// # Errors
/// When the machine cannot be set up. Failures of tests are counted, not returned.
pub fn run(filter: Option<&str>) -> Result<ExitCode> {
    let mut stages = Stages { filter: filter.unwrap_or_default().to_string(), done: Vec::new() };
    stages.run("setup", |_| setup::run().map(|()| Count::default()));
    let everything = filter.is_none();
    let images = &Images::default();
    thread::scope(|scope| {
        let kernels = scope.spawn(linux::prepare);
        let (built, skiff) = channel();
        // The optimising build keeps one processor busy for minutes, at its end with a single crate: the others check meanwhile.
        scope.spawn(move || {
            let skiff = build_skiff();
            // Of a few tests it is known later whether they need images.
            let wanted = skiff.as_ref().ok().filter(|_| everything).cloned();
            // Nobody has left who would not want it.
            let _ = built.send(skiff);
            images.make(|| wanted.map_or_else(|| Ok(Count::default()), |skiff| make_images(&skiff)));
        });
        if everything {
            stages.run("format", |_| format());
            stages.run("clippy", |_| clippy());
        }
        stages.run("build", |_| build_tests());
        stages.run("unit tests", unit_tests);
        let mut whole = None;
        stages.run("skiff", |filter| {
            let skiff = skiff.recv().map_err(|_| anyhow!("the thread that builds skiff died"))??;
            join(kernels)?;
            let guests = LinuxGuests::find(&skiff, filter)?;
            let count = match guests.need_systems() && !everything {
                true => make_images(&skiff)?,
                false => Count::default(),
            };
            whole = Some((skiff, guests));
            Ok(count)
        });
        if let Some((skiff, guests)) = whole {
            whole_machines(&mut stages, &skiff, &guests, images);
        }
    });
    Ok(stages.report())
}

/// The images that Linux guests boot, which somebody makes meanwhile.
#[derive(Default)]
struct Images {
    made: Mutex<Option<(Duration, Count)>>,
    changed: Condvar,
}

impl Images {
    /// Makes them, by `work`.
    fn make(&self, work: impl FnOnce() -> Result<Count>) {
        let made = std::panic::catch_unwind(AssertUnwindSafe(|| timed("images", work)));
        // Whatever happens, nobody waits for ever.
        let made = made.unwrap_or((Duration::ZERO, Count::FAILURE));
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        self.changed.notify_all();
    }

    /// Whether they are made, as well as it goes.
    fn are_made(&self) -> bool {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Waits until they are made. Says how long that took, and how many there are.
    fn wait(&self) -> (Duration, Count) {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let made = self.changed.wait_while(made, |made| made.is_none());
        made.unwrap_or_else(PoisonError::into_inner).unwrap_or_default()
    }
}

/// Each image counts as a test: that it can be made is one.
fn make_images(skiff: &Path) -> Result<Count> {
    let outcome = systems::ensure(skiff)?;
    for error in &outcome.failures {
        println!("FAILED {error:#}");
    }
    Ok(Count { passed: outcome.made, failed: outcome.failures.len() as u32 })
}

struct Stages {
    filter: String,
    done: Vec<(&'static str, Duration, Count)>,
}

impl Stages {
    /// Runs a stage. One that cannot do its work counts as a failed test.
    fn run(&mut self, name: &'static str, stage: impl FnOnce(&str) -> Result<Count>) {
        println!("== {name}");
        let (time, count) = timed(name, || stage(&self.filter));
        println!("== {name}: {:.1} s", time.as_secs_f64());
        self.done.push((name, time, count));
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

fn timed(name: &str, stage: impl FnOnce() -> Result<Count>) -> (Duration, Count) {
    let start = Instant::now();
    let count = stage().unwrap_or_else(|error| {
        println!("FAILED {name}: {error:#}");
        Count::FAILURE
    });
    (start.elapsed(), count)
}

fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread that prepared something died")))
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

/// All tests, and the programs that drive skiff from outside and inside. The whole workspace, each time: of a part of it dependencies might have
/// other features, and be built again.
fn build_tests() -> Result<Count> {
    tool::show(&mut tool::cargo(&["test", "--workspace", "--locked", "--no-run"])?)?;
    bare_metal_tests()?;
    guests::build(&paths::target()?)?;
    Ok(Count::default())
}

/// The tests that run no machine: of every crate, and of the workspace itself.
fn unit_tests(filter: &str) -> Result<Count> {
    let mut cargo = tool::cargo(&["test", "--workspace", "--locked", "--no-fail-fast", "--", filter])?;
    let (success, output) = tool::tee(&mut cargo)?;
    let count = Count::of_libtest(&output);
    if !success && count.failed == 0 {
        bail!("cargo test did not get to run all tests");
    }
    Ok(count)
}

/// What the whole-machine tests use: skiff as users get it. Its words, if it fails, come at once.
fn build_skiff() -> Result<PathBuf> {
    tool::capture(&mut tool::cargo(&["build", "--release", "--locked", "--package", "skiff"])?)?;
    Ok(paths::target()?.join("release/skiff"))
}

/// One after the other: guests of both, on two processors, wait for each other longer than their tests do.
fn whole_machines(stages: &mut Stages, skiff: &Path, guests: &LinuxGuests, images: &Images) {
    stages.run("bare-metal guests", |filter| bare_metal(skiff, filter));
    stages.run("Linux guests", |_| guests.run(images));
    let (time, count) = images.wait();
    stages.done.push(("images", time, count));
}

/// Runs on any `/dev/kvm`, even one that works in software; without one, in the box.
fn bare_metal(skiff: &Path, filter: &str) -> Result<Count> {
    let guests = paths::target()?.join("guests");
    let mut words: Vec<OsString> = vec!["env".into()];
    for (name, path) in [("SKIFF_BIN=", skiff), ("SKIFF_GUESTS=", &guests)] {
        let mut word = OsString::from(name);
        word.push(path);
        words.push(word);
    }
    words.push(bare_metal_tests()?.into());
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
    Ok(Count::of_libtest(&output))
}

/// Builds the tests of bare-metal guests, which cargo does not run by itself, and returns their program.
fn bare_metal_tests() -> Result<PathBuf> {
    const NAME: &str = "bare_metal";
    let words = ["test", "--workspace", "--locked", "--no-run", "--message-format=json", "--test", NAME];
    let messages = tool::capture(&mut tool::cargo(&words)?)?;
    // Cargo builds the package's other programs too, and names them all.
    let tests = messages.lines().filter(|line| line.contains("\"kind\":[\"test\"]"));
    let mut programs = tests.filter_map(|line| line.split_once("\"executable\":\""));
    let program = programs.next().and_then(|(_, rest)| rest.split('"').next());
    program.map(PathBuf::from).with_context(|| format!("cargo built no program for the tests {NAME}"))
}

/// Runs a test program in a box and returns what it printed, after showing it.
fn in_box(words: &[OsString], options: &Options) -> Result<String> {
    let outcome = kvmbox::run(options, Io { input: false, show: true, keep: true }, words)?;
    Ok(String::from_utf8_lossy(&outcome.output).into_owned())
}
