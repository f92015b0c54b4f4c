//! [`Report`]: what all tests came to, [for people](people), [for CI servers](junit) and as JSON.
//!
//! A run's part is also in the directory of its guest, as `result.json`. The keys of the JSON stay what they are:
//!
//! ```text
//! { "version": 1, "started": RFC 3339, "duration-ms", "interrupted", "passed", "failed", "errors", "not-run",
//!   "tests": [ { "name", "image", "variant", "verdict", "reason", "flaky": { "runs", "failed" }?, "warm"?,
//!                "runs": [ { "round", "attempt", "dir", "verdict", "reason", "code"?, "duration-ms",
//!                            "kept": { "vm", "snapshot", "panicked"? }?, "artifacts": [], "notes": [] } ] } ] }
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::outcome::{Verdict, shorten};
use super::schedule::{Turn, sum};
use crate::exit;
use crate::store::time;

pub mod junit;
pub mod people;

/// How many further lines of a reason are told.
const MOST_NOTES: usize = 20;
/// Of the JSON. Goes up when a key changes its meaning.
const VERSION: u32 = 1;

/// What one run of a test came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ran {
    /// What became of it.
    pub verdict: Verdict,
    /// Why, in one line; empty if it passed.
    pub reason: String,
    /// The command's exit code as a shell tells it, if it came to have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// How long the command took.
    pub duration_ms: u64,
    /// The guest as it was when it failed, if it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// What was fetched: paths in the guest.
    #[serde(default)]
    pub artifacts: Vec<String>,
    /// What else is to be known.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Ran {
    /// It did not come to run the command, for this reason.
    pub fn without(verdict: Verdict, reason: impl Into<String>) -> Self {
        let mut ran = Self {
            verdict,
            reason: String::new(),
            code: None,
            duration_ms: 0,
            kept: None,
            artifacts: Vec::new(),
            notes: Vec::new(),
        };
        ran.judged(verdict, &reason.into());
        ran
    }

    /// It came to this. Of a reason of several lines the first is it, and the rest are notes.
    pub fn judged(&mut self, verdict: Verdict, reason: &str) {
        self.verdict = verdict;
        let mut lines = reason.lines().filter(|line| !line.trim().is_empty());
        self.reason = lines.next().map(shorten).unwrap_or_default();
        self.notes.extend(lines.take(MOST_NOTES).map(shorten));
    }
}

/// A guest as it was at an instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The VM that has the snapshot. It does not run.
    pub vm: String,
    /// The snapshot's name.
    pub snapshot: String,
    /// Its kernel has panicked: there is nobody in it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub panicked: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Kept {
    /// What is typed to enter it.
    pub fn enter(&self) -> String {
        let Self { vm, snapshot, panicked } = self;
        match panicked {
            // Nobody in it runs a command any more; its disk can be booted, as it is.
            true => format!("skiff start {vm} && skiff shell {vm}"),
            false => format!("skiff run --from {vm}@{snapshot} -it sh"),
        }
    }

    /// What it is.
    pub fn what(&self) -> &'static str {
        match self.panicked {
            true => "is kept as it was when its kernel panicked: what it said, and a boot from its disk",
            false => "is kept as it was when it failed",
        }
    }

    /// What is typed to look at it, and to be rid of it.
    pub fn commands(&self) -> Vec<String> {
        let logs = self.panicked.then(|| format!("skiff logs {}", self.vm));
        logs.into_iter().chain([self.enter(), format!("skiff rm --snapshots {}", self.vm)]).collect()
    }
}

/// A run with its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Run {
    /// Which of those that `--flaky` wants, from 0.
    pub round: u32,
    /// The how manieth try, from 0.
    pub attempt: u32,
    /// Where its logs are.
    pub dir: PathBuf,
    #[serde(flatten)]
    pub ran: Ran,
}

/// How often a test failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flaky {
    pub runs: usize,
    pub failed: usize,
}

/// One test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tested {
    pub name: String,
    pub image: String,
    pub variant: String,
    pub verdict: Verdict,
    /// Why, in one line; empty if it passed.
    pub reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flaky: Option<Flaky>,
    /// From when the snapshot is that it started from, in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm: Option<String>,
    pub runs: Vec<Run>,
}

