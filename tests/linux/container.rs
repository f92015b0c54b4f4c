//! Images that come from elsewhere: a container's, by a registry, and disks of all formats.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::systems::{BOOT, Home};

/// What the disks are called after.
const FORMATS: [&str; 4] = ["raw", "qcow2", "vmdk", "vhdx"];

/// A container's image runs its entrypoint as the image says, and with what is said instead.
///
/// # Errors
/// What is not as it should be.
pub fn container(skiff: &Path, data: &Path, dir: &Path) -> Result<()> {
    let home = Home::new(skiff, data, dir)?;
    let own = ["run", "--net", "none", "container:1"];
    let other = ["run", "--net", "none", "-e", "COLOUR=red", "container:1", "echo", "hello"];
    for (words, said, code) in [
        (&own[..], "words=sh -c exit 23 user=1000:1000 at=/srv colour=blue\n", 23),
        (&other, "words=echo hello user=1000:1000 at=/srv colour=red\nhello\n", 0),
    ] {
        let output = home.cli.output(words)?;
        let right = output.status.code() == Some(code) && output.stdout == said.as_bytes();
        ensure!(right, "skiff {} came as {output:?}, not with {said:?} and {code}", words.join(" "));
    }
    ensure!(home.cli.run(["ps", "-aq"])?.is_empty(), "VMs are left");
    Ok(())
}

/// One disk in every format boots from each, and holds the same.
///
/// # Errors
/// What is not as it should be.
pub fn disks(skiff: &Path, data: &Path, dir: &Path) -> Result<()> {
    let home = Home::new(skiff, data, dir)?;
    let mut held = Vec::new();
    for format in FORMATS {
        let disk = format!("disk-{format}");
        let boots = || -> Result<String> {
            home.cli.run(["run", "-d", "--name", format, "--net", "none", "--vsock", "auto", &disk])?;
            home.cli.run(["wait", "--ready", "--timeout", BOOT, format])?;
            home.cli.run([
                "exec",
                format,
                "sh",
                "-c",
                "sha256sum /bin/busybox /entry; grep ' / ' /proc/mounts",
            ])
        };
        held.push(home.cli.told(boots())?);
        home.cli.run(["kill", format])?;
    }
    ensure!(held[0].contains("/dev/vda / ext4 rw"), "its root is no disk: {}", held[0]);
    for (format, other) in FORMATS.iter().zip(&held) {
        ensure!(*other == held[0], "{format} holds {other:?}, and raw {:?}", held[0]);
    }
    Ok(())
}
