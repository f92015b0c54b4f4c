//! [`Guest`]: a VM of this process for as long as it is needed, and what is done in it through its agent.
//!
//! The VM ends with this process, however that ends, and nothing of it stays: whoever wants something of it takes a snapshot, or
//! [its disk](Guest::hold_disk).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ::agent::frame::MAX_FRAME;
use ::agent::message::{Control, Ended, Exec, Looked, Request, Unpack};
use anyhow::{Context, Result, bail};
use images::file::plan;
use vmm::agent::client::{AgentError, Connection, Said, Sender, Talk};
use vmm::api::client::{ClientError, Frames, Waited};
use vmm::api::types::{Ended as VmEnded, Frame as ConsoleFrame};
use vmm::control::{RunState, VmAction, VmReply};
use vmm::snapshot::Id;
use vmm::spec::{VmSpec, VsockSpec};

use crate::cmd::snapshot::create;
use crate::launch::{Copy, Launch, Launched, Which};
use crate::logging::Logging;
use crate::store::Store;
use crate::store::entry::{CONSOLE_LOG, Entry};
use crate::transfer::LOOK;

/// How long a guest may take to be ready.
const READY: Duration = Duration::from_secs(300);
/// How long the agent may take to answer.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a guest may take to switch itself off.
const OFF: Duration = Duration::from_secs(120);
/// How many seconds what is skiff's own to do in a guest may take.
const MUST: u64 = 600;
/// How long a command may take to end that was killed.
const KILLED: Duration = Duration::from_secs(5);
/// How many lines of its console a guest that is not ready leaves.
const LAST_LINES: usize = 15;

/// See the module's documentation.
pub struct Guest {
    store: Store,
    entry: Entry,
    launched: Launched,
    gone: bool,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By itself.
    Exited(i32),
    /// By a signal.
    Signaled(i32),
    /// It took longer than it may.
    TimedOut(u64),
}

impl Guest {
    /// Boot `spec`, or start from the snapshot whose spec it is. It is ready when this returns. There must be no other threads.
    pub fn start(store: &Store, spec: &VmSpec, from: Option<Id>) -> Result<Self> {
        let name = format!("build-{}", Id::draw().context("cannot draw a name")?);
        Self::start_as(store, name, spec, from)
    }

    /// The same with a name that was chosen, of which there must be no VM.
    pub fn start_as(store: &Store, name: String, spec: &VmSpec, from: Option<Id>) -> Result<Self> {
        let which = Which::New {
            name: Some(name),
            spec: Box::new(spec.clone()),
            remove: true,
            ends_with_owner: true,
            has_agent: true,
            copy: from.map(|from| Copy { from, ports: Vec::new(), or_boot: false }),
            image: None,
        };
        let logging = Logging { verbose: 0, file: None, guest_on_stdout: false, detached: true };
        let mut launched = Launch { store: store.clone(), which, foreground: true, logging }.fork()?;
        let name = launched.started()?;
        let entry = store.find(&name).with_context(|| format!("{name} is gone"))?;
        let guest = Self { store: store.clone(), entry, launched, gone: false };
        guest.wait_ready()?;
        Ok(guest)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.entry.name()
    }

    fn wait_ready(&self) -> Result<()> {
        let why = match self.entry.client(Some(READY))?.wait_ready() {
            Ok(Waited::Ready(_)) => return Ok(()),
            Ok(Waited::Ended(ended)) => format!("the guest has ended before it was ready ({ended:?})"),
            Err(ClientError::Silent) => format!("the guest is not ready after {} s", READY.as_secs()),
            Err(error) => return Err(error.into()),
        };
        bail!("{why}; the last that it printed:\n{}", self.last_lines())
    }

