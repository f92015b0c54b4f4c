//! `skiff events`: what happens to VMs, as it happens.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ArgMatches;

use super::Verb;
use crate::exit::SUCCESS;
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::store::events::{Event, FILE};
use crate::store::follow::Follower;
use crate::store::{Store, time};

/// How often the file is looked at.
const PERIOD: Duration = Duration::from_millis(100);
/// How often somebody must look whether a VM's process is still there.
const SETTLE: Duration = Duration::from_secs(1);

/// `skiff events`.
pub const VERB: Verb = Verb {
    name: "events",
    about: "Show what happens to VMs, as it happens",
    long: "Show what happens to VMs, as it happens: started, booted, paused, resumed, rebooted, snapshot, rolled-back, panicked, \
           stopped. All VMs, or those named.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[VMS],
    run: events,
};

const VMS: Operand = Operand {
    name: "VM",
    count: Count::Any,
    completes: Completes::Vms,
    help: "The VMs, by name [default: all]",
};

#[derive(Default)]
struct Asked {
    json: bool,
    since: Option<Since>,
    no_follow: bool,
}

enum Since {
    All,
    Ago(Duration),
}

const FLAGS: &[Flag<Asked>] = &[
    Flag::json("Print one JSON object a line", |asked, _| {
        asked.json = true;
        Ok(())
    }),
    Flag {
        name: "since",
        short: None,
        takes: Takes::Text("all|SPAN"),
        help: "Begin with what happened before, as far as it is kept: all, or in the last 30s, 5m, 2h, 1d",
        long: "",
        example: Example { args: &["--since", "5m"], toml: "" },
        apply: |asked, value| {
            let text = utf8(value)?;
            let span = || time::parse_span(text).map(Since::Ago);
            let since = if text == "all" { Some(Since::All) } else { span() };
            asked.since =
                Some(since.with_context(|| format!("'{text}' is no time: write all, or such as 5m"))?);
            Ok(())
        },
    },
    Flag {
        name: "no-follow",
        short: None,
        takes: Takes::Nothing,
        help: "End after what happened before; without --since, that is all",
        long: "",
        example: Example { args: &["--no-follow"], toml: "" },
        apply: |asked, _| {
            asked.no_follow = true;
            Ok(())
        },
    },
];

/// What is to be printed of the file.
struct Filter {
    vms: Vec<String>,
    /// RFC 3339 in UTC sorts as time does.
    from: String,
    json: bool,
    /// A line whose end has not come yet.
    rest: Vec<u8>,
}

fn events(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    // So that what ended without a word is in the file.
    let _ = store.all();
    let from = match &asked.since {
        Some(Since::Ago(span)) => {
            let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            time::rfc3339(time::now().saturating_sub(span))
        }
        _ => String::new(),
    };
    let mut filter = Filter { vms: VMS.given(matches), from, json: asked.json, rest: Vec::new() };
    let path = store.dir().join(FILE);
    let failed = || format!("cannot read {}", path.display());
    let mut follower = if asked.since.is_some() || asked.no_follow {
        let (past, follower) = Follower::from_start(&path).with_context(failed)?;
        if !filter.show(&past)? {
            return Ok(SUCCESS);
        }
        follower
    } else {
        Follower::from_end(&path).with_context(failed)?
    };
    let mut settled = Instant::now();
    loop {
        let more = follower.read().with_context(failed)?;
        if !filter.show(&more)? || (more.is_empty() && asked.no_follow) {
            return Ok(SUCCESS);
        }
        if more.is_empty() && !super::linger(PERIOD) {
            return Ok(SUCCESS);
        }
        if settled.elapsed() >= SETTLE {
            let _ = store.all();
            settled = Instant::now();
        }
    }
}

impl Filter {
    /// Print what is wanted of `bytes` and what was left before. Says whether somebody still reads it.
    fn show(&mut self, bytes: &[u8]) -> Result<bool> {
        self.rest.extend(bytes);
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at.saturating_add(1));
        let lines: Vec<u8> = self.rest.drain(..end).collect();
        let mut text = String::new();
        for line in lines.split(|byte| *byte == b'\n') {
            // A line that a newer skiff wrote, or a disk full cut short.
            let Ok(event) = serde_json::from_slice::<Event>(line) else { continue };
            if event.time < self.from || !(self.vms.is_empty() || self.vms.contains(&event.vm)) {
                continue;
            }
            text.push_str(&if self.json {
                String::from_utf8_lossy(line).into_owned()
            } else {
                people(&event)
            });
            text.push('\n');
        }
        super::print_more(&text)
    }
}

fn people(event: &Event) -> String {
    let mut text = format!("{}  {}  {}", event.time, event.vm, event.event);
    if let Some(snapshot) = &event.snapshot {
        text.push_str(&format!(" {snapshot}"));
    }
    if let Some(how) = &event.how {
        text.push_str(&format!(" ({how})"));
    }
    if let Some(error) = &event.error {
        text.push_str(&format!(": {error}"));
    }
    text
}
