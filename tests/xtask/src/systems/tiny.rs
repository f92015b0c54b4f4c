//! The smallest system that runs commands, from an archive of its root file system: busybox, and the agent as its init.

use std::process::Command;

use anyhow::Result;

use super::{Systems, container, text};
use crate::tool;

/// What it is called.
const NAME: &str = "tiny:1";

/// Packs it and imports it.
pub fn make(systems: &Systems) -> Result<()> {
    let work = systems.scratch("tiny")?;
    let (root, archive) = (work.join("root"), work.join("root.tar.gz"));
    container::fill(&root)?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--owner=0", "--group=0", "--file"]).arg(&archive);
    tool::capture(tar.arg("--directory").arg(&root).arg("."))?;
    systems.run(["image", "import", text(&archive)?, NAME, "--kernel-from", "debian:12"]).map(drop)
}
