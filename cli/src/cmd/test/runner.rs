//! Runs all tests: a process for each guest, and one thread here that hears them all.
//!
//! ```text
//!  this process ──fork──► worker (one run) ──fork──► VM
//!       ▲  events by a pipe   │  the VM ends when its worker does
//!       └─────────────────────┘  the worker ends when this process does
//! ```
//! This process has one thread as long as guests are started, since forks want that. It is the reaper of what its workers leave: when it ends,
//! nothing of a VM is left. Ctrl-C ends the workers, and with them the VMs, a second one this process
//! as well.

use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use vmm::snapshot::Id;

use super::event::{Event, Lines};
use super::folder::{self, Folder};
use super::matrix::Case;
use super::outcome::Verdict;
use super::report::Ran;
use super::schedule::{Rules, Schedule, Turn};
use super::screen::Screen;
use super::worker::{self, Job};
use crate::launch::close_others;

/// How often live lines turn.
const TURN: Duration = Duration::from_millis(120);
/// How long VMs may take to end whose workers are gone.
const REAPING: Duration = Duration::from_secs(20);
/// What is read at once, in bytes.
const READ: usize = 64 << 10;
/// The signals that ask for an end.
const DEADLY: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// All runs of all tests, in the order in which they ended.
pub type Results = Vec<(Turn, PathBuf, Ran)>;

/// What is run.
pub struct Runner<'a> {
    pub cases: &'a [Case],
    pub rules: Rules,
    /// Where results go.
    pub output: &'a Path,
    /// What a run is to do, given the name of its VM; or why it cannot.
    pub job: &'a dyn Fn(&Case, String) -> Result<Job, String>,
    /// Called after each run, for what is not to grow.
    pub after: &'a dyn Fn(&Case, &Ran),
}

/// A run on its way.
struct Running {
    turn: Turn,
    dir: PathBuf,
    worker: Pid,
    events: PipeReader,
    lines: Lines,
    /// Its last word, if it has come.
    ran: Option<Ran>,
}

impl Runner<'_> {
    /// Run them all. Says what they came to, and by which signal somebody wanted no more.
    pub fn run(&self, screen: &mut Screen) -> Result<(Results, Option<u8>)> {
        let signals = Signals::take().context("cannot take signals")?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("cannot be the reaper of VMs")?;
        let mut all = All {
            runner: self,
            schedule: Schedule::new(self.cases.len(), self.rules),
            running: Vec::new(),
            results: Vec::new(),
            interrupted: None,
            stopped: false,
        };
        let done = all.until_done(&signals, screen);
        if done.is_err() {
            all.stop();
        }
        drop(all.running.drain(..));
        let end = Instant::now().checked_add(REAPING);
        reap_all(&signals, &mut all.interrupted, end);
        done.map(|()| (all.results, all.interrupted))
    }

    fn case(&self, turn: Turn) -> Result<&Case> {
        self.cases.get(turn.case).context("there is no such test: this is a defect of skiff")
    }
}

/// All runs on their way.
struct All<'a> {
    runner: &'a Runner<'a>,
    schedule: Schedule,
    running: Vec<Running>,
    results: Results,
    /// The signal by which somebody wanted no more.
    interrupted: Option<u8>,
    /// Those that ran were ended.
    stopped: bool,
}

