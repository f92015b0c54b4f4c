//! How the programs of e2fsprogs are run: with nothing of the caller's environment, and with bounds on what they print.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::Error;
use crate::child::{self, Ending};

/// The most that is kept of what a program prints, in bytes.
const OUTPUT: u64 = 32 << 20;
/// The most that is kept of what it complains about.
const COMPLAINTS: u64 = 64 << 10;

/// A program, found where users may not look for it.
pub fn command(program: &'static str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.env_clear().env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C.UTF-8");
    // Otherwise whatever this variable names would be run.
    command.env("DEBUGFS_PAGER", "__none__");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a program printed.
pub struct Output {
    /// Whether its exit code was 0.
    pub success: bool,
    /// Its exit code, if no signal ended it.
    pub code: Option<i32>,
    /// What it printed, up to a limit, or nothing if that went elsewhere.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: String,
}

/// Runs a program to its end; `into` gets what it prints, up to `limit` bytes.
pub fn run_into(
    program: &'static str,
    mut command: Command,
    into: &mut dyn Write,
    limit: u64,
) -> Result<(Output, u64), Error> {
    let io = |doing: &str| {
        let doing = format!("{doing} {program}");
        move |source| Error::Io { doing, source }
    };
    let mut running =
        child::start(&mut command, Ending::Kill).map_err(|source| Error::Program { program, source })?;
    // Complaints are read aside, so that neither pipe fills up while the other is read.
    let complaints = running.child().stderr.take().map(|stderr| std::thread::spawn(move || start_of(stderr)));
    let copied = match running.child().stdout.take() {
        Some(mut stdout) => std::io::copy(&mut (&mut stdout).take(limit), into),
        None => Ok(0),
    };
    if copied.as_ref().map_or(true, |copied| *copied >= limit) {
        // Nobody reads the rest.
        let _ = running.child().kill();
    }
    let status = running.end().map_err(io("wait for"))?;
    let stderr = complaints.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let copied = copied.map_err(io("keep what is printed by"))?;
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    Ok((Output { success: status.success(), code: status.code(), stdout: Vec::new(), stderr }, copied))
}

/// Runs a program to its end.
pub fn run(program: &'static str, command: Command) -> Result<Output, Error> {
    let mut stdout = Vec::new();
    let (output, _) = run_into(program, command, &mut stdout, OUTPUT)?;
    Ok(Output { stdout, ..output })
}

/// All is read, and the start is kept.
fn start_of(mut from: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = (&mut from).take(COMPLAINTS).read_to_end(&mut kept);
    let _ = std::io::copy(&mut from, &mut std::io::sink());
    kept
}

/// The end of what a program said, on one line.
pub fn said(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("; ");
    let clean: String = last.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
    clean.chars().take(500).collect()
}

/// A file as a program's standard input, by which it opens it: names may hold what they would misread.
pub fn with_file(command: &mut Command, file: &File, offset: u64) -> Result<String, Error> {
    let file = file.try_clone().map_err(|source| Error::Io { doing: "share the disk".to_owned(), source })?;
    command.stdin(Stdio::from(file));
    Ok(format!("/proc/self/fd/0?offset={offset}"))
}
