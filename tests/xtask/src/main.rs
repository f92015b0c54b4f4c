//! The tasks of this repository. `cargo xtask --help` lists them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod debian;
mod demo;
mod guests;
mod initramfs;
mod kvmbox;
mod linux_guest;
mod lock;
mod paths;
mod place;
mod progress;
mod setup;
mod systems;
mod test;
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
    /// Boot a stock Debian kernel with skiff and show it working
    Demo,
    /// Run all checks and tests
    Test(TestArguments),
    /// Measure speed and size against their targets, and against other monitors on PATH
    Bench(BenchArguments),
    /// Run a command in a machine in software emulation that has a real /dev/kvm
    Kvmbox(KvmboxArguments),
    /// Fetch the stock kernels that the tests boot, and list them
    Kernels,
    /// Build the guest systems that tests of images run, by skiff itself
    Systems,
    /// The box's own end of kvmbox
    #[command(hide = true)]
    KvmboxAgent,
}

/// Format, clippy, unit tests, bare-metal guests, whole Linux guests. The last line is `N passed, N failed`.
#[derive(clap::Args)]
struct TestArguments {
    /// Run only the tests with this in their name, and neither format nor clippy
    filter: Option<String>,
}

/// Prints a table: what was measured, the target, whether it is met, and what others need for the same.
#[derive(clap::Args)]
struct BenchArguments {
    /// What to measure; everything if nothing is named
    #[arg(value_name = "ROW")]
    rows: Vec<bench::Row>,
    /// Where to write the table as JSON [default: bench.json in the target directory]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The command finds this machine's files, its own working directory and environment. /run and /dev/shm are the
/// box's own; what is written to /tmp stays in the box. Its exit code is passed on. On a terminal Ctrl-C goes to the
/// command, and three within a second end the box; otherwise one ends it.
#[derive(clap::Args)]
struct KvmboxArguments {
    /// Memory in MiB
    #[arg(long, value_name = "M", default_value_t = kvmbox::Options::default().memory)]
    memory: u32,
    /// Number of processors; with more than one, guests in the box may crash or hang
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
        Task::Demo => demo::run(),
        Task::Test(arguments) => test::run(arguments.filter.as_deref()),
        Task::Bench(arguments) => bench::run(&arguments.rows, arguments.json.as_deref()),
        Task::Kvmbox(arguments) => run_kvmbox(&arguments),
        Task::Kernels => setup::run().and_then(|()| linux_guest::list()).map(|()| ExitCode::SUCCESS),
        Task::Systems => systems::list().map(|()| ExitCode::SUCCESS),
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
    let io = kvmbox::Io { input: true, show: true, keep: false };
    Ok(ExitCode::from(kvmbox::run(&options, io, &arguments.command)?.code))
}
