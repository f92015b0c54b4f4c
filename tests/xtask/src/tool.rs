//! Running other programs: their noise is kept and shown only when they fail.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

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
