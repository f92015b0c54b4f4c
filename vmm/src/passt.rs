//! The `user` network: passt as a child process, kept over reboots of the guest.
//!
//! ```text
//!   start ──► settling ──it reads its socket──► running ──it ends──► waiting ──► started again ──► running
//!                └── it ends: its own words are the error                 └── longer after each failure
//! ```
//!
//! [`Passt::start`] starts it on the caller's thread; from then on the `passt` thread owns it: collects what it says, reaps it,
//! and starts it again. Dropping the [`Passt`] kills and reaps it.
//!
//! It cannot outlive the VM: its only connection is a socket of this process, closed on exec, and passt ends when that is
//! closed (`--fd` implies `--one-off`), which the kernel does however this process ends. A parent-death signal would add
//! nothing: passt's change of user clears it (prctl(2)).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::net::passt::Passt as Network;
use devices::net::{Backend, Offloads, Port};
use devices::worker::Worker;
use vmm_sys_util::eventfd::EventFd;

use self::child::{Child, Settled};
use crate::spec::PortForward;

mod child;
mod ports;
#[cfg(test)]
mod tests;
mod words;

/// The guest's address, which it is given by DHCP.
pub const GUEST: &str = "10.0.2.15";
/// The host's address as its guest sees it: passt leads it to the host's own loopback. It is the guest's gateway too.
pub const HOST: &str = "10.0.2.2";
/// The length of the network's prefix, in bits.
const PREFIX: &str = "24";

/// How long passt may take to start. It needs some 25 ms.
const PATIENCE: Duration = Duration::from_secs(10);
/// After its end passt is started again after this, and after twice as long each time that it does not last.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest of these times.
const LAST_WAIT: Duration = Duration::from_secs(30);
/// passt has lasted when it ran for this long.
const LASTED: Duration = Duration::from_secs(60);

/// Why there is no user network. Each message names the thing and the fix.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// There is no such program.
    #[error("passt, which makes user networks, is not installed: sudo apt install passt")]
    Missing,
    /// It cannot be started.
    #[error("cannot start passt, which makes the user network")]
    Start(#[source] io::Error),
    /// It ended before it did anything, and said this.
    #[error("passt, which makes the user network, ended at once: {0}")]
    Ended(String),
    /// It did nothing at all.
    #[error(
        "passt, which makes the user network, did not start in {PATIENCE:?}: run passt --foreground to see why"
    )]
    Stuck,
    /// Something listens there.
    #[error("cannot publish {0}: port {port} of the host is in use, publish another or end what listens there", port = .0.host)]
    PortInUse(PortForward),
    /// It is privileged.
    #[error(
        "cannot publish {0}: port {port} of the host is for root alone; publish one from 1024 on, or allow it \
         (sudo sysctl net.ipv4.ip_unprivileged_port_start={port})", port = .0.host
    )]
    PortDenied(PortForward),
    /// The host has no such address.
    #[error("cannot publish {0}: the host has no such address, see ip address")]
    PortAddress(PortForward),
    /// passt cannot listen there, and said this.
    #[error("cannot publish {port}: {words}")]
    Port {
        /// What was asked for.
        port: PortForward,
        /// passt's words, or the host's.
        words: String,
    },
}

/// What passt is started for.
#[derive(Clone, Debug)]
pub(crate) struct Options<'a> {
    /// The guest's address.
    pub(crate) mac: [u8; 6],
    /// The largest packet that the guest is told to send, in bytes.
    pub(crate) mtu: u16,
    /// What leads into the guest.
    pub(crate) ports: &'a [PortForward],
}

/// A user network, and the process that makes it.
pub(crate) struct Passt {
    network: Arc<Network>,
    _keeper: Worker<Keeper>,
}

impl Passt {
    /// Start passt and wait until it works.
    ///
    /// # Errors
    /// If it is not there or ends at once.
    pub(crate) fn start(options: &Options<'_>) -> Result<Self, PasstError> {
        Self::start_program(&["passt"], options)
    }

    /// [`Passt::start`] with another program and its first arguments, for tests.
    fn start_program(program: &[&str], options: &Options<'_>) -> Result<Self, PasstError> {
        ports::check(options.ports)?;
        let command = child::Command::new(program, options);
        let mut child = command.start()?;
        match child.settle(Instant::now() + PATIENCE, None).map_err(PasstError::Start)? {
            Settled::Ready => {}
            Settled::Ended => return Err(ports::explain(&child.end(), options.ports)),
            Settled::TimedOut | Settled::Cancelled => return Err(PasstError::Stuck),
        }
        let network = Arc::new(Network::new());
        network.connect(child.socket().map_err(PasstError::Start)?).map_err(PasstError::Start)?;
        log::info!("passt runs (process {}): the host is {HOST} for the guest", child.id());
        let keeper = Keeper { command, network: Arc::clone(&network), child: Some(child) };
        let keeper = Worker::start("passt", keeper, Keeper::run).map_err(PasstError::Start)?;
        Ok(Self { network, _keeper: keeper })
    }
}

impl Backend for Passt {
    fn offloads(&self) -> Offloads {
        self.network.offloads()
    }

    fn set_offloads(&self, accepted: Offloads) -> io::Result<()> {
        self.network.set_offloads(accepted)
    }

    fn queue_pairs(&self) -> u16 {
        self.network.queue_pairs()
    }

    fn port(&self, index: u16) -> io::Result<Box<dyn Port>> {
        self.network.port(index)
    }
}

/// What the `passt` thread owns.
struct Keeper {
    command: child::Command,
    network: Arc<Network>,
    child: Option<Child>,
}

impl Keeper {
    /// Until `kill` is readable.
    fn run(&mut self, kill: &EventFd) {
        let mut wait = FIRST_WAIT;
        while let Some(mut child) = self.child.take() {
            let started = Instant::now();
            if !child.watch(kill) {
                // The child is killed as it is dropped.
                return;
            }
            self.network.disconnect();
            log::warn!("passt ended, and the guest's network with it: {}", child.end());
            if started.elapsed() >= LASTED {
                wait = FIRST_WAIT;
            }
            self.child = self.start_again(kill, &mut wait);
        }
    }

    /// Try until it works, for ever longer between. `None` if `kill` is readable.
    fn start_again(&self, kill: &EventFd, wait: &mut Duration) -> Option<Child> {
        loop {
            if child::pause(kill, *wait) {
                return None;
            }
            *wait = wait.saturating_mul(2).min(LAST_WAIT);
            match self.try_again(kill) {
                Ok(None) => return None,
                Ok(Some(child)) => {
                    log::info!("passt runs again (process {})", child.id());
                    return Some(child);
                }
                Err(error) => log::warn!("{}", devices::ratelog::Chained(&error)),
            }
        }
    }

    fn try_again(&self, kill: &EventFd) -> Result<Option<Child>, PasstError> {
        let mut child = self.command.start()?;
        match child.settle(Instant::now() + PATIENCE, Some(kill)).map_err(PasstError::Start)? {
            Settled::Ready => {}
            Settled::Ended => return Err(PasstError::Ended(child.end())),
            Settled::TimedOut => return Err(PasstError::Stuck),
            Settled::Cancelled => return Ok(None),
        }
        self.network.connect(child.socket().map_err(PasstError::Start)?).map_err(PasstError::Start)?;
        Ok(Some(child))
    }
}
