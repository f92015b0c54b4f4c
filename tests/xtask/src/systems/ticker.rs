//! The program of `examples/ticker`, built on this machine: its tests say on which systems it runs.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::Systems;
use crate::{paths, tool};

/// Copies the example, and builds it.
pub fn make(systems: &Systems) -> Result<()> {
    let (from, to) = (paths::root().join("examples/ticker"), systems.home.join("ticker"));
    paths::make_dir(&to)?;
    for entry in fs::read_dir(&from).with_context(|| format!("cannot list {}", from.display()))? {
        let path = entry.context("cannot list the example")?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            fs::copy(&path, to.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    // Whatever somebody has built for himself is not what this machine builds.
    tool::capture(Command::new("make").args(["--always-make", "-C"]).arg(&to).arg("ticker")).map(drop)
}
