//! `skiff agent`: the agent's program, for guests that skiff did not make.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ::agent::install::{PROGRAM_PATH, UNIT, UNIT_PATH};
use anyhow::{Context as _, Result};
use clap::ArgMatches;

use super::Verb;
use crate::flags::{Completes, Count, Operand};

pub const VERB: Verb = Verb {
    name: "agent",
    about: "Write the agent's program to a file",
    long: "Write the agent's program to FILE, for a guest that skiff did not make. Images that skiff builds or imports have it. \
           The program is static: it runs in a guest of any distribution. The guest needs vsock (run it with --vsock auto).",
    after: || USAGE.to_owned(),
    flags: Vec::new,
    operands: &[FILE],
    run,
};

const FILE: Operand =
    Operand { name: "FILE", count: Count::One, completes: Completes::Files, help: "Where the program goes" };

const USAGE: &str = "\
In the guest:
  Put the program at /usr/lib/skiff/agent as root. With systemd, the unit that is printed goes to
  /usr/lib/systemd/system/skiff-agent.service, then: systemctl enable --now skiff-agent
  Any other init runs the program as a daemon of root.

Examples:
  skiff agent ./agent";

fn run(matches: &ArgMatches) -> Result<u8> {
    let file = FILE.one(matches);
    write(Path::new(&file))?;
    super::print(format!(
        "{file} is written. In the guest, put it at {PROGRAM_PATH}, and with systemd this at {UNIT_PATH},\n\
         then: systemctl enable --now skiff-agent\n\n{UNIT}"
    ))
}

/// Write it aside first: a program that is there may be running.
fn write(path: &Path) -> Result<()> {
    let mut aside = PathBuf::from(path).into_os_string();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    fs::write(&aside, crate::agent::PROGRAM).with_context(|| format!("cannot write {}", aside.display()))?;
    let done =
        fs::set_permissions(&aside, Permissions::from_mode(0o755)).and_then(|()| fs::rename(&aside, path));
    done.with_context(|| format!("cannot write {}", path.display()))
}