impl Tested {
    /// Of these runs, in the order in which they ended.
    pub fn new(
        [name, image, variant]: [&str; 3],
        warm: Option<u64>,
        runs: Vec<(Turn, PathBuf, Ran)>,
        flaky: Option<u32>,
    ) -> Self {
        let verdicts: Vec<Verdict> = runs.iter().map(|(_, _, ran)| ran.verdict).collect();
        let (verdict, why) = sum(&verdicts, flaky);
        let failed =
            verdicts.iter().filter(|verdict| !verdict.is_good() && **verdict != Verdict::NotRun).count();
        let count = verdicts.iter().filter(|verdict| **verdict != Verdict::NotRun).count();
        let reason =
            why.and_then(|at| runs.get(at)).map(|(_, _, ran)| ran.reason.clone()).unwrap_or_default();
        let run = |(turn, dir, ran): (Turn, PathBuf, Ran)| Run {
            round: turn.round,
            attempt: turn.attempt,
            dir,
            ran,
        };
        Self {
            name: name.to_owned(),
            image: image.to_owned(),
            variant: variant.to_owned(),
            verdict,
            reason,
            flaky: flaky.map(|_| Flaky { runs: count, failed }),
            warm: warm.map(time::rfc3339),
            runs: runs.into_iter().map(run).collect(),
        }
    }

    /// How long its runs took, in milliseconds.
    pub fn duration_ms(&self) -> u64 {
        self.runs.iter().map(|run| run.ran.duration_ms).fold(0, u64::saturating_add)
    }

    /// The guest that was kept last.
    pub fn kept(&self) -> Option<&Kept> {
        self.runs.iter().rev().find_map(|run| run.ran.kept.as_ref())
    }
}

/// All tests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    version: u32,
    /// In RFC 3339.
    pub started: String,
    pub duration_ms: u64,
    /// Somebody wanted no more.
    pub interrupted: bool,
    /// The signal by which they said so.
    #[serde(skip)]
    signal: Option<u8>,
    pub passed: usize,
    pub failed: usize,
    pub errors: usize,
    pub not_run: usize,
    pub tests: Vec<Tested>,
}

impl Report {
    /// Of tests that began at `started`, in milliseconds since 1970, and took so long, unless this signal came first.
    pub fn new(started: u64, duration_ms: u64, signal: Option<u8>, tests: Vec<Tested>) -> Self {
        let count = |is: fn(Verdict) -> bool| tests.iter().filter(|test| is(test.verdict)).count();
        Self {
            version: VERSION,
            started: time::rfc3339(started),
            duration_ms,
            interrupted: signal.is_some(),
            signal,
            passed: count(Verdict::is_good),
            failed: count(Verdict::is_failure),
            errors: count(|verdict| verdict == Verdict::Error),
            not_run: count(|verdict| verdict == Verdict::NotRun),
            tests,
        }
    }

    /// The program's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self { signal: Some(number), .. } => exit::SIGNAL.saturating_add(*number),
            Self { failed: 1.., .. } => exit::FAILURE,
            Self { errors: 1.., .. } => exit::NOT_THE_COMMANDS,
            Self { not_run: 1.., .. } => exit::FAILURE,
            _ => exit::SUCCESS,
        }
    }
}

#[cfg(test)]
pub mod fixture {
    use super::*;

    pub fn ran(verdict: Verdict, reason: &str) -> Ran {
        Ran { duration_ms: 1250, ..Ran::without(verdict, reason) }
    }

