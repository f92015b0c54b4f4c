//! The way from a VM's name to the agent in its guest.
//!
//! The VM's process knows whether the agent takes requests, and is asked to say when it does; the requests go past it, over the VM's
//! vsock socket.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use agent::message::Request;
use anyhow::{Context as _, Result, bail};
use images::digest::Digest;
use images::manifest::Defaults;
use vmm::agent::Agent;
use vmm::agent::client::{AgentError, Connection, Talk};
use vmm::api::client::{ClientError, Waited};
use vmm::spec::VsockSpec;

use crate::cmd::many;
use crate::progress::Bar;
use crate::store::Store;
use crate::store::entry::{Entry, Look, Status};
use crate::store::state::End;

/// How long an agent that must come may take: as long as a slow guest boots.
pub const BOOT: Duration = Duration::from_secs(300);
/// How long one may take of which nobody knows whether there is one.
const GUESS: Duration = Duration::from_secs(3);
/// How long a guest may take for each step of a request.
const ANSWER: Duration = Duration::from_secs(60);
/// How long the process of a VM that has ended may take to go.
const ENDING: Duration = Duration::from_millis(500);
/// How often somebody who waits is shown that it goes on.
const TICK: Duration = Duration::from_millis(100);

/// A guest whose agent takes requests.
#[derive(Debug)]
pub struct Guest {
    store: Store,
    entry: Entry,
    /// The image that the VM is of.
    image: Option<Digest>,
    /// Of its socket; otherwise it is in the VM's directory.
    path: Option<PathBuf>,
}

impl Guest {
    /// That of the running VM `name`. If its agent takes no requests yet, it is waited for: for `limit`, or a time that depends on what is known of
    /// the guest.
    pub fn find(store: &Store, name: &str, limit: Option<Duration>) -> Result<Self> {
        let look = many::running(store, name)?;
        let Some(vsock) = look.spec.as_ref().and_then(|spec| spec.vsock.as_ref()) else {
            let image = look.state.as_ref().and_then(|state| state.image.as_ref());
            match image {
                Some(image) => bail!("{}", no_agent_in(&image.name, "answers")),
                None => bail!(
                    "{name} has no vsock, by which its agent would be reached: run it anew with --vsock auto; VMs of images have one"
                ),
            }
        };
        let path = vsock.path.clone();
        if look.status() == Status::Paused {
            bail!("{name} is paused: skiff resume {name} lets it go on");
        }
        if !look.is_ready() {
            wait(&look, limit)?;
        }
        let image = look.state.as_ref().and_then(|state| state.image.as_ref()).map(|image| image.id);
        Ok(Self { store: store.clone(), entry: look.entry, image, path })
    }

    /// What the VM's image says of commands in it. One that is gone says nothing.
    pub fn defaults(&self) -> Defaults {
        let image = self.image.and_then(|id| self.store.images().get(&id).ok());
        image.map(|image| image.defaults).unwrap_or_default()
    }

    /// Ask for something.
    ///
    /// # Errors
    /// [`AgentError`], with what to do about it.
    pub fn ask(&self, request: &Request) -> Result<Talk> {
        let name = self.entry.name();
        let stream = self.socket().with_context(|| format!("the vsock socket of {name} cannot be used"))?;
        let talk = Connection::to_guest(stream, ANSWER).and_then(|connection| connection.ask(request));
        talk.map_err(|error| match error {
            AgentError::Nobody => anyhow::anyhow!(no_agent(name)),
            error => error.into(),
        })
    }

    /// What is known of why a request broke off, in place of an `error` that only says so.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        if !matches!(error.downcast_ref(), Some(AgentError::Broken(_))) || !self.entry.wait_gone(Some(ENDING))
        {
            return error;
        }
        let name = self.entry.name();
        match self.store.get(name).map(|look| look.status()) {
            Ok(Status::Ended(end)) => {
                anyhow::anyhow!(
                    "{name} ended meanwhile ({}): skiff logs {name} shows what it did",
                    end.word()
                )
            }
            Ok(_) => error,
            Err(_) => anyhow::anyhow!("{name} was removed meanwhile"),
        }
    }

    fn socket(&self) -> io::Result<UnixStream> {
        match &self.path {
            Some(path) => UnixStream::connect(path),
            None => {
                // Any directory fits this way into the 108 bytes that a socket's address has.
                let dir = File::open(self.entry.dir())?;
                UnixStream::connect(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), VsockSpec::OWN))
            }
        }
    }
}

/// Wait until the agent of the VM `name` takes requests, for at most `limit`.
pub fn wait_ready(store: &Store, name: &str, limit: Option<Duration>) -> Result<Agent> {
    wait(&many::running(store, name)?, limit.or(Some(Duration::MAX)))
}

/// Say so beside its console when the guest of the VM `name` cannot mount a folder. Nobody waits for that.
pub fn watch_mounts(store: &Store, name: &str) {
    let (store, name) = (store.clone(), name.to_owned());
    let watch = move || {
        let Ok(look) = many::running(&store, &name) else { return };
        let client = look.entry.client(Some(Duration::from_secs(u32::MAX.into())));
        if let Ok(Err(ClientError::Refused(why))) = client.map(|mut client| client.wait_ready()) {
            crate::terminal::note(&format!("\r\nskiff: {why}\r"));
        }
    };
    // Without it the guest is as it is.
    let _ = vmm::named_thread("mounts").spawn(watch);
}

fn wait(look: &Look, limit: Option<Duration>) -> Result<Agent> {
    let name = look.entry.name();
    let has_agent = look.state.as_ref().is_some_and(|state| state.has_agent);
    let limit_or = limit.unwrap_or(if has_agent { BOOT } else { GUESS });
    let mut client = look.entry.client(Some(limit_or.min(Duration::from_secs(u32::MAX.into()))))?;
    let _waiting = Waiting::show(name);
    match client.wait_ready() {
        Ok(Waited::Ready(agent)) => Ok(agent),
        Ok(Waited::Ended(ended)) => {
            bail!(
                "{name} ended before it was ready ({}): skiff logs {name} shows what it did",
                End::from(ended).word()
            )
        }
        Err(ClientError::Silent) if has_agent || limit.is_some() => bail!(
            "{name} is not ready after {} s: skiff logs {name} shows what it does",
            limit_or.as_secs_f32()
        ),
        Err(ClientError::Silent) => bail!(no_agent(name)),
        Err(error) => Err(error).with_context(|| name.to_owned()),
    }
}

fn no_agent(name: &str) -> String {
    format!(
        "no agent answers in {name}: skiff agent FILE writes the program and says how a guest runs it; images that skiff builds or imports have it"
    )
}

/// An image whose VMs have no agent, which would do what is wanted.
pub fn no_agent_in(image: &str, wants: &str) -> String {
    format!(
        "{image} has no agent, which {wants} in a guest: import it without --no-agent; or skiff agent FILE writes the program and says how a guest \
         runs it, and --vsock auto lets it be reached"
    )
}

/// A line that says what is waited for, and how long.
struct Waiting(Option<(std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>)>);

impl Waiting {
    fn show(name: &str) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let mut bar = Bar::new(format!("waiting until {name} is ready"));
        let thread = vmm::named_thread("waiting").spawn(move || {
            while stopped.recv_timeout(TICK) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                bar.tick();
            }
        });
        Self(thread.ok().map(|thread| (stop, thread)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}
