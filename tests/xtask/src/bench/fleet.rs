//! Many VMs started at the same time, as a user's script would: one command a VM, all at once.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::table::{Line, Unit};
use super::{Bench, median};
use crate::progress::Step;
use crate::tool;

const VMS: usize = 20;
const ROUNDS: usize = 5;

/// From the first command to the moment at which the last of them has said that its VM runs.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let step = Step::start(format!("starting {VMS} VMs at once, {ROUNDS} times"));
    let state = bench.work.join("state");
    let skiff = || {
        let mut skiff = Command::new(&bench.skiff);
        skiff.env("XDG_STATE_HOME", &state).env("XDG_DATA_HOME", &state);
        skiff
    };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut children = Vec::new();
        for index in 0..VMS {
            let mut run = skiff();
            run.args(["run", "-d", "--name", &format!("bench{index}"), "--memory", "64M", "--kernel"]);
            run.arg(bench.guest("testguest")).args(["--cmdline", "test=idle"]);
            let child = run.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            children.push(child.context("cannot run skiff")?);
        }
        let mut all_run = true;
        for mut child in children {
            all_run &= child.wait().context("waiting for skiff")?.success();
        }
        times.push(start.elapsed());
        let names: Vec<String> = (0..VMS).map(|index| format!("bench{index}")).collect();
        let running = tool::capture(skiff().args(["ps", "-q"]))?.lines().count();
        tool::capture(skiff().args(["rm", "-f"]).args(&names))?;
        ensure!(all_run && running == VMS, "{running} of {VMS} VMs ran");
    }
    std::fs::remove_dir_all(&state).with_context(|| format!("cannot remove {}", state.display()))?;
    step.done();
    let millis: Vec<f64> = times.iter().map(Duration::as_secs_f64).map(|time| time * 1e3).collect();
    let line = Line::new("fleet", format!("{VMS} VMs started at once"), median(&millis), Unit::Milliseconds);
    let each = median(&millis) / VMS as f64;
    Ok(vec![line.peer("a VM", Some(each))])
}
