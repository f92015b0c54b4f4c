//! What the agent has for itself: more open files than a command, and the kernel's word that it is not killed for memory.

use std::fs;
use std::sync::OnceLock;

use crate::sys;

/// Open files for all connections at once.
const FILES: u64 = 8192;

static COMMANDS: OnceLock<libc::rlimit> = OnceLock::new();

fn current() -> libc::rlimit {
    let mut limit = libc::rlimit { rlim_cur: 1024, rlim_max: 4096 };
    // SAFETY: the pointer is to a whole rlimit.
    let _ = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit
}

/// Take what the agent needs. Once, before anything is started.
pub fn take() {
    let before = *COMMANDS.get_or_init(current);
    let ours = libc::rlimit { rlim_cur: before.rlim_max.min(FILES), ..before };
    // SAFETY: the pointer is to a whole rlimit.
    let _ = sys::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const ours) });
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
}

/// The limit of open files as it was, for commands.
pub fn of_commands() -> libc::rlimit {
    *COMMANDS.get_or_init(current)
}
