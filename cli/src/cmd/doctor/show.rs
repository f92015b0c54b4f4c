//! Findings as text.

use std::ffi::OsString;

use anyhow::{Context as _, Result};

use super::{Finding, Status};

/// An array of objects.
pub(super) fn json(findings: &[Finding]) -> Result<String> {
    let mut text = serde_json::to_string_pretty(findings).context("cannot write JSON")?;
    text.push('\n');
    Ok(text)
}

/// For programs: a line each, with tabs between status, check, what was found and the fix.
pub(super) fn plain(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let mut line = format!("{}\t{}\t{}", word(finding.status), finding.check, finding.found);
        if let Some(fix) = &finding.fix {
            line.push('\t');
            line.push_str(fix);
        }
        line.push('\n');
        line
    };
    findings.iter().map(line).collect()
}

/// For people: columns, the fix below what it mends, and what it all comes to.
pub(super) fn table(findings: &[Finding], colour: bool) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let (on, off) = if colour { (escape(finding.status), "\x1b[0m") } else { ("", "") };
        // The escapes have no width, so the word is padded by itself.
        let status = format!("{:<4}", word(finding.status));
        text.push_str(&format!("{on}{status}{off}  {:<width$}  {}\n", finding.check, finding.found));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("{:4}  {:width$}  fix: {fix}\n", "", ""));
        }
    }
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    text.push_str(match (count(Status::Fail), count(Status::Warn)) {
        (0, 0) => "\nVMs can run here, with all that skiff can do.\n",
        (0, _) => "\nVMs can run here, without what is marked warn.\n",
        _ => "\nVMs cannot run here until what is marked fail is mended.\n",
    });
    text
}

/// Whether a terminal gets colours (<https://no-color.org>).
pub(super) fn wants_colour(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let refused = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = variable("TERM").is_none_or(|term| term == "dumb");
    !refused && !dumb
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "fail",
    }
}

/// Green, yellow, red.
fn escape(status: Status) -> &'static str {
    match status {
        Status::Ok => "\x1b[32m",
        Status::Warn => "\x1b[33m",
        Status::Fail => "\x1b[31m",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("kvm", "there"),
            Finding::warn("huge-pages", "none", "sudo reserve"),
            Finding::fail("state", "no \"place\"", "set it"),
        ]
    }

    #[test]
    fn people_get_columns_and_the_fix_below() {
        let text = table(&findings(), false);
        let wanted = "\
ok    kvm         there
warn  huge-pages  none
                  fix: sudo reserve
fail  state       no \"place\"
                  fix: set it

VMs cannot run here until what is marked fail is mended.
";
        assert_eq!(text, wanted);
        let coloured = table(&findings(), true);
        assert!(coloured.starts_with("\x1b[32mok  \x1b[0m  kvm         there\n\x1b[33mwarn\x1b[0m  huge"));
        assert!(table(&findings()[..2], false).ends_with("VMs can run here, without what is marked warn.\n"));
        assert!(table(&findings()[..1], false).ends_with("VMs can run here, with all that skiff can do.\n"));
    }

    #[test]
    fn programs_get_tabs_or_json() {
        let wanted =
            "ok\tkvm\tthere\nwarn\thuge-pages\tnone\tsudo reserve\nfail\tstate\tno \"place\"\tset it\n";
        assert_eq!(plain(&findings()), wanted);
        let json: serde_json::Value = serde_json::from_str(&json(&findings()).unwrap()).unwrap();
        let wanted = serde_json::json!([
            {"check": "kvm", "status": "ok", "found": "there", "fix": null},
            {"check": "huge-pages", "status": "warn", "found": "none", "fix": "sudo reserve"},
            {"check": "state", "status": "fail", "found": "no \"place\"", "fix": "set it"},
        ]);
        assert_eq!(json, wanted);
    }

    #[test]
    fn colours_are_for_terminals_that_have_them_and_users_who_want_them() {
        let wants = |set: &[(&str, &str)]| {
            wants_colour(|name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
            })
        };
        assert!(wants(&[("TERM", "xterm")]));
        assert!(wants(&[("TERM", "xterm"), ("NO_COLOR", "")]));
        assert!(!wants(&[("TERM", "xterm"), ("NO_COLOR", "1")]));
        assert!(!wants(&[("TERM", "dumb")]));
        assert!(!wants(&[]));
    }
}
