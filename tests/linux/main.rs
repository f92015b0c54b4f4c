//! Boots stock Linux kernels with skiff and checks what the guests say and do.
//!
//! `cargo xtask test` builds this program and runs it where KVM runs such kernels: straight on the host or in
//! kvmbox. It prints one line a test and, last, `N passed, N failed`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;

mod build;
mod bytes;
mod cli;
mod exec;
mod facts;
mod host;
mod life;
mod network;
mod scenario;
mod snapshots;
mod sockets;
mod testing;
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
    /// The data directory of a user who has the image debian:12, for the tests of images
    #[arg(long, value_name = "DIR")]
    systems: Option<PathBuf>,
    /// Run only the tests with this in their name
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Run only every so many-th test, starting at the first of these numbers: `0/2` and `1/2` are all
    #[arg(long, value_name = "I/N", default_value = "0/1", value_parser = shard)]
    shard: (usize, usize),
    /// Leave out so many of them, the first
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: usize,
    /// Print the tests' names and end
    #[arg(long)]
    list: bool,
}

fn shard(text: &str) -> Result<(usize, usize), String> {
    let numbers =
        text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
    numbers.filter(|(index, count)| index < count).ok_or_else(|| "write it as 0/2".into())
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let (index, count) = arguments.shard;
    let of_images = arguments.systems.as_deref().map(scenario::of_images).unwrap_or_default();
    let scenarios = of_images.into_iter().chain(scenario::all(&arguments.kernels)?);
    let scenarios =
        scenarios.filter(|test| test.name().contains(&arguments.filter)).skip(index).step_by(count);
    let scenarios = scenarios.skip(arguments.skip);
    let scenarios: Vec<Scenario> = scenarios.collect();
    if arguments.list {
        scenarios.iter().for_each(|test| println!("{}", test.name()));
        return Ok(ExitCode::SUCCESS);
    }
    let failed = run(&arguments.skiff, &scenarios)?;
    println!("{} passed, {failed} failed", scenarios.len() - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all of them and returns how many failed.
fn run(skiff: &Path, scenarios: &[Scenario]) -> Result<usize> {
    // Sockets, locks and O_DIRECT work in a run directory wherever these tests run.
    let base = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let work = base.join(format!("skiff-linux-guests-{}", std::process::id()));
    std::fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let mut failed = 0;
    for test in scenarios {
        let start = Instant::now();
        let result = test.run(skiff, &work);
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("ok     {} ({seconds:.1} s)", test.name()),
            Err(error) => {
                println!("FAILED {} ({seconds:.1} s): {error:#}", test.name());
                failed += 1;
            }
        }
    }
    std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(failed)
}
