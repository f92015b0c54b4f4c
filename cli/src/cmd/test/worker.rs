//! One run of one test: the process that does it.
//!
//! ```text
//! clone of the warm snapshot ─► command ─► failed? snapshot at that instant ─► artifacts, console ─► VM ended ─► result
//! ```
//! It is a process of its own, since a VM can be split off only by a process that has one thread; so is its end, however it comes, the VM's
//! end. The main thread does all of it; `output` hears the command.

use std::ffi::OsStr;
use std::io::PipeWriter;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use ::agent::message::{Control, Ended, Exec, Looked, Request};
use anyhow::{Context as _, Result, bail, ensure};
use images::file::plan;
use vmm::agent::client::{AgentError, Said, Talk};
use vmm::api::types::Ended as VmEnded;
use vmm::control::Outcome;
use vmm::snapshot::Id;
use vmm::spec::VmSpec;

use super::console::Console;
use super::event::{Cutter, Event, Phase};
use super::folder::Folder;
use super::keep::{self, Of};
use super::outcome::{Came, PANICKED, Verdict, VmEnd, code, find_oom, judge};
use super::report::Ran;
use crate::cmd::image::file::guest::{Guest, Outcome as Did};
use crate::held::Dir;
use crate::store::Store;
use crate::transfer::{self, Landing};
use crate::{exit, guest};

/// How often the console is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a guest whose kernel has panicked may still go on.
const GRACE: Duration = Duration::from_secs(1);
/// How long a VM whose agent is lost may take to tell that it has ended.
const END: Duration = Duration::from_secs(5);
/// How long the guest's kernel may take to tell of want of memory.
const KERNEL_LOG: u64 = 20;
/// How long artifacts may take together.
const FETCH: Duration = Duration::from_secs(600);
/// How many bytes of data they may have together.
const MOST_FETCHED: u64 = 8 << 30;
/// How much of a kernel's log is looked through, in bytes.
const LOG_END: usize = 256 << 10;
/// How much output may wait to be written.
const WAITING: usize = 16;

/// What is to be run, and in what.
pub struct Job {
    /// Where VMs are.
    pub store: Store,
    /// What the VM is called.
    pub vm: String,
    /// What it is.
    pub spec: VmSpec,
    /// What it starts from.
    pub from: Id,
    /// How many lines its kernel had said of want of memory then.
    pub oom_lines: usize,
    /// The command.
    pub exec: plan::Exec,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// What is fetched: paths in the guest.
    pub artifacts: Vec<String>,
    /// Whose it is if it fails; it is not kept without.
    pub keep: Option<Of>,
}

/// Do it, and say what it came to. Whoever does not listen to `tell` any more is gone, and the run ends.
pub fn work(job: &Job, folder: &mut Folder, tell: &mut PipeWriter) -> Ran {
    let ran = start(job, tell).map(|guest| in_guest(job, &guest, folder, tell));
    let mut ran = ran.unwrap_or_else(|error| Ran::without(Verdict::Error, format!("{error:#}")));
    if folder.is_full() {
        ran.notes.push("it printed more than output.log takes".to_owned());
    }
    if let Err(error) = folder.end(&ran) {
        ran.notes.push(format!("{error:#}"));
    }
    ran
}

fn start(job: &Job, tell: &mut PipeWriter) -> Result<Guest> {
    Event::Phase(Phase::Start).write(tell)?;
    let guest = Guest::start_as(&job.store, job.vm.clone(), &job.spec, Some(job.from))
        .context("the guest does not start")?;
    if job.keep.is_some() {
        guest.stop_on_panic()?;
    }
    Ok(guest)
}

