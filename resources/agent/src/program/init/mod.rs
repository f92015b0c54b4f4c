//! The guest's init, for images without one: the program of an initial RAM disk that finds the disk, mounts what every Linux has mounted,
//! brings the network up, and then is the agent like everywhere else.
//!
//! It never leaves: its text stays in the RAM disk, its root becomes the disk's. Its `signals` thread switches off when somebody asks
//! for it, its `lease` threads keep the network's addresses.

mod dhcp;
mod lease;
mod modules;
mod mounts;

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread;

pub use lease::{renew as renew_lease, wait_for_first as wait_for_network};

use crate::{interfaces, note, power, sys};

/// Signals by which programs ask an init to switch off: `kill`, busybox, sysvinit and systemd have their own.
const POWER_OFF: &[i32] =
    &[libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGPWR, 34 + 3, 34 + 4, 34 + 5];

/// What the kernel's command line says.
#[derive(Debug, Default, PartialEq, Eq)]
struct CommandLine {
    /// The device of the root file system; without one the RAM disk is it.
    root: Option<String>,
    /// Its type.
    kind: Option<String>,
    /// It is not written.
    read_only: bool,
}

impl CommandLine {
    fn parse(text: &str) -> Self {
        let mut line = Self::default();
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some(("root", root)) => line.root = Some(root.to_owned()),
                Some(("rootfstype", kind)) => line.kind = Some(kind.to_owned()),
                None if word == "ro" => line.read_only = true,
                None if word == "rw" => line.read_only = false,
                _ => {}
            }
        }
        line
    }
}

/// Make a system of what the kernel has started. Before any other thread.
///
/// # Errors
/// If there is no root file system. Nothing can be done then but to end, and the kernel says so.
pub fn start() -> io::Result<()> {
    mounts::early();
    open_console();
    modules::load();
    let line = CommandLine::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    if let Some(root) = &line.root {
        mounts::switch_root(root, line.kind.as_deref(), line.read_only)
            .map_err(|error| io::Error::other(format!("the root file system {root}: {error}")))?;
    }
    mounts::rest();
    let _ = sys::set_hostname("localhost");
    // As in a container: who is not root may serve a low port, too.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    // Ctrl-Alt-Del asks init, and does not reset.
    let _ = sys::reboot(libc::RB_DISABLE_CAD);
    hear_signals()?;
    if let Err(error) = interfaces::set_up("lo", true) {
        note(format_args!("lo: {error}"));
    }
    lease::start();
    Ok(())
}

/// Standard input, output and error, which the kernel leaves closed if it has no console, or none yet.
fn open_console() {
    let open = |path| fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path);
    if let Ok(console) = open("/dev/console").or_else(|_| open("/dev/null")) {
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
}

/// Take the signals that mean the end in a thread of their own. All other threads inherit that they do not.
fn hear_signals() -> io::Result<()> {
    // SAFETY: the set is made whole by the first call; the others get pointers to it.
    let set = unsafe {
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        for signal in POWER_OFF {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        let set = set.assume_init();
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    };
    let wait = move || {
        loop {
            // SAFETY: the set is whole; nothing is to be told of the signal.
            if unsafe { libc::sigwaitinfo(&raw const set, std::ptr::null_mut()) } > 0 {
                power::off();
            }
        }
    };
    thread::Builder::new().name("signals".into()).stack_size(128 << 10).spawn(wait).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_what_the_root_is() {
        let line = CommandLine::parse("console=ttyS0 root=/dev/vda rootfstype=ext4 ro quiet rw");
        assert_eq!(line.root.as_deref(), Some("/dev/vda"));
        assert_eq!((line.kind.as_deref(), line.read_only), (Some("ext4"), false));
        assert_eq!(CommandLine::parse("rootwait ro=1 panic=-1"), CommandLine::default());
    }
}
