//! What was measured: as a table for people, as JSON for programs.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::Serialize;

/// How a value is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    Milliseconds,
    Seconds,
    Mebibytes,
    /// Per second.
    Requests,
    MebibytesPerSecond,
    /// Of something else that was measured beside it.
    Ratio,
    Percent,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::Milliseconds => format!("{value:.2} ms"),
            Unit::Seconds => format!("{value:.2} s"),
            Unit::Mebibytes => format!("{value:.2} MiB"),
            Unit::Requests => format!("{value:.0}/s"),
            Unit::MebibytesPerSecond => format!("{value:.0} MiB/s"),
            Unit::Ratio => format!("{value:.2} ×"),
            Unit::Percent => format!("{value:.0} %"),
        }
    }
}

/// What a value must reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn met(self, value: f64) -> bool {
        match self {
            Target::AtMost(most) => value <= most,
            Target::AtLeast(least) => value >= least,
        }
    }
}

/// Somebody else's value for the same work.
#[derive(Clone, Debug, Serialize)]
struct Peer {
    name: String,
    /// `None` when it was found but could not do it.
    value: Option<f64>,
    unit: Unit,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    row: &'static str,
    name: String,
    value: f64,
    unit: Unit,
    target: Option<Target>,
    met: Option<bool>,
    peers: Vec<Peer>,
}

impl Line {
    pub fn new(row: &'static str, name: impl Into<String>, value: f64, unit: Unit) -> Line {
        Line { row, name: name.into(), value, unit, target: None, met: None, peers: Vec::new() }
    }

    /// Adds what must be reached.
    pub fn target(mut self, target: Target) -> Line {
        self.target = Some(target);
        self.met = Some(target.met(self.value));
        self
    }

    /// Adds another's value, in the line's unit.
    pub fn peer(self, name: impl Into<String>, value: Option<f64>) -> Line {
        let unit = self.unit;
        self.peer_in(name, value, unit)
    }

    /// Adds another's value.
    pub fn peer_in(mut self, name: impl Into<String>, value: Option<f64>, unit: Unit) -> Line {
        self.peers.push(Peer { name: name.into(), value, unit });
        self
    }

    fn cells(&self) -> [String; 5] {
        let target = match self.target {
            Some(Target::AtMost(most)) => format!("≤ {}", self.unit.show(most)),
            Some(Target::AtLeast(least)) => format!("≥ {}", self.unit.show(least)),
            None => String::new(),
        };
        let verdict = match self.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        let peers: Vec<String> = self.peers.iter().map(Peer::show).collect();
        [self.name.clone(), self.unit.show(self.value), target, verdict.into(), peers.join(", ")]
    }
}

impl Peer {
    fn show(&self) -> String {
        let value = self.value.map_or_else(|| "failed".into(), |value| self.unit.show(value));
        format!("{} {value}", self.name)
    }
}

/// A table in columns.
pub fn render(lines: &[Line]) -> String {
    let mut cells = vec![["", "measured", "target", "", "beside it"].map(String::from)];
    cells.extend(lines.iter().map(Line::cells));
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3].map(width);
    let mut text = String::new();
    for [name, measured, target, verdict, peers] in &cells {
        let [w0, w1, w2, w3] = widths;
        let line = format!("{name:<w0$}  {measured:>w1$}  {target:>w2$}  {verdict:<w3$}  {peers}");
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// A list of objects, one a line of the table.
///
/// # Errors
/// If a value is not a number.
pub fn to_json(lines: &[Line]) -> Result<String> {
    serde_json::to_string_pretty(lines).map(|text| text + "\n").context("cannot write the table as JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_whether_its_target_is_met() {
        let line = Line::new("size", "binary", 9.0, Unit::Mebibytes).target(Target::AtMost(8.0));
        let line = line.peer("other", None);
        assert_eq!(line.cells(), ["binary", "9.00 MiB", "≤ 8.00 MiB", "missed", "other failed"]);
        let json = to_json(&[line]).unwrap();
        assert!(json.contains("\"at-most\": 8.0") && json.contains("\"met\": false"), "{json}");
        let line = Line::new("disk", "read", 81.0, Unit::Percent).target(Target::AtLeast(80.0));
        assert_eq!(line.met, Some(true));
    }
}
