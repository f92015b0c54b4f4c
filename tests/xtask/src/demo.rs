//! `cargo xtask demo`: a stock Debian kernel, booted by skiff.

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::debian::Release;
use crate::debian::kernel::Flavour;
use crate::kvmbox::{self, Io, Options};
use crate::linux_guest::Guest;
use crate::place::Place;
use crate::{paths, setup, tool};

/// Boots to a shell on a terminal; otherwise runs a few commands in the guest and powers off.
///
/// # Errors
/// When something cannot be fetched, built or started.
pub fn run() -> Result<ExitCode> {
    setup::run()?;
    let guest = Guest::ensure(Release::Bookworm, Flavour::Cloud)?;
    eprintln!("… building skiff");
    tool::show(&mut tool::cargo(&["build", "--quiet", "--release", "--locked", "--package", "skiff"])?)?;
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let command = command(&guest, if interactive { "shell" } else { "demo" })?;
    let place = Place::of_machine();
    eprintln!("Booting the kernel of {} with skiff,\n{}", guest.kernel.version()?, place.describe());
    eprintln!("  {}", command.join(" ".as_ref()).display());
    let code = match place {
        Place::Host(_) => {
            let (program, rest) = command.split_first().context("there is no command")?;
            let status = Command::new(program).args(rest).status().context("cannot run skiff")?;
            status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
        }
        Place::Kvmbox(_) => {
            let io = Io { input: interactive, show: true, keep: false };
            // A user may look around for as long as he likes.
            let hours = std::time::Duration::from_secs(if interactive { 24 * 3600 } else { 300 });
            kvmbox::run(&Options { timeout: hours, ..Options::default() }, io, &command)?.code
        }
    };
    Ok(ExitCode::from(code))
}

fn command(guest: &Guest, action: &str) -> Result<Vec<OsString>> {
    let mut words: Vec<OsString> = vec![paths::target()?.join("release/skiff").into()];
    words.extend(["run", "--kernel"].map(OsString::from));
    words.push(guest.kernel.image().into());
    words.push("--initrd".into());
    words.push(guest.initramfs.clone().into());
    words.push("--cmdline".into());
    words.push(format!("console=ttyS0 quiet skiff.do={action}").into());
    words.extend(["--cpus", "2", "--memory", "512M", "--disk"].map(OsString::from));
    let mut disk = OsString::from("path=");
    disk.push(scratch_disk()?);
    words.push(disk);
    Ok(words)
}

/// A disk for the guest to play with; what it wrote is there the next time.
fn scratch_disk() -> Result<PathBuf> {
    let path = paths::target()?.join("demo.img");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    file.and_then(|file| file.set_len(64 << 20))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