impl All<'_> {
    fn until_done(&mut self, signals: &Signals, screen: &mut Screen) -> Result<()> {
        while !self.schedule.is_done() {
            while let Some(turn) = self.schedule.next() {
                self.start(turn, screen)?;
            }
            if self.running.is_empty() {
                continue;
            }
            let (signal, ready) = self.wait(signals, screen)?;
            screen.tick();
            if signal {
                self.signal(signals, screen)?;
            }
            // From the last to the first: those that end are taken out.
            for at in ready.into_iter().rev() {
                self.hear(at, screen)?;
            }
        }
        Ok(())
    }

    /// Start a run, or note why it cannot be.
    fn start(&mut self, turn: Turn, screen: &mut Screen) -> Result<()> {
        let case = self.runner.case(turn)?;
        let dir = folder::of_turn(self.runner.output, &case.slug, turn);
        let vm = format!("test-{}", Id::draw().context("cannot draw a name")?);
        let job = match (self.runner.job)(case, vm) {
            Ok(job) => job,
            Err(why) => {
                let ran = Ran::without(Verdict::Error, why);
                self.over(turn, dir, ran, screen)?;
                return Ok(());
            }
        };
        screen.begin(turn, &case.name);
        let (worker, events) = split_off(&job, &dir)?;
        self.running.push(Running { turn, dir, worker, events, lines: Lines::default(), ran: None });
        Ok(())
    }

    /// Wait until a signal has come, or runs have something to say: which.
    fn wait(&self, signals: &Signals, screen: &Screen) -> Result<(bool, Vec<usize>)> {
        let mut fds = vec![PollFd::new(&signals.file, PollFlags::IN)];
        fds.extend(self.running.iter().map(|running| PollFd::new(&running.events, PollFlags::IN)));
        let turn = if screen.is_live() { Timespec::try_from(TURN).ok() } else { None };
        match poll(&mut fds, turn.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for guests"),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let signal = ready.next().unwrap_or(false);
        Ok((signal, ready.enumerate().filter(|(_, ready)| *ready).map(|(at, _)| at).collect()))
    }

    /// The first asks for an end, the second does not wait for it.
    fn signal(&mut self, signals: &Signals, screen: &Screen) -> Result<()> {
        signals.next(&mut self.interrupted).context("cannot take signals")?;
        screen.say("skiff: no more tests are started, and those that run are ended; again to leave at once");
        self.stop();
        Ok(())
    }

    /// Start nothing more, and end what runs.
    fn stop(&mut self) {
        self.schedule.stop();
        self.stopped = true;
        for running in &self.running {
            // It is a child of this process that has not been waited for. Its VM ends with it.
            let _ = kill_process(running.worker, Signal::KILL);
        }
    }

    /// Hear what the run number `at` has to say.
    fn hear(&mut self, at: usize, screen: &mut Screen) -> Result<()> {
        let Some(running) = self.running.get_mut(at) else { return Ok(()) };
        let mut buffer = vec![0; READ];
        let len = match running.events.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            read => read.context("a run cannot be heard")?,
        };
        let case = self.runner.case(running.turn)?;
        for event in running.lines.take(buffer.get(..len).unwrap_or_default()) {
            match event {
                Event::Phase(phase) => screen.phase(running.turn, phase),
                Event::Line(line) => screen.line(running.turn, &case.name, &line),
                Event::Ended(ran) => running.ran = Some(*ran),
            }
        }
        if len > 0 {
            return Ok(());
        }
        let running = self.running.swap_remove(at);
        let (signal, turn) = (wait_for(running.worker), running.turn);
        let ran = running.ran.unwrap_or_else(|| match signal {
            _ if self.interrupted.is_some() => Ran::without(Verdict::NotRun, "interrupted"),
            Some(libc::SIGKILL) if self.stopped => {
                Ran::without(Verdict::NotRun, "ended after another failed")
            }
            Some(number) => {
                Ran::without(Verdict::Error, format!("its process was killed by signal {number}"))
            }
            None => Ran::without(Verdict::Error, "its process ended without a word"),
        });
        self.over(turn, running.dir, ran, screen)
    }

    /// A run has ended.
    fn over(&mut self, turn: Turn, dir: PathBuf, ran: Ran, screen: &mut Screen) -> Result<()> {
        let case = self.runner.case(turn)?;
        screen.end(turn, &case.name, &ran, &dir);
        (self.runner.after)(case, &ran);
        let stops = self.schedule.ended(turn, ran.verdict);
        self.results.push((turn, dir, ran));
        if stops {
            self.stop();
        }
        Ok(())
    }
}

/// Split off a process that does `job`.
fn split_off(job: &Job, dir: &Path) -> Result<(Pid, PipeReader)> {
    let failed = "cannot start a process";
    let (events, mut tell) = io::pipe().context(failed)?;
    let parent = rustix::process::getpid();
    // SAFETY: this process has one thread, so the child finds every lock free and all of memory in order.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("cannot start a process: see ulimit -u"),
        0 => {
            drop(events);
            close_others(vec![tell.as_raw_fd()]);
            // When the one who hears this is gone, nobody wants it.
            let dies = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            if dies.is_ok() && rustix::process::getppid() == Some(parent) {
                let ran = in_child(job, dir, &mut tell);
                let _ = Event::Ended(Box::new(ran)).write(&mut tell);
            }
            // What this process has inherited is its parent's to put away.
            std::process::exit(0)
        }
        pid => Ok((Pid::from_raw(pid).context(failed)?, events)),
    }
}

