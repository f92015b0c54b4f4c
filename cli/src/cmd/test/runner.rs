//! Runs all tests: a process for each guest, and one thread here that hears them all.
//!
//! ```text
//!  this process ──fork──► worker (one run, or what tests start from) ──fork──► VM
//!       ▲  events by a pipe   │  the VM ends when its worker does
//!       └─────────────────────┘  the worker ends when this process does
//! ```
//! This process has one thread as long as guests are started, since forks want that. It is the reaper of what its workers leave: when it ends,
//! nothing of a VM is left. Ctrl-C ends the workers, and with them the VMs, a second one this process
//! as well.

use std::io::{ErrorKind, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitOptions, wait};
use vmm::snapshot::Id;

use super::child::{self, Child};
use super::event::{Cutter, Event, Lines};
use super::folder;
use super::grounds::Grounds;
use super::matrix::Case;
use super::outcome::Verdict;
use super::prepare::Ready;
use super::report::Ran;
use super::schedule::{Rules, Schedule, Task, Turn};
use super::screen::Screen;
use super::signals::Signals;
use super::worker::Job;
use crate::held::Dir;

/// How often live lines turn.
const TURN: Duration = Duration::from_millis(120);
/// How long VMs may take to end whose workers are gone.
const REAPING: Duration = Duration::from_secs(60);
/// What is read at once, in bytes.
const READ: usize = 64 << 10;

/// All runs of all tests, in the order in which they ended.
pub type Results = Vec<(Turn, PathBuf, Ran)>;

/// What is run.
pub struct Runner<'a> {
    pub cases: &'a [Case],
    pub rules: Rules,
    /// Where results go.
    pub output: &'a Dir,
    /// What a run is to do, given what it starts from and the name of its VM.
    pub job: &'a dyn Fn(&Case, &Ready, String) -> Job,
    /// Called after each run, for what is not to grow.
    pub after: &'a dyn Fn(&Case, &Ran),
    /// Called with the name of a guest that was about to be kept, but nobody is to know it.
    pub undo: &'a dyn Fn(&str),
}

/// Something on its way.
struct Running {
    task: Task,
    child: Child,
    events: Lines,
    /// What it says to people.
    said: Cutter,
    /// The name of the guest that it keeps, if it has come so far.
    keeps: Option<String>,
    /// Its last word, if it has come.
    last: Option<Last>,
}

/// The last word.
enum Last {
    Ran(Ran),
    Made(Result<(), String>),
}

/// Something that is to be read.
#[derive(Clone, Copy)]
enum Heard {
    /// What the process of this number tells.
    Events(usize),
    /// What it says to people.
    Said(usize),
}

