//! `skiff test`: one command on many guest operating systems.
//!
//! ```text
//! flags, skiff-test.toml ─► Suite ─► cases ─► Grounds: a warm snapshot for each image and machine ─► Runner: a clone for each run ─► Report
//!          options, config    suite   matrix   grounds, prepare                   schedule, runner, child, worker       report, screen
//! ```
//! What is decided is decided by plain values ([`suite`], [`matrix`], [`schedule`], [`outcome`], [`report`]), which are tested without guests.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::ArgMatches;
use images::file::context::Context;
use images::file::plan::Exec;
use images::file::{FileError, Wrong};

use self::grounds::Grounds;
use self::keep::Of;
use self::matrix::{Case, cases};
use self::options::{Asked, FLAGS};
use self::prepare::{Preparer, Ready};
use self::report::{Ran, Report, Tested, junit, people};
use self::runner::Runner;
use self::schedule::Rules;
use self::screen::Screen;
use self::sink::Sink;
use self::suite::{Suite, merge};
use self::worker::Job;
use super::run::volume;
use super::{Verb, print};
use crate::exit::{self, Usage};
use crate::flags::{self, Completes, Count, Operand, closest};
use crate::held::Dir;
use crate::store::{Store, time};
use crate::terminal::note;

mod child;
mod config;
mod console;
mod event;
pub mod folder;
mod grounds;
mod keep;
mod matrix;
mod options;
mod outcome;
mod prepare;
pub mod report;
mod runner;
mod schedule;
mod screen;
mod signals;
mod sink;
mod suite;
mod worker;

pub const VERB: Verb = Verb {
    name: "test",
    about: "Run a command on many guest operating systems",
    long: "Run a command in a guest of each image, side by side, and say where it failed. Every guest is a clone of a snapshot, taken after a boot \
           and the setup, which are done once and kept until they change; nothing is left of it, whatever its command does. One that failed is \
           kept as it was then, to be entered with skiff run --from.\n\n\
           Without --on or a CMD, skiff-test.toml of the current directory says what is tested. Prints a table; what commands print is in \
           skiff-test/, a directory for each test.",
    after: || format!("{EXAMPLES}\n\n{EXIT_CODES}"),
    flags: || flags::describe(FLAGS),
    operands: &[COMMAND],
    run,
};

const COMMAND: Operand = Operand {
    name: "CMD",
    count: Count::MaybeRest,
    completes: Completes::Nothing,
    help: "The command and its arguments",
};

const EXAMPLES: &str = "\
Examples:
  skiff test --on debian:11,debian:12 -- uname -r
  skiff test --on debian:11,debian:12 --copy .:/src -w /src --timeout 5m -- ./run-tests.sh
  skiff test
  skiff test --filter debian:12 --flaky 20
  skiff test --junit results.xml --retry 2";

const EXIT_CODES: &str = "\
Exit codes:
  0      all tests passed
  1      a test failed
  2      a wrong flag, file key or value: nothing was tried
  125    no test failed, but skiff or a setup did
  128+N  interrupted by signal N (130: Ctrl-C, 143: SIGTERM)";

/// The file that is read if nobody names one.
const FILE: &str = "skiff-test.toml";
/// Where results go if nobody says.
const OUTPUT: &str = "skiff-test";
/// How many failed guests of a test are kept if nobody says.
const KEEP: u32 = 1;

/// Exit code 1 says that a test failed: what skiff cannot do has another.
fn run(matches: &ArgMatches) -> Result<u8> {
    match asked_for(matches) {
        Err(error) if !error.is::<Usage>() => {
            exit::say(&error);
            Ok(exit::NOT_THE_COMMANDS)
        }
        done => done,
    }
}

fn asked_for(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    asked.suite.command = COMMAND.all(matches);
    let said_all = !asked.suite.on.is_empty() && !asked.suite.command.is_empty();
    let file = asked.file.take().or_else(|| (!said_all && Path::new(FILE).is_file()).then(|| FILE.into()));
    let here = directory(Path::new("."))?;
    asked.suite.volumes.iter_mut().for_each(|volume| volume.start_at(&here));
    let (project, suite) = match &file {
        Some(path) => {
            let below = read(path).map_err(usage)?;
            tell_of_folders(&below, &directory(path)?);
            (directory(path)?, merge(std::mem::take(&mut asked.suite), below))
        }
        None => (here, merge(std::mem::take(&mut asked.suite), Suite::default())),
    };
    check(&suite, file.is_some())?;
    if asked.list && (asked.junit.is_some() || asked.json.is_some()) {
        return Err(Usage(
            "--list runs no test that --junit or --json could report: leave them out".to_owned(),
        )
        .into());
    }
    volume::check(&suite.volumes).map_err(usage)?;
    if [&asked.junit, &asked.json].iter().all(|path| path.as_deref().is_some_and(is_stdout)) {
        return Err(Usage(
            "--junit and --json cannot both be standard output: name a file for one".to_owned(),
        )
        .into());
    }
    Context::open(&project)?.check(&suite.setup).map_err(|error| match &file {
        Some(path) if error.line > 0 => mistake(path, &error),
        _ => Usage(format!("--copy: {}", error.wrong)),
    })?;
    let cases = cases(&suite)?;
    if cases.is_empty() {
        return Err(Usage(
            "no test is left: see --filter, --exclude and the file's include and exclude".to_owned(),
        )
        .into());
    }
    if asked.list {
        return print(cases.iter().map(|case| format!("{}\n", case.name)).collect::<String>());
    }
    let file = file.map(std::fs::canonicalize).transpose().context("the file cannot be found any more")?;
    test(&asked, &suite, &cases, &Project { dir: project, file })
}

