//! Running other programs: their noise is kept and shown only when they fail.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths;

/// Runs `command` to its end without a terminal and returns what it printed.
///
/// # Errors
/// When it cannot be started or fails; the message then holds the last lines of its output.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| missing(command))?;
    if !output.status.success() {
        bail!("{}", failure(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` with `input` as its standard input and returns its output.
///
/// # Errors
/// When it cannot be started or fails.
pub fn filter(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| missing(command))?;
    let pipe = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // A program that stops reading says why by its exit code.
        scope.spawn(move || pipe.map(|mut pipe| pipe.write_all(input)));
        child.wait_with_output()
    });
    let output = output.with_context(|| format!("waiting for {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{}", failure(command, &output));
    }
    Ok(output.stdout)
}

/// Runs `command` to its end, shows its output as it comes, and returns it with whether it succeeded.
///
/// # Errors
/// When it cannot be started.
pub fn tee(command: &mut Command) -> Result<(bool, String)> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(|| missing(command))?;
    let mut kept = String::new();
    if let Some(pipe) = child.stdout.take() {
        for line in BufReader::new(pipe).split(b'\n') {
            let line = line.with_context(|| format!("reading from {}", command.get_program().display()))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    let status = child.wait().with_context(|| format!("waiting for {}", command.get_program().display()))?;
    Ok((status.success(), kept))
}

/// Has the kernel end `command` when the thread that starts it is gone.
pub fn end_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs between fork and exec and makes a system call only: no allocation, no locks.
    unsafe {
        command.pre_exec(|| {
            let signal = rustix::process::Signal::TERM;
            rustix::process::set_parent_process_death_signal(Some(signal)).map_err(Into::into)
        })
    }
}

/// Runs `command` on our own input and output.
///
/// # Errors
/// When it cannot be started or fails.
pub fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| missing(command))?;
    if !status.success() {
        bail!("{} failed ({status})", describe(command));
    }
    Ok(())
}

/// A cargo command on this checkout, building where we were built.
///
/// # Errors
/// When the target directory cannot be told.
pub fn cargo(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(paths::root()).env("CARGO_TARGET_DIR", paths::target()?);
    Ok(command)
}

/// The program of this name on PATH or in the directories for system tools.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn missing(command: &Command) -> String {
    format!("cannot run {}; `cargo xtask setup` installs what is needed", command.get_program().display())
}

/// Says which command failed and how, with the end of what it printed.
pub fn failure(command: &Command, output: &Output) -> String {
    let mut text = format!("{} failed ({})", describe(command), output.status);
    let printed = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    let lines: Vec<&str> = printed.lines().collect();
    for line in &lines[lines.len().saturating_sub(40)..] {
        text.push_str("\n    ");
        text.push_str(line);
    }
    text
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
