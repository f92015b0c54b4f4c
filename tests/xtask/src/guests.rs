//! Builds the bare-metal guests of `tests/guests` into `target/guests`.
//!
//! They are a workspace of their own: another linker, another linker script, no operating system under them. The
//! flags travel in the environment, not in a cargo configuration file, so that they apply to the guests alone and not
//! to build scripts (which an explicit target keeps apart).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What is built: each is a PVH kernel.
const GUESTS: [&str; 5] = ["hello", "testguest", "ioguest", "netguest", "memguest"];

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The guests' own workspace.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests")
}

/// The flags that make a program for no operating system of a Linux target: linked by Rust's own lld to fixed addresses.
fn flags(source: &Path) -> String {
    let script = source.join("link.ld");
    [
        "-Clinker=rust-lld",
        "-Clinker-flavor=ld.lld",
        "-Crelocation-model=static",
        &format!("-Clink-arg=-T{}", script.display()),
    ]
    // Separated as `CARGO_ENCODED_RUSTFLAGS` wants it, so that a path may hold spaces.
    .join("\x1f")
}

/// A cargo command on the guests, building below `target` (the repository's target directory).
fn cargo(verb: &str, target: &Path) -> Result<Command> {
    let source = source().canonicalize().context("tests/guests is missing")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .arg(verb)
        .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(target.join("guests-build"))
        .current_dir(&source)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&source));
    Ok(command)
}

/// Build the guests, showing cargo's progress, and return the directory that holds them: `target/guests`, with one file
/// for each name. `target` is the repository's target directory.
///
/// # Errors
/// If they do not compile, or cannot be copied.
pub fn build(target: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(target).with_context(|| format!("cannot create {}", target.display()))?;
    let target = target.canonicalize()?;
    run(cargo("build", &target)?)?;
    let to = target.join("guests");
    std::fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
    for guest in GUESTS {
        let built = target.join("guests-build").join(TARGET).join("release").join(guest);
        // Under a new name first: a test may have the old file open.
        let fresh = to.join(format!(".{guest}.new"));
        std::fs::copy(&built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
        std::fs::rename(&fresh, to.join(guest))?;
    }
    Ok(to)
}

/// Run clippy on the guests with warnings denied.
///
/// # Errors
/// If it finds something.
pub fn clippy(target: &Path) -> Result<()> {
    std::fs::create_dir_all(target).with_context(|| format!("cannot create {}", target.display()))?;
    let mut command = cargo("clippy", &target.canonicalize()?)?;
    command.args(["--", "-Dwarnings"]);
    run(command)
}

/// Check the guests' format.
///
/// # Errors
/// If it is not what `cargo fmt` makes.
pub fn check_format() -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["fmt", "--all", "--check"]).current_dir(source());
    run(command)
}

fn run(mut command: Command) -> Result<()> {
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the bare-metal guests did not pass");
    }
    Ok(())
}
