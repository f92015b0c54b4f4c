//! One run of one test: the process that does it.
//!
//! ```text
//! clone of the warm snapshot ─► command ─► failed? snapshot at that instant ─► artifacts, console ─► VM ended ─► result
//! ```
//! It is a process of its own, since a VM can be split off only by a process that has one thread; so is its end, however it comes, the VM's
//! end. The main thread does all of it; `output` hears the command.

use std::fs::File;
use std::io::{PipeWriter, Read, Seek as _, SeekFrom};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use ::agent::message::{Ended, Exec, Request};
use anyhow::{Context as _, Result};
use images::file::plan;
use vmm::agent::client::{AgentError, Said, Talk};
use vmm::api::types::Ended as VmEnded;
use vmm::control::Outcome;
use vmm::snapshot::Id;
use vmm::spec::VmSpec;

use super::event::{Cutter, Event, Phase};
use super::folder::Folder;
use super::keep::{self, Of};
use super::outcome::{Came, Verdict, VmEnd, code, find_oom, judge};
use super::report::Ran;
use crate::cmd::image::file::guest::{Guest, Outcome as Did};
use crate::store::Store;
use crate::transfer::{self, Landing};
use crate::{exit, guest};

/// How long a VM whose agent is lost may take to tell that it has ended.
const END: Duration = Duration::from_secs(5);
/// How long the guest's kernel may take to tell of want of memory.
const KERNEL_LOG: u64 = 20;
/// How much of a kernel's log is looked through, in bytes.
const LOG_END: u64 = 256 << 10;
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
    Guest::start_as(&job.store, job.vm.clone(), &job.spec, Some(job.from)).context("the guest does not start")
}

fn in_guest(job: &Job, guest: &Guest, folder: &mut Folder, tell: &mut PipeWriter) -> Ran {
    // It goes with a VM that ends, and can still be read then.
    let console = File::open(guest.console());
    let begin = Instant::now();
    let came = command(job, guest, folder, tell).unwrap_or_else(|error| Came::Error(format!("{error:#}")));
    let duration_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let vm = match &came {
        Came::Lost(_) => guest.ended(END).map(vm_end),
        _ => None,
    };
    let mut ran = Ran { code: code(&came), duration_ms, ..Ran::without(Verdict::Passed, "") };
    let stands = vm.is_none();
    let failed = came != Came::Exited(0);
    let kept = match (&job.keep, failed && !matches!(came, Came::Error(_)), stands) {
        (Some(of), true, true) => {
            // Whoever listens will hear of its end as well.
            let _ = Event::Phase(Phase::Keep).write(tell);
            keep::keep(&job.store, guest, of, "what skiff test has kept").map(Some)
        }
        _ => Ok(None),
    };
    let log = console.as_ref().map(last_of).unwrap_or_default();
    let hears = stands && !matches!(came, Came::Lost(_));
    let oom = if failed { oom_line(job, guest, &log, hears) } else { None };
    let vm = vm.or_else(|| hung_in_panic(&came, &log));
    (ran.verdict, ran.reason) = judge(&came, vm.as_ref(), oom.as_deref());
    match kept {
        Ok(kept) => ran.kept = kept,
        Err(error) => ran.notes.push(format!("the guest is not kept: {error:#}")),
    }
    if job.keep.is_some() && !stands && ran.verdict.is_failure() {
        ran.notes.push("no guest is kept, for its VM has ended: console.log has its last words".to_owned());
    }
    if hears && !job.artifacts.is_empty() {
        let _ = Event::Phase(Phase::Fetch).write(tell);
        fetch(job, folder, &mut ran);
    }
    if let Ok(mut console) = console
        && let Err(error) = console.rewind().and_then(|()| folder.console(console))
    {
        ran.notes.push(format!("the console's log cannot be kept: {error}"));
    }
    ran
}

