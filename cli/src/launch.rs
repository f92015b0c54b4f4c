//! From a spec to a VM's process.
//!
//! [`Launch::fork`] splits off the process that becomes the VM ([`crate::process`]), as early as can be: there are no threads yet, and
//! little memory to share. The VM's process tells by a pipe, in one JSON line, that the VM runs or why not; errors are
//! printed by the one who was called, as if they had happened here.

use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};
use vmm::snapshot::Id;
use vmm::spec::{NetBackend, PortForward, VmSpec};

use crate::exit::Usage;
use crate::logging::Logging;
use crate::process::{self, Inherited};
use crate::store::Store;
use crate::store::images::OfImage;

/// A VM that is to be started.
pub struct Launch {
    /// Where it is kept.
    pub store: Store,
    /// Which.
    pub which: Which,
    /// The caller stands in the foreground for it: it has the caller's standard output, and listens to its owner.
    pub foreground: bool,
    /// Where log lines go.
    pub logging: Logging,
}

/// Which VM is to be started.
pub enum Which {
    /// A new one.
    New {
        /// Its name; otherwise one is made up.
        name: Option<String>,
        /// What it is.
        spec: Box<VmSpec>,
        /// Its entry goes when it ends.
        remove: bool,
        /// If its owner dies, so does the VM.
        ends_with_owner: bool,
        /// The image that it is of.
        image: Option<OfImage>,
        /// Its guest is known to have an agent.
        has_agent: bool,
        /// It starts from a snapshot, whose spec it has; otherwise its kernel is booted.
        copy: Option<Copy>,
    },
    /// One that has stopped.
    Again {
        /// Its name.
        name: String,
        /// The snapshot to start from; otherwise its kernel is booted.
        from: Option<Id>,
    },
}

/// What makes a VM a copy of another.
#[derive(Clone)]
pub struct Copy {
    /// The snapshot.
    pub from: Id,
    /// Ports of the host for this one.
    pub ports: Vec<PortForward>,
    /// If the snapshot cannot be used, the kernel is booted.
    pub or_boot: bool,
}

/// What the VM's process tells of its start.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// The VM runs, and has this name.
    Started(String),
    /// It does not, for this reason.
    Failed {
        /// The chain of causes.
        message: String,
        /// It is the user's mistake.
        usage: bool,
    },
}

/// A VM whose process is there.
pub struct Launched {
    /// The process, a child of this one.
    pub child: VmProcess,
    report: PipeReader,
    /// To the VM, if this process is its owner.
    pub stream: Option<UnixStream>,
}

/// The process of a VM that this process has started.
#[derive(Clone, Copy)]
pub struct VmProcess(Pid);

impl VmProcess {
    /// Send it `signal`. It is not another's process, since this one has not yet waited for it.
    pub fn signal(self, signal: Signal) {
        let _ = rustix::process::kill_process(self.0, signal);
    }

    /// Wait until it is gone. Says which signal killed it, if one did.
    pub fn wait(self) -> Option<i32> {
        let waited =
            rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(self.0), WaitOptions::empty()));
        waited.ok().flatten().and_then(|(_, status)| status.terminating_signal())
    }
}

impl Launch {
    /// Split off the VM's process. Must be called while there are no other threads.
    pub fn fork(self) -> Result<Launched> {
        let failed = "cannot start a process";
        let (report, tell) = io::pipe().context(failed)?;
        let (stream, owner) = match self.foreground {
            true => UnixStream::pair().map(|(ours, its)| (Some(ours), Some(its))).context(failed)?,
            false => (None, None),
        };
        // SAFETY: this process has one thread, so the child finds every lock free and all of memory in order.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()).context("cannot start a process: see ulimit -u"),
            0 => {
                drop((report, stream));
                let mut keep: Vec<RawFd> = vec![tell.as_raw_fd()];
                keep.extend(owner.as_ref().map(|owner| owner.as_raw_fd()));
                keep.extend(self.inherited_by_spec());
                close_others(keep);
                process::run(self, Inherited { tell, owner })
            }
            pid => {
                let pid = Pid::from_raw(pid).context(failed)?;
                Ok(Launched { child: VmProcess(pid), report, stream })
            }
        }
    }

    /// Descriptors that the caller's caller has opened for the VM.
    fn inherited_by_spec(&self) -> Vec<RawFd> {
        let Which::New { spec, .. } = &self.which else { return Vec::new() };
        let fd = |net: &vmm::spec::NetSpec| match net.backend {
            NetBackend::Fd(fd) => Some(fd),
            _ => None,
        };
        spec.nets.iter().filter_map(fd).collect()
    }
}

impl Launched {
    /// Wait until the VM runs, and say its name.
    pub fn started(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.report.read_to_end(&mut line).context("the VM's process cannot be heard")?;
        match serde_json::from_slice(&line) {
            Ok(Report::Started(name)) => Ok(name),
            Ok(Report::Failed { message, usage: true }) => Err(Usage(message).into()),
            Ok(Report::Failed { message, usage: false }) => {
                self.child.wait();
                Err(anyhow::Error::msg(message))
            }
            Err(_) => match self.child.wait() {
                Some(signal) => anyhow::bail!("the VM's process was killed at its start by signal {signal}"),
                None => anyhow::bail!("the VM's process ended at its start without a word"),
            },
        }
    }
}

/// Close what this process has inherited by chance, all but the standard streams and `keep`: whoever waits for the end of a pipe is not to wait
/// for the VM's.
pub fn close_others(mut keep: Vec<RawFd>) {
    keep.sort_unstable();
    let mut next = 3;
    for fd in keep.into_iter().chain([RawFd::MAX]) {
        if fd > next {
            // SAFETY: nothing in this process uses these descriptors: it has one thread, which has just come from the fork and
            // holds `keep` only.
            unsafe { libc::close_range(next as libc::c_uint, fd.saturating_sub(1) as libc::c_uint, 0) };
        }
        next = next.max(fd.saturating_add(1));
    }
}

/// A copy of standard output that no other program gets.
pub fn stdout() -> Result<OwnedFd> {
    io::stdout().as_fd().try_clone_to_owned().context("cannot use standard output")
}