fn in_child(job: &Job, dir: &Path, tell: &mut std::io::PipeWriter) -> Ran {
    let prepared = || -> Result<Folder> {
        let folder = Folder::make(dir)?;
        let null = File::options().read(true).open("/dev/null").context("cannot open /dev/null")?;
        let log = folder.skiff_log()?;
        // The terminal is not this process's, and it is not for one run to draw bars on it.
        let led = rustix::stdio::dup2_stdin(&null).and_then(|()| rustix::stdio::dup2_stdout(&log));
        led.and_then(|()| rustix::stdio::dup2_stderr(&log))
            .context("cannot redirect the standard streams")?;
        Ok(folder)
    };
    match prepared() {
        Ok(mut folder) => worker::work(job, &mut folder, tell),
        Err(error) => Ran::without(Verdict::Error, format!("{error:#}")),
    }
}

/// Wait for a child. Says which signal killed it, if one did.
fn wait_for(child: Pid) -> Option<i32> {
    let waited = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    waited.ok().flatten().and_then(|(_, status)| status.terminating_signal())
}

/// Wait until no child is left: the VMs of workers that were killed, which end by themselves. No longer than to `end`.
fn reap_all(signals: &Signals, interrupted: &mut Option<u8>, end: Option<Instant>) {
    let mut nap = Duration::from_millis(1);
    loop {
        match waitpid(None, WaitOptions::NOHANG) {
            Err(rustix::io::Errno::INTR) | Ok(Some(_)) => {}
            Err(_) => return,
            Ok(None) if end.is_none_or(|end| Instant::now() >= end) => {
                crate::terminal::note("skiff: warning: a VM has not ended yet: skiff ps shows it");
                return;
            }
            Ok(None) => {
                // What cannot be waited for so is waited for in vain, no longer than the limit.
                if signals.come(nap) && signals.next(interrupted).is_err() {
                    return;
                }
                nap = (nap * 2).min(Duration::from_millis(50));
            }
        }
    }
}

/// The signals that ask for an end, as a file. When it goes, they do again what they did before.
struct Signals {
    file: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// From now on they come by this.
    fn take() -> Result<Self> {
        // SAFETY: an all-zero sigset_t is a valid object for sigemptyset to initialise.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a live sigset_t.
        unsafe { libc::sigemptyset(&raw mut set) };
        for signal in DEADLY {
            // SAFETY: `set` is initialised and `signal` is the number of a signal.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: an all-zero sigset_t is a valid object to be written to.
        let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: both are live sigset_t, and `set` is initialised.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before) };
        if blocked != 0 {
            bail!(io::Error::from_raw_os_error(blocked));
        }
        // SAFETY: `set` is initialised, and -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
        if fd < 0 {
            bail!(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(Self { file: unsafe { OwnedFd::from_raw_fd(fd) }, before })
    }

    /// Whether one comes within `limit`.
    fn come(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        let limit = Timespec::try_from(limit).unwrap_or_default();
        poll(&mut fds, Some(&limit)).is_ok_and(|count| count > 0)
    }

    /// Take the next that has come. The first is noted; at the second this process ends.
    fn next(&self, first: &mut Option<u8>) -> io::Result<()> {
        // signalfd(2): the number is the first field of 128 bytes.
        let mut info = [0_u8; 128];
        rustix::io::read(&self.file, &mut info)?;
        let number = info.first_chunk::<4>().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let number = u8::try_from(number).unwrap_or(libc::SIGTERM as u8);
        if first.is_some() {
            std::process::exit(crate::exit::SIGNAL.saturating_add(number).into());
        }
        *first = Some(number);
        Ok(())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: `before` is the mask that this thread had; nobody asks for the one that it has.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_signal_is_kept_and_the_mask_comes_back() {
        let mask = || {
            // SAFETY: an all-zero sigset_t is a valid object to be written to.
            let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
            // SAFETY: no mask is set, and `set` is a live sigset_t.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set) };
            // SAFETY: `set` was written to just now.
            unsafe { libc::sigismember(&raw const set, libc::SIGTERM) }
        };
        let before = mask();
        let signals = Signals::take().unwrap();
        assert_eq!(mask(), 1);
        // SAFETY: this thread lives, and has blocked the signal.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
        assert!(signals.come(Duration::from_secs(10)));
        let mut first = None;
        signals.next(&mut first).unwrap();
        assert_eq!(first, Some(15));
        drop(signals);
        assert_eq!(mask(), before);
    }
}
