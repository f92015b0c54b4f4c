//! kvmbox: a machine in software emulation whose kernel has a real `/dev/kvm`, for hosts without one.
//!
//! QEMU (TCG) emulates a processor with AMD-V; a stock Debian kernel in it loads its own `kvm-amd`. This
//! machine's root file system is mounted over 9p, so one command runs with the same paths and files.
//! [`run`] starts QEMU, serves the command's input and output in the caller's thread, and kills QEMU at
//! the end; a box leaves nothing behind but its kernel's log under `<target>/kvmbox/log`.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result};

mod agent;
mod host;
mod image;
mod look;
mod qemu;
mod signals;
mod terminal;
mod wait;
mod wire;

pub use agent::run as run_agent;
use wire::Job;

/// The exit code of a box whose time was up.
pub const TIMED_OUT: u8 = 124;
/// The exit code of a box that the user ended.
pub const INTERRUPTED: u8 = 130;

/// What kind of box.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory in MiB.
    pub memory: u32,
    /// Number of virtual processors. With more than one, QEMU emulates them in parallel and gets that wrong
    /// for guests' guests now and then: the kernel of Debian 13 finds its code changed under it, or the whole
    /// box hangs. It is for commands that run no guests.
    pub cpus: u32,
    /// Let the clock count instructions: one processor, repeatable times.
    pub icount: bool,
    /// After this the box is ended with [`TIMED_OUT`].
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { memory: 2048, cpus: 1, icount: false, timeout: Duration::from_secs(600) }
    }
}

/// Where a command's input comes from and its output goes. What it writes to standard error goes to ours.
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// Pass on our standard input; otherwise there is none.
    pub input: bool,
    /// Show the output: it goes to ours.
    pub show: bool,
    /// Keep the output for the caller.
    pub keep: bool,
}

/// How a command in a box ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code, 128 plus a signal's number, [`TIMED_OUT`] or [`INTERRUPTED`].
    pub code: u8,
    /// What it wrote, when kept.
    pub output: Vec<u8>,
}

/// Boots a box and runs `command` (program and arguments) in it, in our working directory and environment.
///
/// # Errors
/// When the box's parts cannot be had, or it ends before its command does.
pub fn run(options: &Options, io: Io, command: &[OsString]) -> Result<Outcome> {
    let image = image::ensure().context("cannot put together what a box boots")?;
    // Before any thread of ours starts, so that all of them leave these signals to us.
    let signals = signals::Signals::watch().context("cannot watch for signals")?;
    let on_terminal = host::terminal_wanted(io);
    let variables = std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let job = Job {
        terminal: on_terminal.then(terminal::size),
        error_to_terminal: std::io::stderr().is_terminal(),
        directory: std::env::current_dir().context("cannot tell the working directory")?.into(),
        arguments: command.to_vec(),
        environment: variables.collect(),
    };
    let qemu = qemu::Qemu::start(options, &image)?;
    host::Session::new(options, io, job, qemu, signals).run()
}