    fn last_lines(&self) -> String {
        let text = std::fs::read(self.entry.file(CONSOLE_LOG)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(LAST_LINES).collect();
        let plain = |line: &&str| line.chars().filter(|letter| !letter.is_control()).collect::<String>();
        lines.iter().rev().map(plain).collect::<Vec<_>>().join("\n")
    }

    /// Where all that it prints on its console is.
    pub fn console(&self) -> PathBuf {
        self.entry.file(CONSOLE_LOG)
    }

    /// How it has ended, if that becomes known within `limit`. To be asked when it is not needed any more.
    pub fn ended(&self, limit: Duration) -> Option<VmEnded> {
        let stream = self.launched.stream.as_ref()?.try_clone().ok()?;
        let begin = Instant::now();
        // What cannot be waited for is not known.
        stream.set_read_timeout(Some(limit)).ok()?;
        let frames = Frames::new(stream).ok()?;
        while begin.elapsed() < limit {
            match frames.read() {
                Ok(Some(ConsoleFrame::Ended(ended))) => return Some(ended),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        }
        None
    }

    /// Ask its agent for something.
    pub fn ask(&self, request: &Request) -> Result<Talk> {
        let dir = File::open(self.entry.dir()).context("the VM is gone")?;
        // Any path fits this way into the 108 bytes that a socket's address has.
        let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), VsockSpec::OWN);
        let stream = UnixStream::connect(path).context("the VM's vsock socket cannot be reached")?;
        Ok(Connection::to_guest(stream, ANSWER)?.ask(request)?)
    }

