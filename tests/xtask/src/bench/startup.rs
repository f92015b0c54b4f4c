//! From a process's start to the first byte of its guest, as whoever started it sees it: on a pipe.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::peers::{Peer, Work};
use super::table::{Line, Target, Unit};
use super::{Bench, median};
use crate::progress::Step;

const ROUNDS: usize = 20;
const LIMIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// What the guest `hello` says.
const HELLO: u8 = b'H';

/// Somebody who starts a guest.
struct Starter {
    name: &'static str,
    command: Vec<OsString>,
    times: Vec<f64>,
    /// It cannot do it: it is left alone.
    failed: bool,
}

/// All take turns, each round beginning with the next of them, so that what else the machine does and what the one before
/// leaves behind meets all of them.
pub fn measure(bench: &Bench) -> Result<Vec<Line>> {
    let mut starters = starters(bench)?;
    let step = Step::start(format!("starting a guest {ROUNDS} times with each of {}", starters.len()));
    for round in 0..ROUNDS {
        step.detail(format!("{} of {ROUNDS}", round + 1));
        // Ours are the first two, and must not fail.
        let count = starters.len();
        for index in (0..count).map(|turn| (round + turn) % count) {
            let starter = &mut starters[index];
            if starter.failed {
                continue;
            }
            match start(&starter.command) {
                Ok(took) => starter.times.push(took.as_secs_f64() * 1e3),
                Err(error) if index < 2 => return Err(error.context(starter.name)),
                Err(_) => starter.failed = true,
            }
        }
    }
    step.done();
    let [skiff, bare, peers @ ..] = starters.as_slice() else { bail!("nobody starts a guest") };
    let (ours, base) = (median(&skiff.times), median(&bare.times));
    // Of each round, so that a slow moment of the machine is in both.
    let ratios: Vec<f64> = skiff.times.iter().zip(&bare.times).map(|(ours, base)| ours / base).collect();
    let name = "start → first serial byte, 128 MiB";
    let mut line = Line::new("startup", name, ours, Unit::Milliseconds).target(Target::AtMost(3.5));
    line = line.peer(bare.name, Some(base));
    for peer in peers {
        line = line.peer(peer.name, (!peer.failed).then(|| median(&peer.times)));
    }
    let ratio = Line::new("startup", "  of the bare KVM program's time", median(&ratios), Unit::Ratio);
    Ok(vec![line, ratio.target(Target::AtMost(1.6))])
}

fn starters(bench: &Bench) -> Result<Vec<Starter>> {
    let guest = bench.guest("hello");
    let starter = |name, command| Starter { name, command, times: Vec::new(), failed: false };
    let mut skiff: Vec<OsString> = vec![bench.skiff.clone().into(), "run".into(), "--kernel".into()];
    skiff.push(guest.clone().into());
    skiff.extend(["--memory", "128M", "--serial", "stdio", "--console", "null"].map(OsString::from));
    let bare = vec![bench.bare_kvm.clone().into(), guest.clone().into()];
    let mut list = vec![starter("skiff", skiff), starter("bare KVM", bare)];
    let work = Work { kernel: &guest, elf: &guest, initrd: None, cmdline: "", mebibytes: 128 };
    for peer in Peer::found() {
        list.push(starter(peer.name(), peer.command(&work, &bench.work)?));
    }
    Ok(list)
}

/// One start.
fn start(command: &[OsString]) -> Result<Duration> {
    let (program, rest) = command.split_first().context("there is no command")?;
    let mut command = Command::new(program);
    command.args(rest).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
    let said = first_byte(&mut child).map(|()| start.elapsed());
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().context("waiting for a guest's end")?;
    said.with_context(|| format!("{} showed nothing of its guest", program.display()))
}

fn first_byte(child: &mut Child) -> Result<()> {
    let pipe = child.stdout.take().context("there is no pipe")?;
    let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
    ensure!(poll(&mut fds, Some(&LIMIT))? == 1, "not within {} s", LIMIT.tv_sec);
    let mut byte = [0];
    ensure!(rustix::io::read(&pipe, &mut byte)? == 1 && byte == [HELLO], "it ended first");
    Ok(())
}
