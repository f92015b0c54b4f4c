//! Boots stock Linux kernels with skiff and checks what the guests say and do.
//!
//! `cargo xtask test` builds this program and runs it where KVM runs such kernels: straight on the host or in
//! kvmbox. It prints one line a test and, last, `N passed, N failed`; with `--serve` it runs the tests that it is told to.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;

mod build;
mod bytes;
mod cli;
mod cloud;
mod container;
mod example;
mod exec;
mod facts;
mod folders;
mod host;
mod interrupts;
mod life;
mod network;
mod packages;
mod scenario;
mod snapshots;
mod sockets;
mod systems;
mod testing;
mod vm;

use scenario::Scenario;

/// How often `--serve` says that this program lives.
const ALIVE: Duration = Duration::from_secs(15);

/// Boots stock Linux kernels with skiff and checks what the guests say and do.
#[derive(Parser)]
struct Arguments {
    /// The program under test
    #[arg(long, value_name = "FILE")]
    skiff: PathBuf,
    /// The directory of kernels, one directory each with `vmlinuz` and `initramfs`
    #[arg(long, value_name = "DIR")]
    kernels: PathBuf,
    /// The data directory of a user who has the images that `cargo xtask systems` makes
    #[arg(long, value_name = "DIR")]
    systems: Option<PathBuf>,
    /// Run only the tests with this in their name
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Print the tests' names, the longest test first, and end
    #[arg(long)]
    list: bool,
    /// Run the tests that are named on standard input, a line each: say `ready` before each, and `alive` all the time
    #[arg(long)]
    serve: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut tests = scenario::all(&arguments.kernels, arguments.systems.as_deref())?;
    if !arguments.serve {
        // What has to be asked for runs only where there is a filter.
        let wanted = |test: &Scenario| match arguments.filter.as_str() {
            "" => !test.is_on_demand(),
            filter => test.name().contains(filter),
        };
        tests.retain(wanted);
    }
    if arguments.list {
        tests.iter().for_each(|test| println!("{}", test.name()));
        return Ok(ExitCode::SUCCESS);
    }
    // Sockets, locks and O_DIRECT work in a run directory wherever these tests run.
    let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let work = base.join(format!("skiff-linux-guests-{}", std::process::id()));
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let failed = match arguments.serve {
        true => serve(&arguments.skiff, &work, &tests)?,
        false => {
            let failed = tests.iter().filter(|test| !run(&arguments.skiff, &work, test)).count();
            println!("{} passed, {failed} failed", tests.len() - failed);
            failed
        }
    };
    std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one and says whether it passed.
fn run(skiff: &Path, work: &Path, test: &Scenario) -> bool {
    let start = Instant::now();
    let result = test.run(skiff, work);
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(()) => println!("ok     {} ({seconds:.1} s)", test.name()),
        Err(error) => println!("FAILED {} ({seconds:.1} s): {error:#}", test.name()),
    }
    result.is_ok()
}

/// Runs what it is told to, until nobody says any more, and returns how many failed.
fn serve(skiff: &Path, work: &Path, tests: &[Scenario]) -> Result<usize> {
    // Whoever hears it knows that the machine goes on, however long a test takes.
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(ALIVE);
            println!("alive");
        }
    });
    let mut failed = 0;
    println!("ready");
    for name in std::io::stdin().lock().lines() {
        let name = name.context("cannot read the next test's name")?;
        let passed = match tests.iter().find(|test| test.name() == name) {
            Some(test) => run(skiff, work, test),
            None => {
                println!("FAILED {name}: there is no such test");
                false
            }
        };
        failed += usize::from(!passed);
        println!("ready");
    }
    Ok(failed)
}
