//! A guest operating system as its user meets it: how long `skiff run debian:12 -- true` takes from nothing and from a warm image, what a
//! command in a VM that runs costs, and how fast files go in and out.
//!
//! All of it in one place, one after the other. In kvmbox, where the processor is emulated, no target applies: what `skiff --version` takes
//! there stands beside each time.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Bench;
use super::script::{self, Where};
use super::table::{Line, Target, Unit};
use crate::place::Place;
use crate::progress::Step;
use crate::{paths, tool};

/// The image.
const BASE: &str = "debian:12";
/// Starts of the warm image.
const STARTS: u32 = 5;
/// Commands in the VM, one after the other.
const COMMANDS: u32 = 20;
/// What is copied in and out, in MiB.
const COPIED: u32 = 64;

/// Runs, commands and copies.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let data = base(&bench.skiff, BASE)?;
    let place = Place::of_machine();
    let real = matches!(place, Place::Host(_));
    let step = Step::start(format!("{BASE}, cold and warm, {}", place.describe()));
    let output = script::run(Where::Anywhere, &script(&bench.skiff, &data, real))?;
    step.done();
    lines(&output, real)
}

/// The data directory of a user who has `image`; made first if need be.
pub fn base(skiff: &Path, image: &str) -> Result<PathBuf> {
    let data = paths::target()?.join("systems");
    let ask = |words: [&str; 3]| {
        let mut command = Command::new(skiff);
        command.args(words).env("XDG_DATA_HOME", &data).env("XDG_STATE_HOME", data.join("state"));
        tool::capture(&mut command)
    };
    if ask(["image", "inspect", image]).is_err() {
        let step = Step::start(format!("building {image}"));
        ask(["image", "build", image])?;
        step.done();
    }
    Ok(data)
}

/// Where a user's files are, for the shell: as they are, or in memory with the images below, since the box's files take no sockets. `unmount` is
/// for the end.
pub fn place(data: &Path, real: bool) -> String {
    let data = data.display();
    if real {
        return format!("export XDG_STATE_HOME='{data}/state' XDG_DATA_HOME='{data}'\nunmount() {{ :; }}\n");
    }
    format!(
        r#"export XDG_STATE_HOME=$place/state XDG_DATA_HOME=$place/data
mkdir -p $place/up $place/work $XDG_DATA_HOME
mount -t overlay overlay -o "lowerdir={data},upperdir=$place/up,workdir=$place/work" $XDG_DATA_HOME
unmount() {{ umount -l $XDG_DATA_HOME || true; }}
"#
    )
}

/// Prints `NAME: FROM TO COUNT` for each thing that is measured.
fn script(skiff: &Path, data: &Path, real: bool) -> String {
    let (skiff, user) = (skiff.display(), place(data, real));
    format!(
        r#"set -e
skiff='{skiff}'
place=$(mktemp -d -p /run skiff-bench.XXXXXX 2>/dev/null || mktemp -d)
{user}end() {{
    $skiff rm -f skiff-bench >/dev/null 2>&1 || true
    $skiff image rm -f skiff-bench >/dev/null 2>&1 || true
    unmount
    rm -rf $place
}}
trap end EXIT
{TIMED}timed version {STARTS} $skiff --version
timed cold 1 $skiff run --net none {BASE} -- true
printf 'base = "{BASE}"\nwarm = true\n' >$place/warm.toml
$skiff image build -q -f $place/warm.toml -t skiff-bench >/dev/null
timed warm {STARTS} $skiff run --net none skiff-bench -- true
$skiff run -d --net none --name skiff-bench skiff-bench >/dev/null
$skiff wait --ready skiff-bench >/dev/null
timed exec {COMMANDS} $skiff exec skiff-bench true
dd if=/dev/urandom of=$place/file bs=1M count={COPIED} 2>/dev/null
timed in 1 $skiff cp $place/file skiff-bench:/root/file
timed out 1 $skiff cp skiff-bench:/root/file $place/back
cmp $place/file $place/back
"#
    )
}

/// What the script has printed, as lines of the table; with targets on real hardware.
fn lines(output: &str, real: bool) -> Result<Vec<Line>> {
    let version = seconds(output, "version")?;
    let line = |name: &str, what: &str, most: Option<f64>| {
        let line = Line::new("guest", what, 1000.0 * seconds(output, name)?, Unit::Milliseconds);
        let line = match most.filter(|_| real) {
            Some(most) => line.target(Target::AtMost(most)),
            None => line,
        };
        anyhow::Ok(line.peer("skiff --version", Some(1000.0 * version)))
    };
    let copy = |name: &str, what: &str| {
        anyhow::Ok(Line::new(
            "guest",
            what,
            f64::from(COPIED) / seconds(output, name)?,
            Unit::MebibytesPerSecond,
        ))
    };
    Ok(vec![
        line("cold", "skiff run debian:12 -- true, cold", None)?,
        line("warm", "skiff run debian:12 -- true, warm", Some(300.0))?,
        line("exec", "skiff exec VM true", Some(5.0))?,
        copy("in", "skiff cp FILE VM:PATH")?,
        copy("out", "skiff cp VM:PATH FILE")?,
    ])
}

/// Defines `timed NAME COUNT CMD…` for the shell, which prints `NAME: FROM TO COUNT` for [`seconds`].
pub const TIMED: &str = r#"# The kernel's clock, in hundredths of a second: reading it starts no program.
timed() {
    name=$1 count=$2 done=0
    shift 2
    read -r from idle </proc/uptime
    while [ $done -lt $count ]; do "$@" >/dev/null; done=$((done + 1)); done
    read -r to idle </proc/uptime
    echo "$name: $from $to $count"
}
"#;

/// What one of `name` took, from the line `NAME: FROM TO COUNT` in seconds.
pub fn seconds(output: &str, name: &str) -> Result<f64> {
    let find = || {
        let rest = output.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))?;
        let numbers: Vec<f64> = rest.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [from, to, count] = numbers[..] else { return None };
        // The clock's own step, so that nothing takes no time.
        Some((to - from).max(0.01) / count)
    };
    find().with_context(|| format!("nothing was measured for {name}:\n{output}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "version: 10.00 10.50 5\nnoise\ncold: 1.5 61.5 1\r\nwarm: 0 1 5\nexec: 0.00 0.20 20\nin: 1 2 1\nout: 2 2 1\n";

    #[test]
    fn each_thing_has_its_line() {
        assert!((seconds(SAID, "cold").unwrap() - 60.0).abs() < 1e-9);
        assert!((seconds(SAID, "exec").unwrap() - 0.01).abs() < 1e-9);
        assert!((seconds(SAID, "out").unwrap() - 0.01).abs() < 1e-9);
        assert!(seconds(SAID, "nothing").is_err());
        assert_eq!(lines(SAID, true).unwrap().len(), 5);
    }
}
