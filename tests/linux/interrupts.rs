//! `skiff test` and Ctrl-C: whatever is being done then, nothing is left of it. Nor is when it is killed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cli::Cli;
use crate::testing::Tests;
use crate::vm::Kernel;

const FILE: &str = r#"
on = ["tiny:1"]
command = ["sh", "/t/case"]
timeout = "10m"
artifacts = ["/t/big"]

[[setup]]
copy = ["case", "/t/case"]

[matrix]
memory = ["256M"]
env.CASE = ["pass", "hang", "fail"]
"#;

/// Its setup has no end.
const SLOW: &str = r#"
on = ["tiny:1"]
command = ["true"]

[[setup]]
run = "echo in the setup; sleep 1000"

[matrix]
memory = ["256M"]
"#;

/// One passes, with a file that takes long to fetch; one never ends.
const CASE: &str = r#"
case $CASE in
    pass) truncate -s 4G /t/big ;;
    hang) echo hanging; sleep 1000 ;;
    fail) exit 1 ;;
esac
"#;

/// What skiff is doing when somebody presses Ctrl-C.
struct Moment {
    what: &'static str,
    arguments: &'static [&'static str],
    /// Whether it has come.
    is_now: fn(&Interrupts<'_>) -> Result<bool>,
}

const MOMENTS: [Moment; 6] = [
    Moment {
        what: "a guest boots",
        arguments: &["-f", "slow.toml"],
        is_now: |all| Ok(!all.tests.cli.run(["ps", "-q"])?.is_empty()),
    },
    Moment {
        what: "the setup runs",
        arguments: &["-f", "slow.toml"],
        is_now: |all| Ok(all.said()?.contains("in the setup")),
    },
    Moment {
        what: "what tests start from is written",
        arguments: &["--fresh", "--filter", "hang"],
        is_now: |all| Ok(all.snapshots()?.len() > all.before.len()),
    },
    Moment { what: "a test runs", arguments: &["--filter", "hang"], is_now: |all| all.hangs() },
    Moment {
        what: "a guest that failed is kept",
        arguments: &["--filter", "fail"],
        is_now: |all| Ok(all.snapshots()?.len() > all.before.len()),
    },
    Moment {
        what: "an artifact is fetched",
        arguments: &["--filter", "pass"],
        is_now: |all| Ok(all.artifacts().iter().any(|name| name.starts_with('.'))),
    },
];

/// All of it.
///
/// # Errors
/// What is left.
pub fn interrupts(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = Cli::new(skiff, dir)?;
    let files = [("skiff-test.toml", FILE), ("slow.toml", SLOW), ("case", CASE)];
    let tests = Tests::new(&cli, kernel, dir, &files)?;
    let mut all = Interrupts { tests, state: dir.join("state"), skiff, before: BTreeSet::new() };
    // What all later ones start from, and what stays of a first run.
    let first = all.tests.command(&["--filter", "hang", "--timeout", "1s", "--no-keep"]).output()?;
    ensure!(first.status.code() == Some(1), "the first run: {first:?}");
    for moment in &MOMENTS {
        all.at(moment, &[libc::SIGINT]).with_context(|| format!("Ctrl-C when {}", moment.what))?;
    }
    let Some(runs) = MOMENTS.iter().find(|moment| moment.what == "a test runs") else { return Ok(()) };
    all.at(runs, &[libc::SIGINT, libc::SIGINT]).context("Ctrl-C twice")?;
    all.at(runs, &[libc::SIGKILL]).context("the end by SIGKILL")
}

struct Interrupts<'a> {
    tests: Tests<'a>,
    state: PathBuf,
    skiff: &'a Path,
    /// The snapshots that were there before.
    before: BTreeSet<String>,
}

