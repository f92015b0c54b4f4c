//! Distributions by name, as images that were built before (`cargo xtask systems`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use skiff_tests::pattern::random;

use crate::cli::Cli;

/// How long a guest with systemd may take to be ready, in seconds: it is emulated on a machine that may be busy.
pub const BOOT: &str = "600";

/// A user who has images that were prepared before. They are below an overlay, since sockets and locks want a real file system, and what is
/// prepared is for other tests, too.
pub struct Home<'a> {
    // Its VMs go first.
    pub cli: Cli<'a>,
    _overlay: Overlay,
}

impl<'a> Home<'a> {
    /// With what is below `data`, and with what he writes in `dir`.
    ///
    /// # Errors
    /// When there are no images, or the overlay cannot be mounted.
    pub fn new(skiff: &'a Path, data: &Path, dir: &Path) -> Result<Self> {
        ensure!(data.join("skiff/images").is_dir(), "there are no images in {}", data.display());
        let cli = Cli::new(skiff, dir)?;
        let overlay = Overlay::mount(data, &dir.join("overlay"), dir.join("state/data"))?;
        Ok(Self { cli, _overlay: overlay })
    }
}

/// A directory as it was prepared, to be written to. Gone when this is.
struct Overlay(PathBuf);

impl Overlay {
    fn mount(lower: &Path, own: &Path, at: PathBuf) -> Result<Self> {
        let (upper, work) = (own.join("upper"), own.join("work"));
        for dir in [&upper, &work, &at] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let (lower, upper, work) = (lower.display(), upper.display(), work.display());
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "overlay", "overlay", "-o"])
            .arg(format!("lowerdir={lower},upperdir={upper},workdir={work}"));
        let status = mount.arg(&at).status().context("cannot run mount")?;
        ensure!(status.success(), "cannot mount an overlay at {}", at.display());
        Ok(Self(at))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // What still uses it ends with the test.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A release boots, with its own kernel and systemd, and runs commands. One is there for a command alone.
///
/// # Errors
/// What is not as it should be.
pub fn debian(skiff: &Path, data: &Path, release: u32, dir: &Path) -> Result<()> {
    let home = Home::new(skiff, data, dir)?;
    let image = format!("debian:{release}");
    if release != 12 {
        let started = home.cli.run(["run", "-d", "--name", "guest", "--net", "none", &image]);
        home.cli.told(started)?;
        home.cli.told(checks(&home.cli, release, dir))?;
        let said = home.cli.run(["stop", "--timeout", "300", "guest"]);
        let said = home.cli.told(said)?;
        ensure!(!said.contains("killed"), "it had to be killed: {said}");
        return Ok(());
    }
    // The command waits until everything else is done.
    let script = "echo begun; until [ -e /run/go ]; do sleep 0.5; done; echo done; exit 42";
    let words = ["run", "--rm", "--name", "guest", "--net", "none", &image, "--", "sh", "-c", script];
    let child = home.cli.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.context("cannot run skiff")?;
    let checked = home
        .cli
        .until("the VM is there", || {
            let ended = child.try_wait().context("waiting for skiff")?;
            ensure!(ended.is_none(), "skiff run has ended ({ended:?})");
            Ok(!home.cli.status("guest")?.is_empty())
        })
        .and_then(|()| checks(&home.cli, release, dir))
        .and_then(|()| home.cli.run(["exec", "guest", "touch", "/run/go"]));
    if let Err(error) = home.cli.told(checked) {
        let _ = child.kill();
        let output = child.wait_with_output()?;
        return Err(error.context(format!("skiff run: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let output = child.wait_with_output().context("waiting for skiff")?;
    let right = output.status.code() == Some(42) && output.stdout == b"begun\ndone\n";
    ensure!(right, "skiff run with a command: {output:?}");
    // Nobody waits for the end of a VM that is thrown away.
    home.cli.until("the VM of a command is gone", || Ok(home.cli.status("guest")?.is_empty()))
}

/// What is asked of a guest that is, or will be, ready.
fn checks(cli: &Cli<'_>, release: u32, dir: &Path) -> Result<()> {
    cli.run(["wait", "--ready", "--timeout", BOOT, "guest"])?;
    let shell = |script: &str| cli.run(["exec", "guest", "sh", "-c", script]);
    let who = shell(". /etc/os-release; echo $ID $VERSION_ID; cat /proc/1/comm /proc/sys/kernel/hostname")?;
    ensure!(who == format!("debian {release}\nsystemd\nguest\n"), "it is {who:?}");
    // It says so with an exit code, too.
    let state = shell("systemctl is-system-running --wait || true")?;
    if state != "running\n" {
        let failed = shell("systemctl list-units --failed --no-legend --plain")?;
        ensure!(state == "degraded\n", "systemd says {state:?}; failed: {failed}");
        println!("debian:{release} is degraded, for these failed: {failed}");
    }
    let output = cli.output(&["exec", "guest", "sh", "-c", "echo out; echo err >&2; exit 7"])?;
    let came = (output.status.code(), &output.stdout[..], &output.stderr[..]);
    ensure!(came == (Some(7), b"out\n", b"err\n"), "a command came as {output:?}");
    let output = cli.output(&["exec", "guest", "sh", "-c", "kill -TERM $$"])?;
    ensure!(output.status.code() == Some(143), "a command that was killed came as {output:?}");
    let (file, back) = (dir.join("file"), dir.join("back"));
    fs::write(&file, random(0, 1 << 20)).context("cannot write a file")?;
    cli.run([Path::new("cp"), &file, Path::new("guest:/root/copy")])?;
    cli.run([Path::new("cp"), Path::new("guest:/root/copy"), &back])?;
    ensure!(fs::read(&back)? == fs::read(&file)?, "a file came back as another");
    Ok(())
}
