//! [`Link`]: the host's end of the connection that the agent keeps, and the `agent` thread that looks after it.
//!
//! ```text
//!   accepted ──Hello──► greeted (Welcome sent) ──Ready──► ready ──► end, reset, or a newer one that says Hello
//! ```
//! Any program of the guest can connect here. There are two connections at most: the one in use, and the newest of those that have not
//! said who they are. Connections are accepted at a bounded rate, a link says a bounded number of bounded frames, and what is sent
//! to a guest that does not read ends its link: nothing here waits for a guest.

use std::io::{self, ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use ::agent::frame::Frame;
use ::agent::message::{Ask, Finished, Hello, Mount, Ready, Welcome};
use devices::virtio::vsock::VsockListener;
use devices::worker::named_thread;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde::Serialize;

use super::readiness::{Agent, Readiness};
use crate::notice::Notice;

/// The longest that a link says before it is whole, in bytes: far more than a hello.
const MAX_SAID: usize = 8 * 1024;
/// The most frames of one link.
const MAX_FRAMES: u32 = 16;
/// How many connections are accepted at once after a pause.
const BURST: u32 = 16;
/// How long until one more is.
const PERIOD: Duration = Duration::from_millis(100);
/// How long `agent` rests when the host is out of something.
const REST: Duration = Duration::from_millis(100);

/// Who the guest is.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The VM's life, which a clone does not share.
    pub(crate) vm: String,
    /// The VM's name.
    pub(crate) hostname: String,
    /// Of eth0, eth1, …
    pub(crate) macs: Vec<String>,
    /// The host's folders that it is to mount.
    pub(crate) mounts: Vec<Mount>,
}

/// The link, to its end. Dropping it ends the thread.
pub(crate) struct Link {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    readiness: Arc<Readiness>,
    wake: OwnedFd,
    power_off: AtomicBool,
    end: AtomicBool,
    listener: Arc<dyn Fn(Notice) + Send + Sync>,
}

impl Link {
    /// Welcome whoever connects to `socket`. `listener` is told when the agent takes requests, and when no more.
    ///
    /// # Errors
    /// If the host has no more threads or descriptors.
    pub(crate) fn start(
        socket: VsockListener,
        identity: Identity,
        readiness: Arc<Readiness>,
        listener: Arc<dyn Fn(Notice) + Send + Sync>,
    ) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (power_off, end) = Default::default();
        let shared = Arc::new(Shared { readiness, wake, power_off, end, listener });
        let keeper = Keeper { shared: Arc::clone(&shared), identity, candidate: None, current: None };
        let thread = named_thread("agent").spawn(move || keeper.run(&socket))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The guest is another one from now on: the one before has no devices any more.
    pub(crate) fn reset(&self) {
        if self.shared.readiness.next_epoch() {
            (self.shared.listener)(Notice::NotReady);
        }
        self.shared.wake();
    }

    /// The exit code of the command after which the guest switches itself off, if it has ended.
    pub(crate) fn finished(&self) -> Option<u8> {
        self.shared.readiness.finished()
    }

