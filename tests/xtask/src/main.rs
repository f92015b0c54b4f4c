//! The tasks of this repository. `cargo xtask --help` lists them.

// Some of what is here waits for the tasks that come next.
#![allow(dead_code)]

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod debian;
mod initramfs;
mod kvmbox;
mod lock;
mod paths;
mod progress;
mod setup;
mod tool;

/// The tasks of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the Debian packages that the other tasks need (as root; otherwise say which)
    Setup,
    /// Run a command in a machine in software emulation that has a real /dev/kvm
    Kvmbox(KvmboxArguments),
    /// The box's own end of kvmbox
    #[command(hide = true)]
    KvmboxAgent,
}

/// The command finds this machine's files, its own working directory and environment. /run and /dev/shm are the
/// box's own; what is written to /tmp stays in the box. Its exit code is passed on. On a terminal Ctrl-C goes to the
/// command, and three within a second end the box; otherwise one ends it.
#[derive(clap::Args)]
struct KvmboxArguments {
    /// Memory in MiB
    #[arg(long, value_name = "M", default_value_t = kvmbox::Options::default().memory)]
    memory: u32,
    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = kvmbox::Options::default().cpus, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Count instructions as time, on one processor: slower, and the same on every run
    #[arg(long)]
    icount: bool,
    /// End the box after this many seconds, with exit code 124
    #[arg(long, value_name = "S", default_value_t = kvmbox::Options::default().timeout.as_secs())]
    timeout: u64,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Task::Kvmbox(arguments) => run_kvmbox(&arguments),
        Task::KvmboxAgent => kvmbox::run_agent().map(|()| ExitCode::SUCCESS),
    }
}

fn run_kvmbox(arguments: &KvmboxArguments) -> Result<ExitCode> {
    setup::run()?;
    let options = kvmbox::Options {
        memory: arguments.memory,
        cpus: arguments.cpus,
        icount: arguments.icount,
        timeout: Duration::from_secs(arguments.timeout),
    };
    let io = kvmbox::Io { input: true, capture: false };
    Ok(ExitCode::from(kvmbox::run(&options, io, &arguments.command)?.code))
}