fn in_guest(job: &Job, guest: &Guest, folder: &mut Folder, tell: &mut PipeWriter) -> Ran {
    let mut console = Console::open(guest.console());
    let begin = Instant::now();
    let came = command(job, guest, folder, &mut console, tell);
    let came = came.unwrap_or_else(|error| Came::Error(format!("{error:#}")));
    let duration_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let lost = matches!(came, Came::Lost(_));
    let silent = lost || matches!(came, Came::TooLong(_));
    let stands = silent && guest.has_panicked();
    // One whose kernel has panicked would have ended before the line was read.
    let limit = if console.panic().is_some() { GRACE } else { END };
    let vm = if lost && !stands { guest.ended(limit).map(vm_end) } else { None };
    let mut ran = Ran { code: code(&came), duration_ms, ..Ran::without(Verdict::Passed, "") };
    console.look();
    let panic = match console.panic() {
        // It told its VM, and not its console.
        None if stands => Some(PANICKED.to_owned()),
        line => line.filter(|_| silent),
    };
    // First of all: it is to be as it was then.
    if came != Came::Exited(0) && !matches!(came, Came::Error(_)) {
        keep(job, guest, vm.is_none(), panic.as_deref(), &mut ran, tell);
    }
    let hears = vm.is_none() && !lost && panic.is_none();
    let oom = if came == Came::Exited(0) { None } else { oom_line(job, guest, &console.text(), hears) };
    let vm = vm.or_else(|| panic.map(|line| VmEnd::Panicked(vec![line])));
    let (verdict, why) = judge(&came, vm.as_ref(), oom.as_deref());
    ran.judged(verdict, &why);
    if hears && !job.artifacts.is_empty() {
        // Whoever does not listen any more will hear of its end as well.
        let _ = Event::Phase(Phase::Fetch).write(tell);
        fetch(job, folder, &mut ran);
    }
    console.look();
    if let Err(error) = folder.console_log().and_then(|log| console.write(log)) {
        ran.notes.push(format!("the console's log cannot be kept: {error}"));
    }
    ran
}

/// Keep the guest, if it is to be and still stands.
fn keep(job: &Job, guest: &Guest, stands: bool, panic: Option<&str>, ran: &mut Ran, tell: &mut PipeWriter) {
    let Some(of) = &job.keep else { return };
    if !stands {
        return ran
            .notes
            .push("no guest is kept, for its VM has ended: console.log has its last words".to_owned());
    }
    let _ = Event::Phase(Phase::Keep).write(tell);
    // Whoever hears it removes the guest if this process does not come to say what it is for.
    let begun = |name: &str| _ = Event::Keeps(name.to_owned()).write(tell);
    match keep::keep(&job.store, guest, of, panic, begun) {
        Ok(kept) => ran.kept = Some(kept),
        Err(error) => ran.notes.push(format!("the guest is not kept: {error:#}")),
    }
}