    /// Run a command to its end. `heard` is given all that it prints.
    pub fn exec(&self, exec: &plan::Exec, heard: &mut dyn FnMut(&[u8])) -> Result<Outcome> {
        let request = Exec {
            argv: exec.argv.clone(),
            env: exec.env.clone(),
            user: exec.user.clone(),
            cwd: exec.cwd.clone(),
            ..Exec::default()
        };
        let mut talk = self.ask(&Request::Exec(request))?;
        let Some(limit) = exec.timeout else { return Ok(listen(&mut talk, heard)?) };
        let (sender, (done, ended)) = (talk.sender(), channel::<()>());
        std::thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let late = ended.recv_timeout(Duration::from_secs(limit)) == Err(RecvTimeoutError::Timeout);
                if late {
                    // It may have ended just now.
                    let _ = sender.control(Control::Signal(libc::SIGKILL));
                    // What it has started may hold its output, and a guest that hangs says nothing more.
                    if ended.recv_timeout(KILLED) == Err(RecvTimeoutError::Timeout) {
                        sender.close();
                    }
                }
                late
            });
            let outcome = listen(&mut talk, heard);
            drop(done);
            match watch.join() {
                Ok(true) => Ok(Outcome::TimedOut(limit)),
                _ => Ok(outcome?),
            }
        })
    }

    /// Run a command that is not to fail.
    pub fn must(&self, argv: &[&str]) -> Result<()> {
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let (cwd, timeout) = (Some("/".to_owned()), Some(MUST));
        let exec = plan::Exec { argv, cwd, timeout, ..plan::Exec::default() };
        let mut said = Vec::new();
        let outcome = self.exec(&exec, &mut |bytes| {
            let room = 4096_usize.saturating_sub(said.len()).min(bytes.len());
            said.extend_from_slice(bytes.get(..room).unwrap_or_default());
        })?;
        if outcome != Outcome::Exited(0) {
            let said: String = String::from_utf8_lossy(&said)
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            bail!("{} failed in the guest: {}", exec.argv.join(" "), said.trim());
        }
        Ok(())
    }

    /// What is at `path`.
    pub fn look(&self, path: &str) -> Result<Looked> {
        Ok(self.ask(&Request::Look { path: path.to_owned() })?.answer(LOOK)?.read_as()?)
    }

    /// Put the archive that `write` writes into the directory `dir`.
    pub fn unpack(
        &self,
        dir: &str,
        owner: Option<&str>,
        write: impl FnOnce(&mut dyn Write) -> Result<(), images::file::context::ContextError>,
    ) -> Result<()> {
        let unpack = Unpack { dir: dir.to_owned(), rename: None, owner: owner.map(str::to_owned) };
        let mut talk = self.ask(&Request::Unpack(unpack))?;
        let mut to = BufWriter::with_capacity(MAX_FRAME, Input(talk.sender()));
        let written = write(&mut to);
        let sent = to.flush().and_then(|()| talk.sender().input_end());
        if let Err(
            error @ (images::file::context::ContextError::Read { .. }
            | images::file::context::ContextError::Changed { .. }),
        ) = written
        {
            talk.sender().close();
            return Err(error.into());
        }
        // Why it takes no more stands in its last word.
        match talk.next() {
            Ok(Said::Ended(Ended::Exited(0))) => {}
            Ok(other) => bail!("the agent answers {other:?}: it is of another version of skiff"),
            Err(error) => return Err(error.into()),
        }
        written?;
        sent.context("the files cannot be sent to the guest")
    }

    /// Take a snapshot. Says its ID.
    pub fn snapshot(&self, name: &str, comment: &str) -> Result<Id> {
        Ok(create::take(&self.store, self.name(), Some(name.to_owned()), comment)?.id)
    }

    /// How much memory of the host it has, in bytes.
    pub fn resident(&self) -> Result<u64> {
        match self.entry.client(None)?.act(VmAction::Stats)? {
            VmReply::Stats(stats) => Ok(stats.memory.resident),
            other => bail!("{} answers {other:?}", self.name()),
        }
    }

    /// If its kernel panics, let it stand still where it is, instead of ending.
    pub fn stop_on_panic(&self) -> Result<()> {
        match self.entry.client(None)?.act(VmAction::StopOnPanic)? {
            VmReply::Done => Ok(()),
            other => bail!("{} answers {other:?}", self.name()),
        }
    }

    /// Whether it stands still since its kernel has panicked. One that cannot be asked does not.
    pub fn has_panicked(&self) -> bool {
        let state = self.entry.client(Some(ANSWER)).and_then(|mut client| Ok(client.act(VmAction::State)?));
        state.is_ok_and(|state| state == VmReply::State(RunState::Panicked))
    }

    /// Give what the VM writes to its disk a second name in `dir`, by which it outlives the VM.
    pub fn hold_disk(&self, dir: &Path) -> Result<PathBuf> {
        let record = self.store.record(&self.entry)?.context("the VM's disk has no layers")?;
        let top = record.disks.first().copied().flatten().context("the VM's disk has no layers")?;
        let (from, to) = (self.store.places().layer(top), dir.join("top.qcow2"));
        std::fs::hard_link(&from, &to)
            .with_context(|| format!("cannot link {} to {}", from.display(), to.display()))?;
        Ok(to)
    }

    /// Let the guest switch itself off. Says whether it did in time; if not, the VM is killed.
    pub fn power_off(mut self) -> Result<bool> {
        // The connection ends in any way when the guest does.
        if let Err(error) = self.ask(&Request::PowerOff) {
            log::info!("the agent is asked to switch the guest off: {error:#}");
        }
        let begin = Instant::now();
        let mut nap = Duration::from_millis(2);
        while self.entry.holder().is_ok_and(|holder| holder.is_some()) {
            if begin.elapsed() >= OFF {
                self.kill();
                return Ok(false);
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_millis(50));
        }
        self.launched.child.wait();
        self.gone = true;
        Ok(true)
    }

    fn kill(&mut self) {
        if !std::mem::replace(&mut self.gone, true) {
            // As when this process ends: the VM sees that nobody owns it.
            self.launched.stream.take();
            self.launched.child.signal(rustix::process::Signal::TERM);
            self.launched.child.wait();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Hear a command to its end.
fn listen(talk: &mut Talk, heard: &mut dyn FnMut(&[u8])) -> Result<Outcome, AgentError> {
    loop {
        match talk.next()? {
            Said::Output(bytes) | Said::Error(bytes) => heard(&bytes),
            Said::Ended(Ended::Exited(code)) => return Ok(Outcome::Exited(code)),
            Said::Ended(Ended::Signaled(number)) => return Ok(Outcome::Signaled(number)),
            Said::Ended(Ended::Failed(why)) => return Err(AgentError::Failed(why)),
            Said::Message(_) => {}
        }
    }
}

/// Writes what is put in.
struct Input(Sender);

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.input(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