/// Somebody else may have written the file: say which folders outside its directory it gives to the tests.
fn tell_of_folders(suite: &Suite, dir: &Path) {
    for folder in &suite.volumes {
        // What is not there is an error later on.
        let Ok(path) = folder.path().canonicalize() else { continue };
        if !path.starts_with(dir) {
            let how = if folder.is_readonly() { "read" } else { "read and write" };
            note(&format!("skiff: the file lets its tests {how} {}", path.display()));
        }
    }
}

/// Whose tests they are.
struct Project {
    /// The directory from which files are copied.
    dir: PathBuf,
    /// The file that says what is tested, if there is one.
    file: Option<PathBuf>,
}

impl Project {
    fn of(&self, case: &Case) -> Of {
        let file = self.file.as_ref().map(|file| file.display().to_string());
        Of { project: self.dir.display().to_string(), file, test: case.slug.clone() }
    }
}

/// What is wrong was named by whoever typed it, or wrote the file.
fn usage(error: anyhow::Error) -> anyhow::Error {
    Usage(format!("{error:#}")).into()
}

/// What `path` asks for.
fn read(path: &Path) -> Result<Suite> {
    let failed = || format!("cannot read {}", path.display());
    let mut text = String::new();
    let opened = std::fs::File::open(path).with_context(failed)?;
    opened.take(config::LONGEST as u64 + 1).read_to_string(&mut text).with_context(failed)?;
    let mut suite = config::parse(&text).map_err(|error| mistake(path, &error))?;
    let dir = directory(path)?;
    suite.volumes.iter_mut().for_each(|volume| volume.start_at(&dir));
    // It is said from the file's directory.
    if let (Some(output), Some(dir)) = (&mut suite.output, path.parent()) {
        *output = dir.join(&*output);
    }
    Ok(suite)
}

/// A mistake in the file, with what was most likely meant.
fn mistake(path: &Path, error: &FileError) -> Usage {
    let text = match &error.wrong {
        Wrong::Key { key, known } => match closest(key, known.iter().copied()) {
            Some(close) => format!("there is no key '{key}': did you mean '{close}'?"),
            None => error.wrong.to_string(),
        },
        Wrong::Other(text) => text.clone(),
    };
    Usage(format!("{}:{}: {text}", path.display(), error.line))
}

/// The directory `path`, or that of the file, with all links followed.
fn directory(path: &Path) -> Result<PathBuf> {
    let real = std::fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?;
    if real.is_dir() {
        return Ok(real);
    }
    Ok(real.parent().unwrap_or(Path::new("/")).to_owned())
}

fn check(suite: &Suite, has_file: bool) -> Result<(), Usage> {
    let from = if has_file { "the file" } else { FILE };
    if suite.on.is_empty() {
        return Err(Usage(format!(
            "no images: name some, as in --on debian:11,debian:12, or by on = [\"debian:12\"] in {from}"
        )));
    }
    if suite.command.is_empty() {
        return Err(Usage(format!("no command: write one behind --, or by command = \"…\" in {from}")));
    }
    if suite.retry.is_some_and(|retry| retry > 0) && suite.flaky.is_some() {
        return Err(Usage(
            "retry and flaky exclude each other: one wants it to pass, the other to see it fail".to_owned(),
        ));
    }
    Ok(())
}