    /// One that passed, one that failed and is kept, one that is flaky, one that was not run.
    pub fn report() -> Report {
        let turn = |attempt| Turn { case: 0, round: 0, attempt };
        let kept = Some(Kept {
            vm: "failed-debian-12-1".to_owned(),
            snapshot: "failed".to_owned(),
            panicked: false,
        });
        let crashed =
            Kept { vm: "failed-debian-13-1".to_owned(), snapshot: "failed".to_owned(), panicked: true };
        let failed = Ran { kept, code: Some(1), ..ran(Verdict::Failed, "exit code 1") };
        let dir = |name: &str| PathBuf::from(format!("skiff-test/{name}"));
        let panicked = ran(Verdict::Panicked, "Kernel panic - not syncing: \u{1}<sysrq>");
        let panicked = Ran { kept: Some(crashed), ..panicked };
        let tests = vec![
            Tested::new(
                ["debian:11", "debian:11", ""],
                Some(0),
                vec![(turn(0), dir("debian-11"), ran(Verdict::Passed, ""))],
                None,
            ),
            Tested::new(
                ["debian:12", "debian:12", ""],
                None,
                vec![(turn(0), dir("debian-12"), failed)],
                None,
            ),
            Tested::new(
                ["debian:13 cpus=2", "debian:13", "cpus=2"],
                None,
                vec![
                    (turn(0), dir("debian-13"), panicked),
                    (turn(1), dir("debian-13/retry-1"), ran(Verdict::Passed, "")),
                ],
                None,
            ),
            Tested::new(["alpine:3", "alpine:3", ""], None, Vec::new(), None),
        ];
        Report::new(1_767_225_599_000, 5200, None, tests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_says_what_is_worst() {
        let report = |verdicts: &[Verdict]| {
            let tests = verdicts.iter().map(|verdict| {
                let turn = Turn { case: 0, round: 0, attempt: 0 };
                Tested::new(
                    ["", "", ""],
                    None,
                    vec![(turn, PathBuf::new(), Ran::without(*verdict, ""))],
                    None,
                )
            });
            Report::new(0, 0, None, tests.collect())
        };
        use Verdict::{AgentLost, Error, Failed, Flaky, NotRun, OutOfMemory, Panicked, Passed, TimedOut};
        assert_eq!(report(&[]).code(), 0);
        assert_eq!(report(&[Passed, Flaky]).code(), 0);
        for bad in [Failed, TimedOut, Panicked, OutOfMemory, AgentLost] {
            assert_eq!(report(&[Passed, Error, bad]).code(), 1, "{bad:?}");
        }
        assert_eq!(report(&[Passed, Error]).code(), 125);
        assert_eq!(report(&[Passed, NotRun]).code(), 1);
        for (signal, code) in [(2, 130), (15, 143), (1, 129)] {
            assert_eq!(Report { signal: Some(signal), ..report(&[Failed]) }.code(), code);
        }
    }

    #[test]
    fn what_programs_read_stays_as_it_is() {
        let value = serde_json::to_value(fixture::report()).unwrap();
        assert_eq!(value["version"], 1);
        assert_eq!(value["started"], "2025-12-31T23:59:59.000Z");
        assert_eq!(
            (&value["passed"], &value["failed"], &value["not-run"]),
            (&2.into(), &1.into(), &1.into())
        );
        let failed = &value["tests"][1];
        assert_eq!((&failed["verdict"], &failed["reason"]), (&"failed".into(), &"exit code 1".into()));
        let run = &failed["runs"][0];
        assert_eq!((&run["kept"]["vm"], &run["code"]), (&"failed-debian-12-1".into(), &1.into()));
        assert_eq!((&run["dir"], &run["duration-ms"]), (&"skiff-test/debian-12".into(), &1250.into()));
        assert_eq!(
            (&value["tests"][2]["verdict"], &value["tests"][3]["verdict"]),
            (&"flaky".into(), &"not-run".into())
        );
    }

    #[test]
    fn a_reason_is_one_line_whatever_it_is_of() {
        let ran = Ran::without(Verdict::Error, "not ready; the last that it printed:\n\n\u{1b}one\ntwo\n");
        assert_eq!(ran.reason, "not ready; the last that it printed:");
        assert_eq!(ran.notes, ["one", "two"]);
        let long = Ran::without(Verdict::Error, "x".repeat(100_000));
        assert!(long.reason.len() < 1000 && long.notes.is_empty());
    }

    #[test]
    fn how_often_one_failed_is_counted() {
        let turn = |round| Turn { case: 0, round, attempt: 0 };
        let runs = [Verdict::Passed, Verdict::Failed, Verdict::Passed, Verdict::NotRun];
        let runs = runs
            .into_iter()
            .zip(0..)
            .map(|(verdict, round)| (turn(round), PathBuf::new(), fixture::ran(verdict, "why")));
        let tested = Tested::new(["a", "a", ""], None, runs.collect(), Some(4));
        assert_eq!(tested.flaky, Some(Flaky { runs: 3, failed: 1 }));
        assert_eq!((tested.verdict, tested.reason.as_str()), (Verdict::Failed, "why"));
    }
}
