//! The processes that the one which runs all tests splits off, and how it hears them: [run] of a test, [making](make) what tests start from.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd as _, RawFd};
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, setpgid, waitpid};

use super::event::Event;
use super::folder::Folder;
use super::grounds::Grounds;
use super::outcome::Verdict;
use super::report::Ran;
use super::signals::Signals;
use super::worker::{self, Job};
use crate::held::Dir;
use crate::launch::close_others;

/// A process that was split off.
pub struct Child {
    pid: Pid,
    /// It leads a group of its own.
    leads: bool,
    /// What it tells.
    pub events: PipeReader,
    /// What it and whom it started have to say to people.
    pub said: Option<PipeReader>,
}

impl Child {
    /// End it. The VM that it has started ends with it.
    pub fn end(&self, signal: Signal) {
        // It is a child of this process that has not been waited for.
        let _ = match self.leads {
            // Programs that it has started take away what is half done, as they do when somebody presses Ctrl-C.
            true => kill_process_group(self.pid, signal),
            false => kill_process(self.pid, Signal::KILL),
        };
    }

    /// Wait until it is gone. Says which signal killed it, if one did.
    pub fn wait(&self) -> Option<i32> {
        let waited = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
        waited.ok().flatten().and_then(|(_, status)| status.terminating_signal())
    }
}

/// Split off a process that does `job`, and writes to `dir` beneath `output`.
pub fn run(job: &Job, output: &Dir, dir: &Path) -> Result<Child> {
    let (events, mut tell) = io::pipe().context(FAILED)?;
    let pid = split_off(vec![tell.as_raw_fd(), output.as_raw_fd()], || {
        let ran = in_child(job, output, dir, &mut tell);
        let _ = Event::Ended(Box::new(ran)).write(&mut tell);
    })?;
    Ok(Child { pid, leads: false, events, said: None })
}

/// Split off a process that makes the ground of this number.
pub fn make(grounds: &Grounds<'_>, at: usize, signals: &Signals) -> Result<Child> {
    let ((events, mut tell), (said, say)) = (io::pipe().context(FAILED)?, io::pipe().context(FAILED)?);
    let pid = split_off(vec![tell.as_raw_fd(), say.as_raw_fd(), grounds.output().as_raw_fd()], || {
        let made = setpgid(None, None)
            .context("cannot lead a process group")
            .and_then(|()| redirect(&say))
            .map_err(|error| format!("{error:#}"));
        signals.leave();
        let made = made.and_then(|()| grounds.make(at));
        let _ = Event::Made(made.err()).write(&mut tell);
    })?;
    // All of it is read, and no end is waited for, which others may put off.
    rustix::io::ioctl_fionbio(&said, true).context(FAILED)?;
    // Whichever of the two is first; it has done it if it has ended already.
    let _ = setpgid(Some(pid), Some(pid));
    Ok(Child { pid, leads: true, events, said: Some(said) })
}

const FAILED: &str = "cannot start a process";

/// Split off a process that does `work`, with `keep` of what this one has open. It ends when this one does.
fn split_off(keep: Vec<RawFd>, work: impl FnOnce()) -> Result<Pid> {
    let parent = rustix::process::getpid();
    // SAFETY: this process has one thread, so the child finds every lock free and all of memory in order.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("cannot start a process: see ulimit -u"),
        0 => {
            close_others(keep);
            // When the one who hears this is gone, nobody wants it.
            let dies = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            if dies.is_ok() && rustix::process::getppid() == Some(parent) {
                work();
            }
            // What this process has inherited is its parent's to put away.
            std::process::exit(0)
        }
        pid => Pid::from_raw(pid).context(FAILED),
    }
}

/// The terminal is not this process's, and it is not for it to draw bars on it.
fn redirect(to: impl AsFd) -> Result<()> {
    let null = File::options().read(true).open("/dev/null").context("cannot open /dev/null")?;
    let led = rustix::stdio::dup2_stdin(&null).and_then(|()| rustix::stdio::dup2_stdout(&to));
    led.and_then(|()| rustix::stdio::dup2_stderr(&to)).context("cannot redirect the standard streams")
}

fn in_child(job: &Job, output: &Dir, dir: &Path, tell: &mut PipeWriter) -> Ran {
    let prepared = || -> Result<Folder> {
        let folder = Folder::make(output, dir)?;
        redirect(&folder.skiff_log()?)?;
        Ok(folder)
    };
    match prepared() {
        Ok(mut folder) => worker::work(job, &mut folder, tell),
        Err(error) => Ran::without(Verdict::Error, format!("{error:#}")),
    }
}
