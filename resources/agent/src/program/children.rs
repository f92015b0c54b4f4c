//! The processes that the agent starts, and as init every other one that has lost its parent.
//!
//! One thread, `reaper`, takes the exit status of all of them. A [`Child`] is told of its own. A process ID is another process's as
//! soon as its status is taken; so that happens under the lock of [`TABLE`], and so does signalling. That lock is taken alone, and
//! also held while a process is started: its end cannot be seen before it is in the table.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use agent::message::Ended;

use crate::sys;

/// How long nobody looks for orphans when there is no child at all.
const NO_CHILDREN: Duration = Duration::from_secs(1);

static TABLE: Mutex<Table> = Mutex::new(Table { started: 0, children: None });
static STARTED: Condvar = Condvar::new();

struct Table {
    /// How many were ever started.
    started: u64,
    /// By process ID; `None` is empty, too.
    children: Option<HashMap<i32, Arc<Child>>>,
}

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process that leads a session and process group of its own.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    /// Readable when it has ended.
    ended: OwnedFd,
    how: Mutex<Option<Ended>>,
}

impl Child {
    /// Start `command`, which must make itself the leader of a process group. Its pipes are in the other half of what is returned.
    pub fn spawn(command: &mut Command) -> io::Result<(Arc<Self>, std::process::Child)> {
        let ended = sys::eventfd()?;
        let mut table = table();
        let started = command.spawn()?;
        let pid = i32::try_from(started.id()).map_err(io::Error::other)?;
        let child = Arc::new(Self { pid, ended, how: Mutex::new(None) });
        table.started = table.started.wrapping_add(1);
        table.children.get_or_insert_default().insert(pid, Arc::clone(&child));
        STARTED.notify_all();
        Ok((child, started))
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// How it has ended, if it has.
    pub fn how(&self) -> Option<Ended> {
        self.how.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Wait for its end.
    pub fn wait(&self) {
        while self.how().is_none() {
            if sys::poll(&mut [sys::polled(Some(self.as_fd()), libc::POLLIN)], -1).is_err() {
                return;
            }
        }
    }

    /// Signal it and its process group. Nothing happens if it has ended.
    pub fn signal(&self, signal: i32) {
        let table = table();
        if table.children.as_ref().is_some_and(|children| children.contains_key(&self.pid)) {
            let group = self.pid.checked_neg().map_or(Ok(()), |group| sys::kill(group, signal));
            if group.is_err() {
                let _ = sys::kill(self.pid, signal);
            }
        }
    }

    fn end(&self, how: Ended) {
        *self.how.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
        let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

/// Start the thread that takes exit statuses.
pub fn start_reaper() -> io::Result<()> {
    thread::Builder::new().name("reaper".into()).stack_size(128 << 10).spawn(reap).map(drop)
}

fn reap() {
    loop {
        let started = table().started;
        match next_ended() {
            Ok(pid) => take(pid),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                let none_new = |table: &mut Table| table.started == started;
                drop(STARTED.wait_timeout_while(table(), NO_CHILDREN, none_new));
            }
        }
    }
}

/// Wait for a process that has ended, and leave it as it is.
fn next_ended() -> io::Result<i32> {
    // SAFETY: all zeros is valid, and the call gets a pointer to the whole of it.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        sys::check(libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT))?;
        Ok(info.si_pid())
    }
}

/// Take the exit status of `pid`. One that failed to start has been taken by who started it.
fn take(pid: i32) {
    let mut table = table();
    let mut status = 0;
    // SAFETY: the pointer is to a whole integer.
    if unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } != pid {
        return;
    }
    let child = table.children.as_mut().and_then(|children| children.remove(&pid));
    drop(table);
    if let Some(child) = child {
        child.end(match libc::WIFSIGNALED(status) {
            true => Ended::Signaled(libc::WTERMSIG(status)),
            false => Ended::Exited(libc::WEXITSTATUS(status)),
        });
    }
}
