//! VMs over their lives: the power button, the balloon, disks that grow and that run full.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cli::Cli;
use crate::vm::Kernel;

const MIB: u64 = 1 << 20;

/// `stop` presses the power button, which a guest obeys; one that does not is killed. A stopped VM starts again.
pub fn button(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = Cli::new(skiff, dir)?;
    let initrd = kernel.initrd(dir)?;
    let guest = [
        "run",
        "-d",
        "--name",
        "polite",
        "--kernel",
        &kernel.image(),
        "--initrd",
        &initrd,
        "--memory",
        "256M",
        "--transport",
        kernel.transport,
        "--cmdline",
        "console=ttyS0 quiet skiff.do=button,idle",
    ];
    for round in ["run", "start"] {
        if round == "run" {
            cli.run(guest)?
        } else {
            cli.run(["start", "polite"])?
        };
        cli.until("the guest listens", || {
            Ok(cli.facts("polite")?.count("button") > usize::from(round == "start") * 2)
        })?;
        cli.run(["pause", "polite"])?;
        ensure!(cli.status("polite")?.contains("Paused"), "ps does not say Paused");
        cli.run(["resume", "polite"])?;
        let said = cli.run(["stop", "--timeout", "120", "polite"])?;
        ensure!(!said.contains("killed"), "it had to be killed: {said}");
        ensure!(
            cli.status("polite")?.contains("Stopped"),
            "ps does not say Stopped: {}",
            cli.status("polite")?
        );
    }
    let events = cli.run(["events", "--json", "--no-follow", "--since", "all", "polite"])?;
    for event in ["started", "booted", "paused", "resumed", "stopped"] {
        ensure!(events.contains(event), "events do not tell of '{event}': {events}");
    }
    Ok(())
}

/// What the guest frees, and what the balloon takes, is the host's again.
pub fn balloon(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = Cli::new(skiff, dir)?;
    let initrd = kernel.initrd(dir)?;
    let guest = [
        "run",
        "-d",
        "--name",
        "airy",
        "--kernel",
        &kernel.image(),
        "--initrd",
        &initrd,
        "--memory",
        "512M",
        "--transport",
        kernel.transport,
        "--cmdline",
        "console=ttyS0 quiet skiff.do=touch,idle skiff.touch=200",
    ];
    cli.run(guest)?;
    cli.wait_for("airy", "touch")?;
    let most = resident(&cli)?;
    ensure!(most > 150 * MIB, "a guest that touched 200 MiB has {} MiB", most / MIB);
    cli.until("the guest's free memory is the host's again", || Ok(resident(&cli)? < most - 100 * MIB))?;
    cli.run(["resize", "airy", "--memory", "256M"])?;
    cli.until("the balloon holds what was asked for", || Ok(figure(&cli, "balloon")? == 256 * MIB))?;
    ensure!(
        resident(&cli)? < 256 * MIB,
        "256 MiB were taken, and {} MiB are resident",
        resident(&cli)? / MIB
    );
    ensure!(figure(&cli, "reported_free")? > 0, "the guest reported no free pages");
    cli.run(["resize", "airy", "--memory", "512M"])?;
    cli.until("the balloon is empty", || Ok(figure(&cli, "balloon")? == 0))?;
    let stats = cli.run(["stats", "--json", "airy"])?;
    ensure!(stats.contains("\"free\""), "the guest's own figures are not there: {stats}");
    Ok(())
}

fn resident(cli: &Cli<'_>) -> Result<u64> {
    figure(cli, "resident")
}

/// The first number called so in the VM's statistics.
fn figure(cli: &Cli<'_>, name: &str) -> Result<u64> {
    let stats = cli.run(["stats", "--json", "airy"])?;
    let number = stats.split_once(&format!("\"{name}\":")).map(|(_, rest)| rest.trim_start());
    let digits: String = number.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("no {name} in {stats}"))
}

/// A disk grows under a guest.
pub fn growing_disk(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = Cli::new(skiff, dir)?;
    let initrd = kernel.initrd(dir)?;
    let disk = dir.join("disk.img");
    File::create(&disk).and_then(|file| file.set_len(16 * MIB)).context("cannot make a disk")?;
    let sectors = 32 * MIB / 512;
    let cmdline = format!("console=ttyS0 quiet skiff.do=button,grown,idle skiff.sectors={sectors}");
    let path = format!("path={},layers=off", disk.display());
    let guest = [
        "run",
        "-d",
        "--name",
        "grower",
        "--kernel",
        &kernel.image(),
        "--initrd",
        &initrd,
        "--memory",
        "256M",
        "--transport",
        kernel.transport,
        "--disk",
        &path,
        "--cmdline",
        &cmdline,
    ];
    cli.run(guest)?;
    cli.wait_for("grower", "button")?;
    cli.run(["resize", "grower", "--disk", "disk0=32M"])?;
    cli.wait_for("grower", "grown")?.expect("sectors", &sectors.to_string())?;
    let bytes = fs::read(&disk).context("cannot read the disk")?;
    ensure!(bytes.len() as u64 == 32 * MIB, "the file has {} bytes", bytes.len());
    ensure!(
        bytes[bytes.len() - 512..].starts_with(b"skiff-was-here"),
        "the last sector is not what the guest wrote"
    );
    let smaller = cli.output(&["resize", "grower", "--disk", "disk0=16M"])?;
    ensure!(!smaller.status.success(), "a disk that shrinks was not refused");
    Ok(())
}

/// The host's file system runs full under a guest's disk: its writes fail, and the VM lives on.
pub fn full_disk(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = Cli::new(skiff, dir)?;
    let initrd = kernel.initrd(dir)?;
    let small = SmallFileSystem::mount(&dir.join("small"))?;
    let disk = small.0.join("disk.img");
    File::create(&disk).and_then(|file| file.set_len(64 * MIB)).context("cannot make a disk")?;
    let path = format!("path={},layers=off", disk.display());
    let guest = [
        "run",
        "-d",
        "--name",
        "full",
        "--kernel",
        &kernel.image(),
        "--initrd",
        &initrd,
        "--memory",
        "256M",
        "--disk",
        &path,
        "--cmdline",
        "console=ttyS0 quiet skiff.do=button,fill,idle",
    ];
    cli.run(guest)?;
    cli.wait_for("full", "fill")?.expect("failed", "yes")?;
    cli.run(["stop", "--timeout", "120", "full"])?;
    ensure!(cli.status("full")?.contains("Stopped"), "the VM did not outlive its full disk");
    Ok(())
}

/// 16 MiB of tmpfs.
struct SmallFileSystem(std::path::PathBuf);

impl SmallFileSystem {
    fn mount(dir: &Path) -> Result<Self> {
        fs::create_dir(dir).context("cannot make a directory")?;
        let words = ["-t", "tmpfs", "-o", "size=16M", "small"];
        let status = Command::new("mount").args(words).arg(dir).status().context("cannot run mount")?;
        ensure!(status.success(), "cannot mount a small file system");
        Ok(Self(dir.to_owned()))
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // Lazily: the VM may still have the disk.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
