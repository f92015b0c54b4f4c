//! Boots stock Linux kernels with skiff and checks what the guests say and do.
//!
//! `cargo xtask test` builds this program and runs it where KVM runs such kernels: straight on the host or in
//! kvmbox. It prints one line a test and, last, `N passed, N failed`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;

mod facts;
mod scenario;
mod vm;

use scenario::Scenario;

/// Boots stock Linux kernels with skiff and checks what the guests say and do.
#[derive(Parser)]
struct Arguments {
    /// The program under test
    #[arg(long, value_name = "FILE")]
    skiff: PathBuf,
    /// The directory of kernels, one directory each with `vmlinuz` and `initramfs`
    #[arg(long, value_name = "DIR")]
    kernels: PathBuf,
    /// Run only the tests with this in their name
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Run this many tests at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Print the tests' names and end
    #[arg(long)]
    list: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let scenarios: Vec<Scenario> = scenario::all(&arguments.kernels)?
        .into_iter()
        .filter(|test| test.name().contains(&arguments.filter))
        .collect();
    if arguments.list {
        scenarios.iter().for_each(|test| println!("{}", test.name()));
        return Ok(ExitCode::SUCCESS);
    }
    let failed = run(&arguments, &scenarios)?;
    println!("{} passed, {failed} failed", scenarios.len() - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all of them, `jobs` at once, and returns how many failed.
fn run(arguments: &Arguments, scenarios: &[Scenario]) -> Result<usize> {
    // Sockets, locks and O_DIRECT work in a run directory wherever these tests run.
    let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let work = base.join(format!("skiff-linux-guests-{}", std::process::id()));
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let queue = Mutex::new(scenarios.iter());
    let failed = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    // Taken in a statement of its own: the lock is held no longer than that.
                    let next = queue.lock().ok().and_then(|mut queue| queue.next());
                    let Some(test) = next else { break };
                    let start = Instant::now();
                    let result = test.run(&arguments.skiff, &work);
                    let seconds = start.elapsed().as_secs_f64();
                    match result {
                        Ok(()) => println!("ok     {} ({seconds:.1} s)", test.name()),
                        Err(error) => {
                            println!("FAILED {} ({seconds:.1} s): {error:#}", test.name());
                            failed.lock().map(|mut count| *count += 1).unwrap_or_default();
                        }
                    }
                }
            });
        }
    });
    std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    failed.into_inner().context("a test died")
}