    /// Ask an agent that is the guest's init to switch it off. Others hear of the power button by their kernel.
    pub(crate) fn power_off(&self) {
        self.shared.power_off.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wake(&self) {
        // Fails only with the counter at its maximum, when the thread is about to wake anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// What the `agent` thread owns.
struct Keeper {
    shared: Arc<Shared>,
    identity: Identity,
    /// It has not said hello.
    candidate: Option<Talk>,
    /// It has.
    current: Option<Talk>,
}

impl Keeper {
    fn run(mut self, socket: &VsockListener) {
        let mut rate = Rate::new();
        while !self.shared.end.load(Ordering::SeqCst) {
            let wait = rate.wait();
            if let Err(error) = self.poll(socket, wait) {
                log::warn!("the agent's link rests: {error}");
                std::thread::sleep(REST);
            }
            if wait.is_none() {
                self.accept(socket, &mut rate);
            }
            self.drop_old();
            self.serve_candidate();
            self.serve_current();
            if self.shared.power_off.swap(false, Ordering::SeqCst) {
                self.ask_power_off();
            }
        }
    }

    /// Wait until there is something to do: new connections count only when none is put off, which ends after `wait`.
    fn poll(&self, socket: &VsockListener, wait: Option<Duration>) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        if wait.is_none() {
            fds.push(PollFd::new(socket, PollFlags::IN));
        }
        let talks = self.candidate.iter().chain(&self.current);
        fds.extend(talks.map(|talk| PollFd::new(&talk.stream, PollFlags::IN)));
        let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
        rustix::io::retry_on_intr(|| poll(&mut fds, wait.as_ref()))?;
        let mut count = [0; 8];
        // Fails if nobody has woken this thread.
        let _ = rustix::io::read(&self.shared.wake, &mut count);
        Ok(())
    }

    fn accept(&mut self, socket: &VsockListener, rate: &mut Rate) {
        // One at a time: what it says first may be what makes it stay.
        if let Ok(fd) = socket.accept() {
            rate.spend();
            self.candidate = Some(Talk::new(fd.into(), self.shared.readiness.epoch()));
        }
    }

    /// Connections of a guest that is gone.
    fn drop_old(&mut self) {
        let epoch = self.shared.readiness.epoch();
        self.candidate.take_if(|talk| talk.epoch != epoch);
        self.current.take_if(|talk| talk.epoch != epoch);
    }

    fn serve_candidate(&mut self) {
        let Some(mut talk) = self.candidate.take() else { return };
        match talk.next() {
            Ok(None) => self.candidate = Some(talk),
            Ok(Some(frame)) if frame.read_as::<Finished>().is_ok() => self.note_finished(&mut talk, &frame),
            Ok(Some(frame)) => match self.greet(&mut talk, &frame) {
                Ok(()) => self.current = Some(talk),
                Err(error) => log::info!("what connects as the guest's agent is none: {error}"),
            },
            Err(error) => log::debug!("a connection to the agent's port ended: {error}"),
        }
    }

    /// The command is done that the guest was for. The connection has nothing else to say.
    fn note_finished(&self, talk: &mut Talk, frame: &Frame) {
        let Ok(finished) = frame.read_as::<Finished>() else { return };
        self.shared.readiness.finish(talk.epoch, finished.finished);
        if let Err(error) = talk.send(&finished) {
            log::debug!("the agent left before it was answered: {error}");
        }
    }

    /// An agent says who it is: the one before it is gone.
    fn greet(&mut self, talk: &mut Talk, frame: &Frame) -> io::Result<()> {
        let hello: Hello = frame.read_as()?;
        talk.send(&self.identity.welcome()?)?;
        if let Some(before) = self.current.take() {
            self.lose(&before);
        }
        let version = hello.version.chars().filter(|c| !c.is_control()).take(64).collect();
        let agent = Agent { version, protocol: hello.protocol };
        if !agent.is_understood() {
            log::warn!("{}", agent.skew());
        }
        talk.is_init = hello.init;
        talk.agent = Some(agent.clone());
        self.shared.readiness.greeted(talk.epoch, agent);
        Ok(())
    }

    fn serve_current(&mut self) {
        let Some(mut talk) = self.current.take() else { return };
        loop {
            match talk.next() {
                Ok(None) => break self.current = Some(talk),
                Ok(Some(frame)) => self.hear(&talk, &frame),
                Err(error) => {
                    log::info!("the link to the guest's agent ended: {error}");
                    break self.lose(&talk);
                }
            }
        }
    }

    fn hear(&self, talk: &Talk, frame: &Frame) {
        let understood = talk.agent.as_ref().filter(|agent| agent.is_understood());
        let (Ok(ready), Some(agent)) = (frame.read_as::<Ready>(), understood) else { return };
        if let Some(why) = self.identity.lacks(&ready, agent) {
            log::error!("{why}");
            self.shared.readiness.failed(talk.epoch, why);
            return;
        }
        let again = self.shared.readiness.agent().is_some();
        if self.shared.readiness.ready(talk.epoch, agent.clone()) && !again {
            (self.shared.listener)(Notice::Ready { agent: agent.clone() });
        }
    }

    fn lose(&self, talk: &Talk) {
        if self.shared.readiness.lost(talk.epoch) {
            (self.shared.listener)(Notice::NotReady);
        }
    }

    fn ask_power_off(&mut self) {
        let Some(talk) = self.current.as_mut().filter(|talk| talk.is_init) else { return };
        if let Err(error) = talk.send(&Ask::PowerOff) {
            log::info!("the guest's agent cannot be asked to switch it off: {error}");
        }
    }
}

impl Identity {
    /// What `agent` was to mount and has not, if there is something.
    fn lacks(&self, ready: &Ready, agent: &Agent) -> Option<String> {
        if self.mounts.is_empty() {
            return None;
        }
        if let Some(why) = &ready.unmounted {
            let why: String = why.chars().filter(|c| !c.is_control()).take(512).collect();
            return Some(format!("the guest cannot mount a shared folder: {why}"));
        }
        (ready.mounts != Some(self.mounts.len())).then(|| {
            format!(
                "the agent in the guest is of skiff {} and mounts no shared folders: build its image again, or put the agent in that skiff agent FILE \
                 writes",
                agent.version
            )
        })
    }

    fn welcome(&self) -> io::Result<Welcome> {
        let mut seed = [0_u8; 64];
        rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty())?;
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Welcome {
            protocol: ::agent::PROTOCOL,
            version: ::agent::VERSION.to_owned(),
            identity: self.vm.clone(),
            hostname: self.hostname.clone(),
            macs: self.macs.clone(),
            mounts: self.mounts.clone(),
            seed: seed.iter().map(|byte| format!("{byte:02x}")).collect(),
            time_ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
        })
    }
}