/// Run the command to its end, or to the end of its time.
fn command(job: &Job, guest: &Guest, folder: &mut Folder, tell: &mut PipeWriter) -> Result<Came> {
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
    let (heard, mut cutter) = (listen(talk)?, Cutter::default());
    let end = job.timeout.map(|limit| (limit, Instant::now().checked_add(limit)));
    let came = loop {
        let next = match end {
            Some((limit, Some(end))) => {
                match heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
                    Err(RecvTimeoutError::Timeout) => break Came::TooLong(limit.as_secs()),
                    next => next.ok(),
                }
            }
            _ => heard.recv().ok(),
        };
        match next {
            Some(Heard::Bytes(bytes)) => {
                folder.output(&bytes).context("the output cannot be written")?;
                for line in cutter.take(&bytes) {
                    Event::Line(line).write(tell)?;
                }
            }
            Some(Heard::End(came)) => break came,
            None => break Came::Error("its listener is gone: this is a defect of skiff".to_owned()),
        }
    };
    if let Some(line) = cutter.end() {
        Event::Line(line).write(tell)?;
    }
    if !matches!(came, Came::TooLong(_)) {
        sender.close();
    } // Otherwise the command would end with its connection, and is to be kept as it hangs.
    Ok(came)
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
                Ok(Said::Ended(Ended::Failed(why))) => Heard::End(Came::Lost(why)),
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
        AgentError::NotExecutable(_) => Came::NotRunnable { code: exit::NOT_EXECUTABLE, why },
        AgentError::Skew { .. } => Came::Error(why),
        AgentError::Nobody | AgentError::Silent | AgentError::Failed(_) | AgentError::Broken(_) => {
            Came::Lost(why)
        }
    }
}

fn vm_end(ended: VmEnded) -> VmEnd {
    match ended {
        VmEnded::Outcome(Outcome::Panicked { last_lines }) => VmEnd::Panicked(last_lines),
        VmEnded::Outcome(Outcome::PoweredOff) => VmEnd::PoweredOff,
        VmEnded::Outcome(Outcome::Killed) => VmEnd::Other("somebody killed it".to_owned()),
        VmEnded::Failed(why) => VmEnd::Other(why),
    }
}

/// A guest that says nothing since its kernel panicked, and whose VM does not know.
fn hung_in_panic(came: &Came, log: &str) -> Option<VmEnd> {
    let silent = matches!(came, Came::TooLong(_) | Came::Lost(_));
    let line =
        log.lines().rev().find(|line| line.contains("Kernel panic - not syncing")).filter(|_| silent)?;
    Some(VmEnd::Panicked(vec![line.to_owned()]))
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
    let most = usize::try_from(LOG_END).unwrap_or(usize::MAX);
    let outcome = guest.exec(&exec, &mut |bytes| {
        log.extend_from_slice(bytes);
        let surplus = log.len().saturating_sub(most);
        log.drain(..surplus);
    })?;
    anyhow::ensure!(outcome == Did::Exited(0), "the guest has no dmesg");
    Ok(String::from_utf8_lossy(&log).into_owned())
}

/// The end of the console's log.
fn last_of(mut console: &File) -> String {
    let mut read = || -> std::io::Result<Vec<u8>> {
        let len = console.metadata()?.len();
        console.seek(SeekFrom::Start(len.saturating_sub(LOG_END)))?;
        let mut bytes = Vec::new();
        console.take(LOG_END).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// Fetch what is to be fetched. What is not there is no failure.
fn fetch(job: &Job, folder: &Folder, ran: &mut Ran) {
    for path in &job.artifacts {
        match fetch_one(job, folder, path) {
            Ok(()) => ran.artifacts.push(path.clone()),
            Err(error) => ran.notes.push(format!("{path} cannot be fetched: {error:#}")),
        }
    }
}

fn fetch_one(job: &Job, folder: &Folder, path: &str) -> Result<()> {
    use ::agent::message::Looked;
    let guest = guest::Guest::find(&job.store, &job.vm, Some(END))?;
    let is_dir = match transfer::look(&guest, path)? {
        Looked::Directory => true,
        Looked::Nothing => anyhow::bail!("it is not there"),
        _ => false,
    };
    let name = path.trim_end_matches('/').rsplit('/').next().filter(|name| !matches!(*name, "" | "." | ".."));
    let to = folder.artifacts()?.join(name.unwrap_or("root"));
    // Two of the same name would be one.
    anyhow::ensure!(to.symlink_metadata().is_err(), "there is another artifact of that name");
    transfer::get(&guest, path, is_dir, false, &Landing::Named(to), false)
}