fn test(asked: &Asked, suite: &Suite, cases: &[Case], project: &Project) -> Result<u8> {
    let (started, begin) = (time::now(), Instant::now());
    let output = std::path::absolute(suite.output.as_deref().unwrap_or(Path::new(OUTPUT)))
        .context("cannot tell the current directory")?;
    let (output, _lock) = folder::begin(&output)?;
    for case in cases {
        folder::clear(&output, &case.slug)?;
    }
    let sink = |path: &Option<PathBuf>| path.as_deref().map(Sink::open).transpose();
    let sinks = [sink(&asked.junit)?, sink(&asked.json)?];
    let store = Store::open()?;
    let images = store.images();
    let (store, images, output, fresh) = (&store, &images, &output, asked.fresh);
    let (dir, file) = (project.dir.as_path(), project.file.as_deref());
    let preparer = Preparer { store, images, suite, project: dir, file, output, fresh };
    let mut screen = Screen::new(asked.show);
    let (mut grounds, largest) = Grounds::look(preparer, cases, |line| screen.say(line));
    let rules = rules(suite, largest.unwrap_or(0));
    let most = suite.keep.unwrap_or(KEEP);
    let job = |case: &Case, ready: &Ready, vm: String| {
        job_of(store, suite, case, ready, vm, (most > 0).then(|| project.of(case)))
    };
    let after = |case: &Case, ran: &Ran| {
        if ran.kept.is_some()
            && let Err(error) =
                keep::prune(store, &project.of(case), usize::try_from(most).unwrap_or(usize::MAX))
        {
            note(&format!("skiff: warning: older guests of {} stay: {error:#}", case.name));
        }
    };
    let undo = |vm: &str| {
        if let Err(error) = keep::undo(store, vm) {
            note(&format!("skiff: warning: {vm} stays: {error:#}"));
        }
    };
    let runner = Runner { cases, rules, output, job: &job, after: &after, undo: &undo };
    let (results, signal) = runner.run(&mut grounds, &mut screen)?;
    let warm = |case: &Case| grounds.ready(case).ok().map(|ready| ready.created_ms);
    let tests = cases.iter().enumerate().map(|(at, case)| {
        let runs = results.iter().filter(|(turn, ..)| turn.case == at).cloned().collect();
        Tested::new([&case.name, &case.image, &case.variant], warm(case), runs, suite.flaky)
    });
    let tests = still_there(tests.collect(), store);
    if signal.is_some()
        && let Err(error) = images.forget_dead()
    {
        log::info!("what processes have left that were ended: {error}");
    }
    // What they started from may go now, if another has taken its place.
    drop(grounds);
    store.forget_outdated_bases();
    store.sweep_behind();
    let took = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let report = Report::new(started, took, signal, tests);
    let shown = suite.output.as_deref().unwrap_or(Path::new(OUTPUT));
    let told = tell(sinks, &report, &project.dir, (output, shown));
    Ok(if told { report.code() } else { exit::NOT_THE_COMMANDS })
}

/// How tests are run whose largest guest has so much memory.
fn rules(suite: &Suite, largest: u64) -> Rules {
    Rules {
        jobs: suite.jobs.map_or_else(|| jobs(largest), |jobs| usize::try_from(jobs).unwrap_or(1)),
        retry: suite.retry.unwrap_or(0),
        flaky: suite.flaky,
        fail_fast: suite.fail_fast.unwrap_or(false),
    }
}

/// `-` is standard output.
fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Without the guests of earlier runs, which have gone for later ones.
fn still_there(mut tests: Vec<Tested>, store: &Store) -> Vec<Tested> {
    for run in tests.iter_mut().flat_map(|test| &mut test.runs) {
        run.ran.kept = run.ran.kept.take().filter(|kept| store.find(&kept.vm).is_some());
    }
    tests
}

fn job_of(store: &Store, suite: &Suite, case: &Case, ready: &Ready, vm: String, keep: Option<Of>) -> Job {
    let mut exec = Exec { argv: suite.command.clone(), ..ready.exec.clone() };
    // The last of two values counts.
    exec.env.extend(case.env.iter().cloned());
    Job {
        store: store.clone(),
        vm,
        spec: ready.spec.clone(),
        from: ready.from,
        oom_lines: ready.oom_lines,
        exec,
        timeout: suite.timeout,
        artifacts: suite.artifacts.clone(),
        keep,
    }
}

/// How many guests with so much memory there can be at once.
fn jobs(memory: u64) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let free = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let fit = free.and_then(|free| free.saturating_mul(1024).checked_div(memory));
    fit.map_or(cpus, |fit| usize::try_from(fit).unwrap_or(usize::MAX).min(cpus)).max(1)
}

/// The report, wherever it is wanted: first for people, then as JUnit's XML and as JSON. `shown` is how people know the directory of the
/// results. Says whether all of it was written.
fn tell(sinks: [Option<Sink>; 2], report: &Report, project: &Path, (output, shown): (&Dir, &Path)) -> bool {
    let summary = people::summary(report, shown);
    let mut written = Vec::new();
    if sinks.iter().flatten().any(|sink| matches!(sink, Sink::Stdout)) {
        // Standard output is the report's.
        eprint!("{summary}");
    } else {
        written.push(print(summary).map(|_| ()));
    }
    let [junit, json] = sinks;
    if let Some(sink) = junit {
        let name = project.file_name().and_then(|name| name.to_str()).unwrap_or("skiff");
        let log = |dir: &Path| junit::last_of_log(output, dir);
        written.push(junit::xml(report, name, log).and_then(|xml| sink.write(&xml)));
    }
    if let Some(sink) = json {
        written.push(super::json(report).and_then(|json| sink.write(&json)));
    }
    let failed: Vec<_> = written.into_iter().filter_map(Result::err).collect();
    failed.iter().for_each(exit::say);
    failed.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_names_the_file_the_line_and_the_key_that_was_meant() {
        let error = config::parse("on = [\"a\"]\ncomand = \"x\"").unwrap_err();
        let text = mistake(Path::new("skiff-test.toml"), &error).0;
        assert_eq!(text, "skiff-test.toml:2: there is no key 'comand': did you mean 'command'?");
    }

    #[test]
    fn there_is_always_room_for_one_guest() {
        assert_eq!(jobs(u64::MAX), 1);
        assert!(jobs(1) >= 1 && jobs(0) >= 1);
    }
}
