//! The report for people: a table, how to enter what is kept, and one line for all.

use std::path::Path;
use std::time::Duration;

use super::{Report, Tested};
use crate::cmd::image::file::show::time;
use crate::cmd::table::table;

/// The whole, with the directory where the logs are.
pub fn summary(report: &Report, output: &Path) -> String {
    let rows: Vec<Vec<String>> = report.tests.iter().map(row).collect();
    let mut text = table(&["TEST", "RESULT", "TIME", "REASON"], &rows);
    for test in &report.tests {
        if let Some(kept) = test.kept() {
            text.push_str(&format!("\n{} {}:\n", test.name, kept.what()));
            kept.commands().iter().for_each(|command| text.push_str(&format!("  {command}\n")));
        }
    }
    let notes = report.tests.iter().flat_map(|test| {
        test.runs
            .iter()
            .flat_map(move |run| run.ran.notes.iter().map(move |note| format!("{}: {note}\n", test.name)))
    });
    let notes: Vec<String> = notes.collect();
    if !notes.is_empty() {
        text.push_str(&format!("\n{}", notes.concat()));
    }
    text.push_str(&format!("\nlogs: {}\n{}\n", output.display(), last_line(report)));
    text
}

fn row(test: &Tested) -> Vec<String> {
    let runs = match test.flaky {
        Some(flaky) => format!(" ({} of {} failed)", flaky.failed, flaky.runs),
        None if test.runs.len() > 1 => format!(" ({} tries)", test.runs.len()),
        None => String::new(),
    };
    let took =
        if test.runs.is_empty() { String::new() } else { time(Duration::from_millis(test.duration_ms())) };
    vec![test.name.clone(), format!("{}{runs}", test.verdict.word()), took, test.reason.clone()]
}

/// `3 tests: 2 passed, 1 failed in 5.2 s`.
fn last_line(report: &Report) -> String {
    let count = report.tests.len();
    let parts = [
        (report.passed, "passed"),
        (report.failed, "failed"),
        (report.errors, "in error"),
        (report.not_run, "not run"),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let took = time(Duration::from_millis(report.duration_ms));
    let stopped = if report.interrupted { "interrupted: " } else { "" };
    let tests = if count == 1 { "test" } else { "tests" };
    format!("{stopped}{count} {tests}: {} in {took}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::test::report::fixture;

    #[test]
    fn the_summary_is_a_table_and_says_how_to_enter_what_failed() {
        let text = summary(&fixture::report(), Path::new("skiff-test"));
        let wanted = "\
TEST              RESULT           TIME   REASON
debian:11         passed           1.2 s
debian:12         FAILED           1.2 s  exit code 1
debian:13 cpus=2  flaky (2 tries)  2.5 s  Kernel panic - not syncing: <sysrq>
alpine:3          not run

debian:12 is kept as it was when it failed:
  skiff run --from failed-debian-12-1@failed -it sh
  skiff rm --snapshots failed-debian-12-1

debian:13 cpus=2 is kept as it was when its kernel panicked: what it said, and a boot from its disk:
  skiff logs failed-debian-13-1
  skiff start failed-debian-13-1 && skiff shell failed-debian-13-1
  skiff rm --snapshots failed-debian-13-1

logs: skiff-test
4 tests: 2 passed, 1 failed, 1 not run in 5.2 s
";
        assert_eq!(text, wanted);
    }
}
