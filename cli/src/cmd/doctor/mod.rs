//! `skiff doctor`: what this host has and lacks for VMs.
//!
//! `probe` asks the host and gives plain facts, `checks` makes a [`Finding`] of each, as values, and `show` prints them.

use std::io::IsTerminal as _;

use anyhow::Result;
use clap::ArgMatches;
use serde::Serialize;

use super::{Verb, print};
use crate::exit::{FAILURE, SUCCESS};
use crate::flags::{self, Example, Flag, Takes};

mod checks;
mod probe;
mod show;

pub const VERB: Verb = Verb {
    name: "doctor",
    about: "Say what this host has and lacks for VMs",
    long: "Say what this host has and lacks for VMs, with a line on how to get what it lacks. What is marked fail keeps VMs from \
           running; what is marked warn, only some of what skiff can do. Nothing on the host is changed.",
    after: || EXIT_CODES.to_owned(),
    flags: || flags::describe(FLAGS),
    operands: &[],
    run,
};

const EXIT_CODES: &str = "\
Exit codes:
  0  VMs can run here
  1  they cannot: something is marked fail";

#[derive(Default)]
struct Asked {
    json: bool,
}

const FLAGS: &[Flag<Asked>] = &[JSON];

const JSON: Flag<Asked> = Flag {
    name: "json",
    short: None,
    takes: Takes::Nothing,
    help: "Print JSON",
    long: "An array of objects with check, status (ok, warn or fail), found, and fix, which is null if nothing is to be done.",
    example: Example { args: &["--json"], toml: "" },
    apply: |asked, _| {
        asked.json = true;
        Ok(())
    },
};

/// How it stands with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// VMs run, but something that skiff can do will not work, or not well.
    Warn,
    /// No VM can run.
    Fail,
}

/// One thing of the host that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    found: String,
    /// One line; `None` if nothing is to be done.
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, found: found.into(), fix: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, status: Status::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Fail, ..Self::warn(check, found, fix) }
    }
}

fn run(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let findings = checks::all(&probe::host());
    let text = if asked.json {
        show::json(&findings)?
    } else if std::io::stdout().is_terminal() {
        show::table(&findings, show::wants_colour(|name| std::env::var_os(name)))
    } else {
        show::plain(&findings)
    };
    print(text)?;
    let fails = findings.iter().any(|finding| finding.status == Status::Fail);
    Ok(if fails { FAILURE } else { SUCCESS })
}