/// One connection.
struct Talk {
    stream: UnixStream,
    /// The guest that it is of.
    epoch: u64,
    /// What it has said that is no whole frame yet.
    said: Vec<u8>,
    frames: u32,
    agent: Option<Agent>,
    is_init: bool,
}

impl Talk {
    /// Over a socket that does not block.
    fn new(stream: UnixStream, epoch: u64) -> Self {
        Self { stream, epoch, said: Vec::new(), frames: 0, agent: None, is_init: false }
    }

    /// The next frame, if one is there. An error is the connection's end.
    fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.whole()? {
                return Ok(Some(frame));
            }
            let mut chunk = [0; 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.said.extend_from_slice(chunk.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The first frame of what was said, if it is whole.
    fn whole(&mut self) -> io::Result<Option<Frame>> {
        let Some(len) = self.said.get(1..5).and_then(|len| len.try_into().ok()).map(u32::from_le_bytes)
        else {
            return Ok(None);
        };
        let len = usize::try_from(len).ok().and_then(|len| len.checked_add(5)).filter(|len| *len <= MAX_SAID);
        let too_much = |what| io::Error::new(ErrorKind::InvalidData, what);
        let len = len.ok_or_else(|| too_much("it says too much at once"))?;
        if self.said.len() < len {
            return Ok(None);
        }
        self.frames = self.frames.saturating_add(1);
        if self.frames > MAX_FRAMES {
            return Err(too_much("it says too much"));
        }
        let said: Vec<u8> = self.said.drain(..len).collect();
        Frame::read(&mut said.as_slice())
    }

    fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        Frame::message(message)?.write(&mut self.stream)
    }
}

/// How many connections may be accepted.
struct Rate {
    left: u32,
    counted: Instant,
}

impl Rate {
    fn new() -> Self {
        Self { left: BURST, counted: Instant::now() }
    }

    /// How long until one more may be; `None`: it may now.
    fn wait(&mut self) -> Option<Duration> {
        let periods = self.counted.elapsed().as_millis() / PERIOD.as_millis();
        if let Some(more) = u32::try_from(periods).ok().filter(|more| *more > 0) {
            self.left = self.left.saturating_add(more).min(BURST);
            self.counted = Instant::now();
        }
        (self.left == 0).then_some(PERIOD)
    }

    fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
