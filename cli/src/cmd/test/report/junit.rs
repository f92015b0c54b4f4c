//! The report as CI servers read it: JUnit's XML, one suite with a test case for each test.
//!
//! Jenkins and GitLab read `testsuite`, `testcase` with `name`, `classname` and `time`, and `failure`, `error` and `skipped` in it; what a
//! command printed is its `system-out`. Tries before the last are `flakyFailure` and `rerunFailure`, as Maven's Surefire writes them.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use quick_junit::{
    NonSuccessKind, Property, Report as Junit, TestCase, TestCaseStatus, TestRerun, TestSuite,
};

use super::{Ran, Report, Tested};
use crate::cmd::test::folder;
use crate::cmd::test::outcome::Verdict;
use crate::held::Dir;

/// How much of what a command printed last is repeated, in bytes.
const LAST: u64 = 64 << 10;

/// The XML of `report`. `log` is asked for what a run printed, by the directory of the run.
pub fn xml(report: &Report, name: &str, log: impl Fn(&Path) -> Vec<u8>) -> Result<String> {
    let mut suite = TestSuite::new(name);
    suite.set_time(Duration::from_millis(report.duration_ms));
    suite.add_property(Property::new("skiff", env!("CARGO_PKG_VERSION")));
    suite.add_property(Property::new("started", report.started.as_str()));
    for test in &report.tests {
        suite.add_test_case(case(test, name, &log));
    }
    let mut junit = Junit::new(name);
    junit.set_time(Duration::from_millis(report.duration_ms));
    junit.add_test_suite(suite);
    let mut text = junit.to_string().context("the report cannot be written as XML")?;
    // The library drops the control characters that XML 1.0 (2.2, Char) does not have, and leaves these two.
    text.retain(|letter| !matches!(letter, '\u{fffe}' | '\u{ffff}'));
    Ok(text)
}

/// The end of what the run printed that has its files in `dir` beneath `output`, or of what its setup did; nothing if that cannot be read.
pub fn last_of_log(output: &Dir, dir: &Path) -> Vec<u8> {
    let read = || -> std::io::Result<Vec<u8>> {
        let opened = output.file(&dir.join(folder::OUTPUT_LOG));
        let mut file = opened.or_else(|_| output.file(&dir.join(folder::SETUP_LOG)))?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LAST)))?;
        let mut bytes = Vec::new();
        file.take(LAST).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().unwrap_or_default()
}

fn case(test: &Tested, name: &str, log: &impl Fn(&Path) -> Vec<u8>) -> TestCase {
    // One that was not run to its end says nothing.
    let told: Vec<_> = test.runs.iter().filter(|run| run.ran.verdict != Verdict::NotRun).collect();
    let mut status = status(test);
    // The last one is told by the status itself, if it is not one of many.
    let before = told.len().saturating_sub(1);
    for run in told.iter().take(before).filter(|run| !run.ran.verdict.is_good()) {
        let mut rerun = TestRerun::new(kind(run.ran.verdict));
        rerun.set_time(Duration::from_millis(run.ran.duration_ms));
        rerun.set_message(run.ran.reason.as_str()).set_type(run.ran.verdict.word());
        rerun.set_system_out_lossy(log(&run.dir));
        status.add_rerun(rerun);
    }
    let mut case = TestCase::new(test.name.as_str(), status);
    case.set_classname(format!("{name}.{}", test.image));
    case.set_time(Duration::from_millis(test.duration_ms()));
    if let Some(run) = test.runs.last() {
        case.set_system_out_lossy(log(&run.dir));
    }
    if let Some(kept) = test.kept() {
        case.add_property(Property::new("enter", kept.enter()));
    }
    case
}

fn status(test: &Tested) -> TestCaseStatus {
    match test.verdict {
        Verdict::Passed | Verdict::Flaky => TestCaseStatus::success(),
        Verdict::NotRun => TestCaseStatus::skipped(),
        verdict => {
            let mut status = TestCaseStatus::non_success(kind(verdict));
            status.set_message(test.reason.as_str()).set_type(verdict.word());
            status.set_description(description(test));
            status
        }
    }
}

fn kind(verdict: Verdict) -> NonSuccessKind {
    if verdict.is_failure() { NonSuccessKind::Failure } else { NonSuccessKind::Error }
}

fn description(test: &Tested) -> String {
    let mut text = test.reason.clone();
    if let Some(kept) = test.kept() {
        text.push_str(&format!("\n{}: {}", kept.what(), kept.enter()));
    }
    let notes = test.runs.iter().flat_map(|run| notes(&run.ran));
    for note in notes {
        text.push_str(&format!("\n{note}"));
    }
    text
}

fn notes(ran: &Ran) -> impl Iterator<Item = &str> {
    ran.notes.iter().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::test::report::fixture;

    #[test]
    fn what_ci_servers_read_is_there_and_nothing_that_breaks_xml() {
        let text = xml(&fixture::report(), "app", |dir| {
            format!("printed in {} \u{1b}[31m<&\u{0}\u{ffff}\u{fffe}", dir.display()).into_bytes()
        })
        .unwrap();
        for wanted in [
            "<testsuites name=\"app\" tests=\"4\" skipped=\"1\" failures=\"1\" errors=\"0\"",
            "<testcase name=\"debian:11\" classname=\"app.debian:11\" time=\"1.250\">",
            "<failure message=\"exit code 1\" type=\"FAILED\">",
            "skiff run --from failed-debian-12-1@failed -it sh",
            "<flakyFailure",
            "message=\"Kernel panic - not syncing: &lt;sysrq&gt;\"",
            "<skipped/>",
            "printed in skiff-test/debian-13 &lt;&amp;",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
        assert!(!text.contains(['\u{1b}', '\u{1}', '\u{0}', '\u{fffe}', '\u{ffff}']), "{text}");
    }

    #[test]
    fn what_a_setup_printed_is_told_if_no_command_came_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let (output, log) = (Dir::open(dir.path()).unwrap(), dir.path().join("a"));
        assert!(last_of_log(&output, &log).is_empty());
        folder::write_setup_log(&output, "a", b"cc: error\n").unwrap();
        assert_eq!(last_of_log(&output, &log), b"cc: error\n");
    }

    #[test]
    fn a_run_that_was_not_to_be_is_no_error() {
        use crate::cmd::test::schedule::Turn;
        let runs = [Verdict::NotRun, Verdict::NotRun, Verdict::Failed, Verdict::NotRun].into_iter().zip(0..);
        let runs = runs.map(|(verdict, round)| {
            (Turn { case: 0, round, attempt: 0 }, "out".into(), fixture::ran(verdict, "why"))
        });
        let tests = vec![Tested::new(["a", "a", ""], None, runs.collect(), Some(4))];
        let text = xml(&Report::new(0, 0, None, tests), "app", |_| Vec::new()).unwrap();
        assert!(text.contains("<failure message=\"why\"") && text.contains("errors=\"0\""), "{text}");
        assert!(!text.contains("rerun") && !text.contains("not run"), "{text}");
    }
}
