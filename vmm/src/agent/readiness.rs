//! Whether the guest's agent takes requests: set by the `agent` thread, lost by it or by the `vmm` thread, waited for by many.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

/// The agent of a running guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Agent {
    /// Its skiff's version, without control characters.
    pub version: String,
    /// What it speaks: [`::agent::PROTOCOL`] of its time.
    pub protocol: u32,
}

impl Agent {
    /// Whether this skiff and the agent understand each other.
    #[must_use]
    pub fn is_understood(&self) -> bool {
        self.protocol == ::agent::PROTOCOL
    }

    /// Why this skiff and the agent do not understand each other, and what to do.
    #[must_use]
    pub fn skew(&self) -> String {
        skew(&self.version, self.protocol)
    }
}

/// Why the agent of this version is of no use.
pub(super) fn skew(version: &str, protocol: u32) -> String {
    let version: String = version.chars().filter(|c| !c.is_control()).take(64).collect();
    format!(
        "the agent in the guest is of skiff {version} and speaks protocol {protocol}, this is skiff {} with protocol {}: build its image again, or put \
         the agent in that skiff agent FILE writes",
        ::agent::VERSION,
        ::agent::PROTOCOL
    )
}

/// What is known of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Known {
    /// Nobody has said hello, or who did is gone.
    #[default]
    Nothing,
    /// It has said hello.
    Greeted(Agent),
    /// It takes requests.
    Ready(Agent),
    /// It never will, for this reason.
    Useless(String),
}

#[derive(Debug, Default)]
struct State {
    /// Which machine of the VM the guest runs on. What a link of an older one says counts no more.
    epoch: u64,
    known: Known,
    /// The exit code of the command after which the guest switches itself off.
    finished: Option<u8>,
}

/// Whether the agent takes requests. Its descriptor is readable while there is something to know of an agent: that it does, or never will.
#[derive(Debug)]
pub(crate) struct Readiness {
    event: OwnedFd,
    /// Nothing but `event` is touched with the lock held.
    state: Mutex<State>,
}

impl Readiness {
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, state: Mutex::default() })
    }

    /// The agent, if it takes requests.
    pub(crate) fn agent(&self) -> Option<Agent> {
        match &self.lock().known {
            Known::Ready(agent) => Some(agent.clone()),
            _ => None,
        }
    }

    /// Why the agent that has said hello is of no use: it is of another version than this program can use, or could not do what it was to
    /// do first.
    pub(crate) fn useless(&self) -> Option<String> {
        match &self.lock().known {
            Known::Greeted(agent) if !agent.is_understood() => Some(agent.skew()),
            Known::Useless(why) => Some(why.clone()),
            _ => None,
        }
    }

    /// The exit code of the command after which this guest switches itself off, if it has ended.
    pub(crate) fn finished(&self) -> Option<u8> {
        self.lock().finished
    }

    /// That command has ended.
    pub(super) fn finish(&self, epoch: u64, code: u8) {
        let mut state = self.lock();
        if state.epoch == epoch {
            state.finished = Some(code);
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// An agent has said hello.
    pub(super) fn greeted(&self, epoch: u64, agent: Agent) {
        self.set(epoch, Known::Greeted(agent));
    }

    /// It takes requests. Says whether that counts.
    pub(super) fn ready(&self, epoch: u64, agent: Agent) -> bool {
        self.set(epoch, Known::Ready(agent))
    }

    /// It will take none. Says whether that counts.
    pub(super) fn failed(&self, epoch: u64, why: String) -> bool {
        self.set(epoch, Known::Useless(why))
    }

    /// The link has ended. Says whether the agent took requests until now.
    pub(super) fn lost(&self, epoch: u64) -> bool {
        let mut state = self.lock();
        state.epoch == epoch && self.clear(&mut state)
    }

    /// The guest is another one from now on. Says whether the agent of the one before took requests until now.
    pub(super) fn next_epoch(&self) -> bool {
        let mut state = self.lock();
        state.epoch = state.epoch.wrapping_add(1);
        state.finished = None;
        self.clear(&mut state)
    }

    fn set(&self, epoch: u64, known: Known) -> bool {
        let mut state = self.lock();
        if state.epoch != epoch {
            return false;
        }
        self.clear(&mut state);
        let told = match &known {
            Known::Ready(_) | Known::Useless(_) => true,
            Known::Greeted(agent) => !agent.is_understood(),
            Known::Nothing => false,
        };
        state.known = known;
        if told {
            // Fails only with the counter at its maximum, which is as readable.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
        true
    }

    fn clear(&self, state: &mut State) -> bool {
        let mut count = [0; 8];
        // Fails if nothing was told.
        let _ = rustix::io::read(&self.event, &mut count);
        matches!(std::mem::take(&mut state.known), Known::Ready(_))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(readiness: &Readiness) -> bool {
        poll(&mut [PollFd::new(readiness, PollFlags::IN)], Some(&Timespec::default())).unwrap() > 0
    }

    #[test]
    fn what_an_older_guest_says_counts_no_more() {
        let readiness = Readiness::new().unwrap();
        let agent = Agent { version: "1".to_owned(), protocol: ::agent::PROTOCOL };
        readiness.greeted(0, agent.clone());
        assert!(readiness.agent().is_none() && !is_readable(&readiness));
        assert!(readiness.ready(0, agent.clone()) && is_readable(&readiness));
        assert!(readiness.next_epoch() && !is_readable(&readiness));
        assert!(!readiness.ready(0, agent.clone()) && !readiness.lost(0));
        assert!(readiness.ready(1, agent.clone()) && readiness.agent() == Some(agent));
        assert!(readiness.lost(1) && !readiness.lost(1) && !is_readable(&readiness));
    }

    #[test]
    fn a_stranger_is_told_of_and_is_never_ready() {
        let readiness = Readiness::new().unwrap();
        let agent = Agent { version: "9.9\x1b[2J".to_owned(), protocol: 99 };
        readiness.greeted(0, agent);
        assert!(is_readable(&readiness) && readiness.agent().is_none());
        let why = readiness.useless().unwrap();
        assert!(why.starts_with("the agent in the guest is of skiff 9.9[2J and speaks protocol 99"), "{why}");
    }

    #[test]
    fn an_agent_that_failed_is_told_of_until_its_link_ends() {
        let readiness = Readiness::new().unwrap();
        assert!(readiness.failed(0, "no such tag".to_owned()) && is_readable(&readiness));
        assert_eq!(readiness.useless().as_deref(), Some("no such tag"));
        assert!(readiness.agent().is_none());
        readiness.lost(0);
        assert!(readiness.useless().is_none() && !is_readable(&readiness));
    }
}
