//! Log lines: off by default, and never where the guest's console goes.

use std::fs::OpenOptions;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use env_logger::{Builder, Target, WriteStyle};
use log::LevelFilter;

/// Picks levels by module, as in `SKIFF_LOG=devices=trace,vmm=info`.
const VARIABLE: &str = "SKIFF_LOG";

/// How many log lines, and where.
pub struct Logging {
    /// How many `--verbose`.
    pub verbose: u8,
    /// The file that was asked for.
    pub file: Option<PathBuf>,
    /// The guest's console is on stdout.
    pub guest_on_stdout: bool,
    /// Nobody looks at stderr for long: log lines go where the VM's process says everything else, to its own file.
    pub detached: bool,
}

/// Start logging in the VM's process, as asked. Says whether it was.
pub fn start(wish: &Logging) -> Result<bool> {
    let filter = std::env::var(VARIABLE).ok().filter(|filter| !filter.is_empty());
    let verbose = if wish.file.is_some() && filter.is_none() { wish.verbose.max(1) } else { wish.verbose };
    if verbose == 0 && filter.is_none() {
        return Ok(false);
    }
    let mut builder = Builder::new();
    builder.filter_level(level(verbose)).format_timestamp_millis();
    hush(&mut builder);
    if let Some(filter) = filter {
        builder.parse_filters(&filter);
    }
    let file = match &wish.file {
        Some(path) => Some(open(path)?),
        None if wish.detached => None,
        None if wish.guest_on_stdout && same_file(std::io::stdout(), std::io::stderr()) => {
            let path = default_file()?;
            let _ = writeln!(
                std::io::stderr(),
                "skiff: the guest has this terminal, log lines go to {}",
                path.display()
            );
            Some(open(&path)?)
        }
        // The VM's own file takes the place of stderr when it runs.
        None => {
            Some(std::io::stderr().as_fd().try_clone_to_owned().context("cannot use standard error")?.into())
        }
    };
    if let Some(file) = file {
        let style = if file.is_terminal() { WriteStyle::Auto } else { WriteStyle::Never };
        builder.target(Target::Pipe(Box::new(file))).write_style(style);
    }
    builder.init();
    Ok(true)
}

/// Log what must not be missed to stderr.
pub fn to_stderr() {
    let mut builder = Builder::new();
    builder.filter_level(LevelFilter::Warn).format_timestamp_millis().write_style(WriteStyle::Never);
    hush(&mut builder);
    builder.init();
}

/// A guest could fill the disk with what this library says of malformed requests. The device says it, too, and not too often.
fn hush(builder: &mut Builder) {
    builder.filter_module("fuse_backend_rs", LevelFilter::Off);
}

fn level(verbose: u8) -> LevelFilter {
    match verbose {
        0 => LevelFilter::Off,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

fn open(path: &Path) -> Result<std::fs::File> {
    let open = OpenOptions::new().create(true).append(true).open(path);
    open.with_context(|| format!("cannot write the log file {}", path.display()))
}

/// Whether both lead to the same terminal, pipe or file.
fn same_file(a: impl AsFd, b: impl AsFd) -> bool {
    match (rustix::fs::fstat(a), rustix::fs::fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

/// A file of this process in the user's state directory.
fn default_file() -> Result<PathBuf> {
    let dir = crate::store::state_dir().context("nowhere to write log lines: give --log-file FILE")?;
    std::fs::create_dir_all(&dir)
        .with_context(|| format!("cannot make {} for log lines: give --log-file FILE", dir.display()))?;
    Ok(dir.join(format!("run-{}.log", std::process::id())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pipe_on_two_descriptors_is_the_same_file_and_two_pipes_are_not() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (_other_reader, other) = std::io::pipe().unwrap();
        assert!(same_file(&writer, writer.try_clone().unwrap()));
        assert!(!same_file(&writer, &other));
        drop(reader);
    }

    #[test]
    fn each_v_says_more() {
        let levels: Vec<_> = (0..5).map(level).collect();
        assert!(levels.is_sorted());
        assert_eq!(levels.first(), Some(&LevelFilter::Off));
    }
}