impl Runner<'_> {
    /// Run them all. Says what they came to, and by which signal somebody wanted no more.
    pub fn run(&self, grounds: &mut Grounds<'_>, screen: &mut Screen) -> Result<(Results, Option<u8>)> {
        let signals = Signals::take().context("cannot take signals")?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("cannot be the reaper of VMs")?;
        let of = |case: &Case| grounds.of(case).unwrap_or(usize::MAX);
        let schedule = Schedule::new(self.cases.iter().map(of).collect(), grounds.states(), self.rules);
        let mut all = All {
            runner: self,
            grounds,
            schedule,
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

/// All that is on its way.
struct All<'a, 'g> {
    runner: &'a Runner<'a>,
    grounds: &'a mut Grounds<'g>,
    schedule: Schedule,
    running: Vec<Running>,
    results: Results,
    /// The signal by which somebody wanted no more.
    interrupted: Option<u8>,
    /// Those that ran were ended.
    stopped: bool,
}

impl All<'_, '_> {
    fn until_done(&mut self, signals: &Signals, screen: &mut Screen) -> Result<()> {
        while !self.schedule.is_done() {
            while let Some(task) = self.schedule.next() {
                match task {
                    Task::Make(at) => {
                        screen.begin(task, &self.grounds.called(at));
                        let child = child::make(self.grounds, at, signals)?;
                        self.begun(task, child);
                    }
                    Task::Run(turn) => self.start(turn, screen)?,
                }
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
            for heard in ready.into_iter().rev() {
                match heard {
                    Heard::Said(at) => self.listen(at, screen)?,
                    Heard::Events(at) => self.hear(at, screen)?,
                }
            }
        }
        Ok(())
    }

    fn begun(&mut self, task: Task, child: Child) {
        let (events, said) = (Lines::default(), Cutter::default());
        self.running.push(Running { task, child, events, said, keeps: None, last: None });
    }

    /// Start a run, or note why it cannot be.
    fn start(&mut self, turn: Turn, screen: &mut Screen) -> Result<()> {
        let case = self.runner.case(turn)?;
        let ready = match self.grounds.ready(case) {
            Ok(ready) => ready,
            Err(why) => {
                let ran = Ran::without(Verdict::Error, why);
                return self.over(turn, ran, screen);
            }
        };
        let vm = format!("test-{}", Id::draw().context("cannot draw a name")?);
        screen.begin(Task::Run(turn), &case.name);
        let child = child::run(&(self.runner.job)(case, ready, vm), self.runner.output, &self.dir(turn)?)?;
        self.begun(Task::Run(turn), child);
        Ok(())
    }

    /// Where the results of this run go.
    fn dir(&self, turn: Turn) -> Result<PathBuf> {
        Ok(folder::of_turn(self.runner.output.path(), &self.runner.case(turn)?.slug, turn))
    }

    /// Wait until a signal has come, or somebody has something to say: who. What is told comes before what is said, by each.
    fn wait(&self, signals: &Signals, screen: &Screen) -> Result<(bool, Vec<Heard>)> {
        let (mut who, mut fds) = (Vec::new(), vec![PollFd::new(&signals.file, PollFlags::IN)]);
        for (at, running) in self.running.iter().enumerate() {
            let said =
                running.child.said.iter().map(|said| (Heard::Said(at), PollFd::new(said, PollFlags::IN)));
            let events = (Heard::Events(at), PollFd::new(&running.child.events, PollFlags::IN));
            for (heard, fd) in [events].into_iter().chain(said) {
                who.push(heard);
                fds.push(fd);
            }
        }
        let turn = if screen.is_live() { Timespec::try_from(TURN).ok() } else { None };
        match poll(&mut fds, turn.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for guests"),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let signal = ready.next().unwrap_or(false);
        Ok((signal, who.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(who, _)| who).collect()))
    }

    /// The first asks for an end, the second does not wait for it.
    fn signal(&mut self, signals: &Signals, screen: &Screen) -> Result<()> {
        let last = || screen.clear();
        signals.next(&mut self.interrupted, last).context("cannot take signals")?;
        screen.say("skiff: no more tests are started, and those that run are ended; again to leave at once");
        self.stop();
        Ok(())
    }

    /// Start nothing more, and end what runs.
    fn stop(&mut self) {
        self.schedule.stop();
        self.stopped = true;
        self.running.iter().for_each(|running| running.child.end(Signal::INT));
    }

    /// Show what the process number `at` says to people.
    fn listen(&mut self, at: usize, screen: &mut Screen) -> Result<()> {
        let Some(running) = self.running.get_mut(at) else { return Ok(()) };
        let (Some(said), Task::Make(ground)) = (&mut running.child.said, running.task) else { return Ok(()) };
        let called = self.grounds.called(ground);
        while let Some(bytes) = read(said)? {
            if bytes.is_empty() {
                running.child.said = None;
                break;
            }
            for line in running.said.take(&bytes) {
                screen.said(running.task, &called, &line);
            }
        }
        screen.begins(running.task, &running.said.begun());
        Ok(())
    }

    /// Hear what the process number `at` has to tell.
    fn hear(&mut self, at: usize, screen: &mut Screen) -> Result<()> {
        let Some(running) = self.running.get_mut(at) else { return Ok(()) };
        let bytes = read(&mut running.child.events)?.unwrap_or_default();
        for event in running.events.take(&bytes) {
            match (event, running.task) {
                (Event::Phase(phase), task) => screen.phase(task, phase),
                (Event::Line(line), Task::Run(turn)) => {
                    screen.line(turn, &self.runner.case(turn)?.name, &line);
                }
                (Event::Keeps(name), _) => running.keeps = Some(name),
                (Event::Made(why), _) => running.last = Some(Last::Made(why.map_or(Ok(()), Err))),
                (Event::Ended(ran), _) => running.last = Some(Last::Ran(*ran)),
                (Event::Line(_), Task::Make(_)) => {}
            }
        }
        if !bytes.is_empty() {
            return Ok(());
        }
        // All that it has said was said before. Its VM may live a moment longer, and is not waited for.
        self.listen(at, screen)?;
        let running = self.running.swap_remove(at);
        let signal = running.child.wait();
        match running.task {
            Task::Run(turn) => {
                let ran = self.ran(&running, signal);
                self.over(turn, ran, screen)
            }
            Task::Make(ground) => {
                self.made(ground, &running, signal, screen);
                Ok(())
            }
        }
    }

    /// What a run came to, whose process has ended so.
    fn ran(&self, running: &Running, signal: Option<i32>) -> Ran {
        if let Task::Run(turn) = running.task
            && let Ok(dir) = self.dir(turn)
        {
            folder::tidy(self.runner.output, &dir);
        }
        if let Some(Last::Ran(ran)) = &running.last {
            return ran.clone();
        }
        // What it has not come to tell of is not to be there.
        running.keeps.iter().for_each(|name| (self.runner.undo)(name));
        match signal {
            _ if self.interrupted.is_some() => Ran::without(Verdict::NotRun, "interrupted"),
            Some(libc::SIGKILL) if self.stopped => {
                Ran::without(Verdict::NotRun, "ended after another failed")
            }
            signal => Ran::without(Verdict::Error, without_a_word(signal)),
        }
    }

    /// The ground of this number was made, or not.
    fn made(&mut self, ground: usize, running: &Running, signal: Option<i32>, screen: &mut Screen) {
        let how = match &running.last {
            Some(Last::Made(how)) => how.clone(),
            _ if self.stopped => Err("interrupted".to_owned()),
            _ => Err(without_a_word(signal)),
        };
        let failed = how.is_err() && !self.stopped;
        screen.made(running.task, &self.grounds.called(ground), failed);
        if let Some(why) = self.grounds.made(ground, how).map(str::to_owned)
            && !self.stopped
        {
            let called = self.grounds.called(ground);
            why.lines().for_each(|line| screen.say(&format!("[{called}] {line}")));
        }
        self.schedule.made(ground);
    }

    /// A run has ended.
    fn over(&mut self, turn: Turn, ran: Ran, screen: &mut Screen) -> Result<()> {
        let (case, dir) = (self.runner.case(turn)?, self.dir(turn)?);
        let log = || self.runner.output.file(&dir.join(folder::OUTPUT_LOG));
        screen.end(turn, &case.name, &ran, log);
        (self.runner.after)(case, &ran);
        if ran.verdict == Verdict::Error
            && let Err(error) = folder::write_result(self.runner.output, &dir, &ran)
        {
            screen.say(&format!("skiff: warning: {error:#}"));
        }
        let stops = self.schedule.ended(turn, ran.verdict);
        self.results.push((turn, dir, ran));
        if stops {
            self.stop();
        }
        Ok(())
    }
}

/// What has come, no bytes at the end; or nothing now.
fn read(from: &mut impl Read) -> Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; READ];
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            len => {
                buffer.truncate(len.context("a process cannot be heard")?);
                return Ok(Some(buffer));
            }
        }
    }
}

/// How a process ended that did not say.
fn without_a_word(signal: Option<i32>) -> String {
    match signal {
        Some(number) => format!("its process was killed by signal {number}"),
        None => "its process ended without a word".to_owned(),
    }
}

/// Wait until no child is left: the VMs of workers that were killed, which end by themselves. No longer than to `end`.
fn reap_all(signals: &Signals, interrupted: &mut Option<u8>, end: Option<Instant>) {
    let mut nap = Duration::from_millis(1);
    loop {
        // Of whatever process group: VMs lead their own.
        match wait(WaitOptions::NOHANG) {
            Err(rustix::io::Errno::INTR) | Ok(Some(_)) => {}
            Err(_) => return,
            Ok(None) if end.is_none_or(|end| Instant::now() >= end) => {
                crate::terminal::note("skiff: warning: a VM has not ended yet: skiff ps shows it");
                return;
            }
            Ok(None) => {
                // What cannot be waited for so is waited for in vain, no longer than the limit.
                if signals.come(nap) && signals.next(interrupted, || ()).is_err() {
                    return;
                }
                nap = (nap * 2).min(Duration::from_millis(50));
            }
        }
    }
}