/// Run the command to its end, or to the end of its time.
fn command(
    job: &Job,
    guest: &Guest,
    folder: &mut Folder,
    console: &mut Console,
    tell: &mut PipeWriter,
) -> Result<Came> {
    Event::Phase(Phase::Run).write(tell)?;
    let request = Exec {
        argv: job.exec.argv.clone(),
        env: job.exec.env.clone(),
        user: job.exec.user.clone(),
        cwd: job.exec.cwd.clone(),
        ..Exec::default()
    };
    let talk = match guest.ask(&Request::Exec(request)) {
        Ok(talk) => talk,
        Err(error) => return Ok(no_talk(&error)),
    };
    let sender = talk.sender();
    let (heard, mut cutter, mut watch) = (listen(talk)?, Cutter::default(), Watch::new(job.timeout));
    let came = loop {
        match heard.recv_timeout(watch.rest()) {
            Ok(Heard::Bytes(bytes)) => {
                folder.output(&bytes).context("the output cannot be written")?;
                for line in cutter.take(&bytes) {
                    Event::Line(line).write(tell)?;
                }
            }
            Ok(Heard::End(came)) => break came,
            Err(RecvTimeoutError::Disconnected) => {
                break Came::Error("its listener is gone: this is a defect of skiff".to_owned());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(came) = watch.over(console, guest) {
            break came;
        }
    };
    if let Some(line) = cutter.end() {
        Event::Line(line).write(tell)?;
    }
    match came {
        // It is to be kept as it hangs, and would end with its connection.
        Came::TooLong(_) => _ = sender.control(Control::Release),
        _ => sender.close(),
    }
    Ok(came)
}

/// Looks at the time, and at the console.
struct Watch {
    /// How long the command may take, and when that is over.
    end: Option<(Duration, Instant)>,
    looked: Instant,
    /// When a panic was seen.
    panicked: Option<Instant>,
}

impl Watch {
    fn new(limit: Option<Duration>) -> Self {
        let now = Instant::now();
        let end = limit.and_then(|limit| Some((limit, now.checked_add(limit)?)));
        Self { end, looked: now, panicked: None }
    }

    /// How long to wait until the next look.
    fn rest(&self) -> Duration {
        let rest = self.end.map_or(LOOK, |(_, end)| end.saturating_duration_since(Instant::now()));
        rest.min(LOOK.saturating_sub(self.looked.elapsed()))
    }

    /// What it has come to, if nothing more is to be expected.
    fn over(&mut self, console: &mut Console, guest: &Guest) -> Option<Came> {
        let mut stands = false;
        if self.looked.elapsed() >= LOOK {
            console.look();
            if self.panicked.is_none() && console.panic().is_some() {
                self.panicked = Some(Instant::now());
            }
            stands = guest.has_panicked();
            self.looked = Instant::now();
        }
        // One that cannot tell its VM goes on.
        if stands || self.panicked.is_some_and(|since| since.elapsed() >= GRACE) {
            return Some(Came::Lost(PANICKED.to_owned()));
        }
        let (limit, end) = self.end?;
        (Instant::now() >= end).then_some(Came::TooLong(limit.as_secs()))
    }
}

/// What the `output` thread hears.
enum Heard {
    Bytes(Vec<u8>),
    End(Came),
}

/// Start the thread that hears the command to its end.
fn listen(mut talk: Talk) -> Result<Receiver<Heard>> {
    let (to, heard) = sync_channel(WAITING);
    let thread = vmm::named_thread("output").spawn(move || {
        loop {
            let heard = match talk.next() {
                Ok(Said::Output(bytes) | Said::Error(bytes)) => Heard::Bytes(bytes),
                Ok(Said::Ended(Ended::Exited(code))) => Heard::End(Came::Exited(code)),
                Ok(Said::Ended(Ended::Signaled(number))) => Heard::End(Came::Signaled(number)),
                Ok(Said::Ended(Ended::Failed(why))) => Heard::End(Came::Error(why)),
                Ok(Said::Message(_)) => continue,
                Err(error) => Heard::End(came_of(&error)),
            };
            let last = matches!(heard, Heard::End(_));
            // If nobody listens, its time is over.
            if to.send(heard).is_err() || last {
                break;
            }
        }
    });
    thread.context("cannot start a thread")?;
    Ok(heard)
}

fn no_talk(error: &anyhow::Error) -> Came {
    match error.downcast_ref::<AgentError>() {
        Some(error) => came_of(error),
        None => Came::Lost(format!("{error:#}")),
    }
}

fn came_of(error: &AgentError) -> Came {
    let why = error.to_string();
    match error {
        AgentError::NotFound(_) => Came::NotRunnable { code: exit::NOT_FOUND, why },
        // It answers, so it is not lost: the directory or the user is not there, or the guest has no room for a process.
        AgentError::NotExecutable(_) | AgentError::Failed(_) => {
            Came::NotRunnable { code: exit::NOT_EXECUTABLE, why }
        }
        AgentError::Skew { .. } => Came::Error(why),
        AgentError::Nobody | AgentError::Silent | AgentError::Broken(_) => Came::Lost(why),
    }
}

fn vm_end(ended: VmEnded) -> VmEnd {
    match ended {
        VmEnded::Outcome(Outcome::Panicked { last_lines }) => VmEnd::Panicked(last_lines),
        VmEnded::Outcome(Outcome::PoweredOff | Outcome::Finished { .. }) => VmEnd::PoweredOff,
        VmEnded::Outcome(Outcome::Killed) => VmEnd::Other("somebody killed it".to_owned()),
        VmEnded::Failed(why) => VmEnd::Other(why),
    }
}

/// What the kernel says of a process that it has killed for want of memory: on its console, or asked for.
fn oom_line(job: &Job, guest: &Guest, console: &str, hears: bool) -> Option<String> {
    // The console of a clone begins with the clone.
    if let Some(line) = find_oom(console, 0) {
        return Some(line.to_owned());
    }
    let log = if hears { kernel_log(guest).ok()? } else { return None };
    find_oom(&log, job.oom_lines).map(str::to_owned)
}

/// The end of the guest's kernel's log.
pub fn kernel_log(guest: &Guest) -> Result<String> {
    let argv = ["dmesg"].map(str::to_owned).to_vec();
    let exec =
        plan::Exec { argv, cwd: Some("/".to_owned()), timeout: Some(KERNEL_LOG), ..plan::Exec::default() };
    let mut log = Vec::new();
    let outcome = guest.exec(&exec, &mut |bytes| {
        log.extend_from_slice(bytes);
        let surplus = log.len().saturating_sub(LOG_END);
        log.drain(..surplus);
    })?;
    ensure!(outcome == Did::Exited(0), "the guest has no dmesg");
    Ok(String::from_utf8_lossy(&log).into_owned())
}

/// Fetch what is to be fetched. What is not there is no failure; a guest that sends without end is left after a time.
fn fetch(job: &Job, folder: &Folder, ran: &mut Ran) {
    let mut fetcher = match folder.artifacts() {
        Ok(to) => Fetcher { store: job.store.clone(), vm: job.vm.clone(), to, room: MOST_FETCHED },
        Err(error) => return ran.notes.push(format!("artifacts cannot be written: {error}")),
    };
    let (tell, told) = sync_channel(job.artifacts.len());
    let paths = job.artifacts.clone();
    let fetched = move || {
        for path in paths {
            let fetched = fetcher.fetch(&path);
            // If nobody listens, its time is over.
            if tell.send((path, fetched)).is_err() {
                break;
            }
        }
    };
    let (begin, thread) = (Instant::now(), vmm::named_thread("fetch").spawn(fetched));
    if let Err(error) = thread {
        return ran.notes.push(format!("artifacts cannot be fetched: {error}"));
    }
    loop {
        match told.recv_timeout(FETCH.saturating_sub(begin.elapsed())) {
            Ok((path, Ok(()))) => ran.artifacts.push(path),
            Ok((path, Err(error))) => ran.notes.push(format!("{path} cannot be fetched: {error:#}")),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                return ran.notes.push(format!("artifacts are not complete after {} s", FETCH.as_secs()));
            }
        }
    }
}

/// Fetches from a guest.
struct Fetcher {
    store: Store,
    vm: String,
    to: Dir,
    /// How many bytes may still come.
    room: u64,
}

impl Fetcher {
    fn fetch(&mut self, path: &str) -> Result<()> {
        let guest = guest::Guest::find(&self.store, &self.vm, Some(END))?;
        let is_dir = match transfer::look(&guest, path)? {
            Looked::Directory => true,
            Looked::Nothing => bail!("it is not there"),
            Looked::File { .. } => false,
        };
        let name = path.trim_end_matches('/').rsplit('/').next();
        let name = name.filter(|name| !matches!(*name, "" | "." | "..")).unwrap_or("root");
        // Two of the same name would be one.
        ensure!(!self.to.has(OsStr::new(name)), "there is another artifact of that name");
        let mut options = transfer::options(false);
        options.limits.bytes = self.room;
        // Of a link, what it leads to: on the host it would lead elsewhere.
        let landing = Landing::Named(self.to.below(Path::new("."))?, name.into());
        let bytes = transfer::get(&guest, path, is_dir, true, &landing, &options)?;
        self.room = self.room.saturating_sub(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_says_no_is_not_lost() {
        let broken = || AgentError::Broken(std::io::ErrorKind::BrokenPipe.into());
        for error in [AgentError::Nobody, AgentError::Silent, broken()] {
            assert!(matches!(came_of(&error), Came::Lost(_)), "{error}");
        }
        let no = || AgentError::Failed("there is no user 'x'".to_owned());
        let wanted = Came::NotRunnable { code: 126, why: "there is no user 'x'".to_owned() };
        assert_eq!((came_of(&no()), no_talk(&no().into())), (wanted.clone(), wanted));
        let missing = AgentError::NotFound("x: not found".to_owned());
        assert!(matches!(came_of(&missing), Came::NotRunnable { code: 127, .. }));
    }
}