impl Interrupts<'_> {
    /// Start, and end it by these signals at that moment.
    fn at(&mut self, moment: &Moment, signals: &[i32]) -> Result<()> {
        // What was said before is not to be taken for what this one says.
        fs::remove_dir_all(self.tests.project.join("skiff-test")).context("there are no results")?;
        let before = self.there()?;
        self.before = self.snapshots()?;
        let mut command = self.tests.command(moment.arguments);
        let mut child = command.stdout(Stdio::null()).stderr(File::create(self.log())?).spawn()?;
        let came = self.tests.cli.until_soon("the moment comes", || {
            let ended = child.try_wait()?;
            ensure!(ended.is_none(), "skiff has ended ({ended:?}): {}", self.said()?);
            (moment.is_now)(self)
        });
        for (at, number) in signals.iter().enumerate() {
            if at > 0 {
                // Two that come at once are one.
                self.tests
                    .cli
                    .until_soon("the first is heard", || Ok(self.said()?.contains("again to leave")))?;
            }
            signal(&child, *number);
        }
        let status = child.wait()?;
        came.with_context(|| self.said().unwrap_or_default())?;
        if signals.contains(&libc::SIGINT) {
            ensure!(status.code() == Some(130), "it ended with {status}: {}", self.said()?);
        }
        if signals == [libc::SIGINT] {
            // All that is swept behind its back later is what nobody can see.
            let vms = self.tests.cli.run(["ps", "-aq"])?;
            let listed = || self.tests.cli.run(["ps", "-a"]).unwrap_or_default();
            ensure!(vms.is_empty(), "there are VMs:\n{}it said: {}", listed(), self.said()?);
            let artifacts = self.artifacts();
            ensure!(!artifacts.iter().any(|name| name.starts_with('.')), "there are {artifacts:?}");
        }
        let mut now = BTreeSet::new();
        let clean = self.tests.cli.until("nothing is left", || {
            now = self.there()?;
            if signals != [libc::SIGINT] {
                // What a process has noted that had no time to end is nothing to anybody, and goes with the next prune.
                now.retain(|path| !path.contains("/images/using/"));
            }
            Ok(now.is_subset(&before) && before.difference(&now).all(|path| path.contains("/images/using/")))
        });
        clean.with_context(|| {
            let (left, gone): (Vec<_>, Vec<_>) =
                (now.difference(&before).collect(), before.difference(&now).collect());
            format!("left: {left:?}; gone: {gone:?}; it said: {}", self.said().unwrap_or_default())
        })
    }

    fn hangs(&self) -> Result<bool> {
        Ok(self.tests.result("hang", "output.log").is_ok_and(|log| log.contains("hanging")))
    }

    fn log(&self) -> PathBuf {
        self.tests.project.join("said")
    }

    /// What skiff has said.
    fn said(&self) -> Result<String> {
        fs::read_to_string(self.log()).context("nobody hears what skiff says")
    }

    /// The names in the directory of snapshots, of those that are being written as well.
    fn snapshots(&self) -> Result<BTreeSet<String>> {
        names(&self.tests.cli.layers().with_file_name("snapshots"))
    }

    fn artifacts(&self) -> BTreeSet<String> {
        // It is made when something is fetched.
        names(&self.tests.project.join("skiff-test/tiny-1-CASE-pass/artifacts")).unwrap_or_default()
    }

    /// All that skiff could leave: files and sockets of its own, mounts, network interfaces, processes. Locks may stay.
    fn there(&self) -> Result<BTreeSet<String>> {
        let mut there = BTreeSet::new();
        files(&self.state, &mut there)?;
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        there.extend(mounts.lines().map(|line| format!("mount {line}")));
        there.extend(names(Path::new("/sys/class/net"))?.iter().map(|name| format!("interface {name}")));
        there.extend(names(&std::env::temp_dir())?.iter().map(|name| format!("temporary {name}")));
        for process in names(Path::new("/proc"))? {
            let program = fs::read_link(format!("/proc/{process}/exe"));
            if program.is_ok_and(|program| program == self.skiff) {
                there.insert(format!("process {process}"));
            }
        }
        Ok(there)
    }
}

/// The paths of all files below `dir`.
fn files(dir: &Path, into: &mut BTreeSet<String>) -> Result<()> {
    for name in names(dir)? {
        let path = dir.join(&name);
        if path.is_dir() && !path.is_symlink() {
            files(&path, into)?;
        }
        if !name.ends_with(".lock") {
            into.insert(path.display().to_string());
        }
    }
    Ok(())
}

/// What is in `dir`; nothing if it goes just now.
fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
    };
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).unwrap_or(0);
    // SAFETY: touches no memory; the process is a child of this one that nobody has waited for.
    unsafe { libc::kill(pid, signal) };
}
