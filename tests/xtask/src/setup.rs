//! `cargo xtask setup`: the Debian packages that the other tasks need.
//!
//! Presence is judged by the programs and files themselves, never by versions, so a newer build from
//! elsewhere is left alone.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::progress::Step;
use crate::tool;

/// What a package is needed for: a program on PATH or a file.
struct Need {
    package: &'static str,
    presence: &'static str,
}

const NEEDS: &[Need] = &[
    Need { package: "qemu-system-x86", presence: "qemu-system-x86_64" },
    Need { package: "qemu-utils", presence: "qemu-img" },
    Need { package: "xz-utils", presence: "xz" },
    Need { package: "debian-archive-keyring", presence: "/usr/share/keyrings/debian-archive-keyring.gpg" },
    // For networks of users, and for the tests of networks.
    Need { package: "passt", presence: "passt" },
    Need { package: "iperf3", presence: "iperf3" },
    Need { package: "iproute2", presence: "ip" },
    // For the tests of disks: sbin is not on everybody's PATH.
    Need { package: "e2fsprogs", presence: "/sbin/mkfs.ext4" },
    // For the tests of images.
    Need { package: "docker-registry", presence: "docker-registry" },
    Need { package: "umoci", presence: "umoci" },
    Need { package: "mmdebstrap", presence: "mmdebstrap" },
    Need { package: "uidmap", presence: "newuidmap" },
    // The C parts of some dependencies, and the linker.
    Need { package: "gcc", presence: "cc" },
];

/// Installs what is missing, or says with which command to do it.
///
/// # Errors
/// When packages are missing and this user may not install them, or apt fails.
pub fn run() -> Result<()> {
    let missing: Vec<&str> =
        NEEDS.iter().filter(|need| !present(need.presence)).map(|need| need.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if tool::find("apt-get").is_none() {
        bail!("these Debian packages, or what they hold, are missing: {}", missing.join(" "));
    }
    let line = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() {
        bail!("some Debian packages are missing; install them with\n    sudo {line}");
    }
    install(&missing)?;
    match NEEDS.iter().find(|need| !present(need.presence)) {
        Some(need) => bail!("{} is not there although {} was installed", need.presence, need.package),
        None => Ok(()),
    }
}

fn present(what: &str) -> bool {
    if what.starts_with('/') { Path::new(what).exists() } else { tool::find(what).is_some() }
}

/// Tries with the package lists at hand first; they are often fresh, and reading new ones takes a while.
fn install(packages: &[&str]) -> Result<()> {
    let step = Step::start(format!("installing {}", packages.join(" ")));
    if apt_install(packages).is_err() {
        step.detail("(reading the package lists)".into());
        tool::capture(Command::new("apt-get").args(["--quiet", "update"]))?;
        step.detail(String::new());
        apt_install(packages)?;
    }
    step.done();
    Ok(())
}

fn apt_install(packages: &[&str]) -> Result<String> {
    let mut apt = Command::new("apt-get");
    // Never trade an installed package away for a missing one.
    apt.args(["--quiet", "--yes", "--no-install-recommends", "--no-remove", "--allow-downgrades"]);
    apt.args(["-o", "DPkg::Lock::Timeout=300", "install"]).args(wanted(packages));
    tool::capture(apt.env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The words to give to apt. QEMU's two packages break each other unless they are of one release, so
/// a missing one takes the other one's version, and both are named.
fn wanted(packages: &[&str]) -> Vec<String> {
    const QEMU: [&str; 2] = ["qemu-system-x86", "qemu-utils"];
    let plain = packages.iter().map(|package| (*package).to_string());
    if !packages.iter().any(|package| QEMU.contains(package)) {
        return plain.collect();
    }
    let Some(version) = installed_version(QEMU[0]).or_else(|| candidate_version(QEMU[0])) else {
        return plain.collect();
    };
    let others = plain.filter(|package| !QEMU.contains(&package.as_str()));
    QEMU.iter().map(|package| format!("{package}={version}")).chain(others).collect()
}

fn installed_version(package: &str) -> Option<String> {
    let shown =
        tool::capture(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Abbrev} ${Version}", package]))
            .ok()?;
    shown.strip_prefix("ii").map(|version| version.trim().to_string())
}

fn candidate_version(package: &str) -> Option<String> {
    let shown = tool::capture(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C")).ok()?;
    let version = shown.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_string())
}
