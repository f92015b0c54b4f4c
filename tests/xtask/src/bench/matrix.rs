//! `skiff test`: `true` on three releases of Debian, when all that it starts from is there.
//!
//! The first run boots each of them and is not measured. In kvmbox, where the processor is emulated, no target applies: what `skiff --version`
//! takes there stands beside.

use std::path::Path;

use anyhow::Result;

use super::Bench;
use super::guest::{TIMED, base, place, seconds};
use super::script::{self, Where};
use super::table::{Line, Target, Unit};
use crate::place::Place;
use crate::progress::Step;

/// The images.
const IMAGES: [&str; 3] = ["debian:11", "debian:12", "debian:13"];
/// Runs that are measured.
const RUNS: u32 = 3;

/// A run that boots, and those behind it.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let [first, others @ ..] = IMAGES;
    let data = base(&bench.skiff, first)?;
    for image in others {
        base(&bench.skiff, image)?;
    }
    let machine = Place::of_machine();
    let real = matches!(machine, Place::Host(_));
    let step = Step::start(format!("a test on {}, {}", IMAGES.join(", "), machine.describe()));
    let output = script::run(Where::Anywhere, &script(&bench.skiff, &data, real))?;
    step.done();
    Ok(vec![line(&output, real)?])
}

fn script(skiff: &Path, data: &Path, real: bool) -> String {
    let (skiff, user, images) = (skiff.display(), place(data, real), IMAGES.join(","));
    format!(
        r#"set -e
skiff='{skiff}'
place=$(mktemp -d -p /run skiff-bench.XXXXXX 2>/dev/null || mktemp -d)
{user}end() {{
    unmount
    rm -rf $place
}}
trap end EXIT
cd $place
{TIMED}timed version {RUNS} $skiff --version
tests() {{ $skiff test --on {images} -- true 2>/dev/null; }}
tests
timed warm {RUNS} tests
"#
    )
}

/// What the script has printed, as a line of the table; with a target on real hardware.
fn line(output: &str, real: bool) -> Result<Line> {
    let line =
        Line::new("test", "skiff test, true on 3 systems, warm", seconds(output, "warm")?, Unit::Seconds);
    let line = if real { line.target(Target::AtMost(1.0)) } else { line };
    Ok(line.peer("skiff --version", Some(seconds(output, "version")?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_shell_has_measured_is_read() {
        assert!(line("version: 1.00 1.03 3\nwarm: 10.0 13.0 3\n", true).is_ok());
        assert!(line("version: 1.00 1.03 3\n", false).is_err());
    }
}
