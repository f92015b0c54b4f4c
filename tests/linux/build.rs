//! Images built from files, and warm ones, on a system that was prepared before and boots in seconds: it is busybox alone.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cli::Cli;
use crate::exec::signal;
use crate::systems::Home;

/// What the image is, with a place for what changes.
const FILE: &str = r#"
base = "tiny:1"
workdir = "/srv"
env = { COLOUR = "blue" }

[[step]]
copy = ["app/", "/srv/app"]
owner = "app:app"
exclude = ["*.o"]

[[step]]
run = "echo built > /srv/first; echo $COLOUR >> /srv/first; cat /proc/sys/kernel/random/boot_id > /srv/boot"

[[step]]
run = "LAST"
"#;

/// A file built twice, with a step changed, with one that fails, and its VMs; all from the image `tiny:1` below `data`.
///
/// # Errors
/// What is not as it should be.
pub fn build(skiff: &Path, data: &Path, dir: &Path) -> Result<()> {
    let home = Home::new(skiff, data, dir)?;
    home.cli.told(checks(&home.cli, dir))
}

fn checks(cli: &Cli<'_>, dir: &Path) -> Result<()> {
    let app = dir.join("web/app");
    fs::create_dir_all(app.join("sub"))?;
    fs::write(app.join("main"), "one")?;
    fs::write(app.join("main.o"), "no")?;
    fs::write(app.join("sub/deep"), "deep")?;
    let file = dir.join("web/web.toml");
    let write = |last: &str| fs::write(&file, FILE.replace("LAST", last)).context("cannot write the file");
    let path = file.display().to_string();

    write("cat /srv/first > /srv/last")?;
    let first = told(cli, &["image", "build", "-f", &path])?;
    ensure!(!first.contains("cached") && first.contains("[4/4] run "), "the first build said: {first}");
    let id = cli.run(["image", "build", "-q", "-f", &path])?;
    let second = told(cli, &["image", "build", "-f", &path])?;
    ensure!(
        second.matches("… cached").count() == 4 && !second.contains("boot tiny"),
        "the second build said: {second}"
    );

    // The image's VMs: warm, and cold.
    let content = "cat /srv/last /srv/app/main /srv/app/sub/deep; stat -c %U:%G /srv/app/main; ls /srv/app; echo $COLOUR $PWD";
    let wanted = "built\nblue\nonedeepapp:app\nmain\nsub\nblue /srv\n";
    let warm = cli.run(["run", "web", "--", "sh", "-c", content])?;
    ensure!(warm == wanted, "a warm VM has {warm:?}");
    let cold = cli.run(["run", "--cpus", "2", "web", "--", "sh", "-c", content])?;
    ensure!(cold == wanted, "a cold VM has {cold:?}");
    clones_differ(cli)?;
    commands(cli)?;

    // The third step changed: it is done after the second's result, in the same boot.
    write(
        "sha256sum /proc/sys/kernel/random/boot_id; cmp /proc/sys/kernel/random/boot_id /srv/boot; echo new > /srv/last",
    )?;
    let third = told(cli, &["image", "build", "-f", &path])?;
    ensure!(
        third.matches("… cached").count() == 3 && third.contains("go on from step 3"),
        "the third build said: {third}"
    );
    ensure!(cli.run(["image", "build", "-q", "-f", &path])? != id, "another image has the same ID");

    fails(cli, &write, &path)?;
    // Nobody waits for the end of a VM that is thrown away.
    cli.until("the VMs of commands are gone", || Ok(cli.run(["ps", "-aq"])?.is_empty()))?;
    let pruned = cli.run(["image", "prune"])?;
    ensure!(pruned.contains("forgot 6 build steps"), "prune said: {pruned}");
    ensure!(cli.run(["run", "web", "--", "cat", "/srv/last"])? == "new\n", "prune took what is needed");
    Ok(())
}

/// A step that fails, and one that takes too long, leave what was done before.
fn fails(cli: &Cli<'_>, write: &dyn Fn(&str) -> Result<()>, path: &str) -> Result<()> {
    write("echo said; exit 7")?;
    let output = cli.output(&["image", "build", "-f", path])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let named = said.contains("    said\n") && said.contains("web.toml:") && said.contains("exit code 7");
    ensure!(output.status.code() == Some(1) && named, "a step that fails said: {said}");
    write("sleep 1000\"\ntimeout = \"2s")?;
    let output = cli.output(&["image", "build", "-f", path])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("longer than its 2 s"), "a slow step said: {said}");
    write("true")?;
    let again = told(cli, &["image", "build", "-f", path])?;
    ensure!(again.matches("… cached").count() == 3, "after failures a build said: {again}");
    write(
        "sha256sum /proc/sys/kernel/random/boot_id; cmp /proc/sys/kernel/random/boot_id /srv/boot; echo new > /srv/last",
    )?;
    told(cli, &["image", "build", "-f", path]).map(drop)
}

/// Two VMs of one warm image are two machines.
fn clones_differ(cli: &Cli<'_>) -> Result<()> {
    let who = "cat /proc/sys/kernel/hostname /proc/sys/kernel/random/uuid; cat /etc/machine-id";
    let one = cli.run(["run", "--name", "one", "--rm", "web", "--", "sh", "-c", who])?;
    let two = cli.run(["run", "--name", "two", "--rm", "web", "--", "sh", "-c", who])?;
    let same = one.lines().zip(two.lines()).filter(|(one, two)| one == two).count();
    ensure!(
        one.starts_with("one\n") && two.starts_with("two\n") && same == 0,
        "two VMs are {one:?} and {two:?}"
    );
    Ok(())
}

/// Commands in VMs that are there for them alone.
fn commands(cli: &Cli<'_>) -> Result<()> {
    // Ctrl-C is the command's, and its end the VM's.
    let words = ["run", "web", "--", "sh", "-c", "echo begun; exec sleep 1000"];
    let mut child = cli.command(words).stdout(Stdio::piped()).spawn().context("cannot run skiff")?;
    begun(&mut child)?;
    signal(&child, libc::SIGINT);
    let status = child.wait().context("waiting for skiff")?;
    ensure!(status.code() == Some(130), "a command that was interrupted ended with {status}");
    // Of one in the background the exit code is kept.
    cli.run(["run", "-d", "--name", "job", "web", "--", "sh", "-c", "echo worked; exit 7"])?;
    let output = cli.output(&["wait", "job"])?;
    ensure!(
        output.status.code() == Some(7) && output.stdout == b"7\n",
        "a command's VM was waited for: {output:?}"
    );
    let status = cli.status("job")?;
    ensure!(status.contains("Finished (7)"), "ps shows {status:?}");
    ensure!(cli.run(["logs", "job"])?.contains("worked"), "the log has not what the command printed");
    // Started again, it does it again.
    cli.run(["start", "job"])?;
    let output = cli.output(&["wait", "job"])?;
    ensure!(output.status.code() == Some(7), "a command's VM that was started again: {output:?}");
    ensure!(cli.run(["logs", "job"])?.matches("worked").count() == 2, "the command was not run again");
    cli.run(["rm", "job"])?;
    // A VM that was only to be there for a command is not left by a front end that was killed.
    let words = ["run", "--rm", "--name", "left", "web", "--", "sh", "-c", "echo begun; exec sleep 1000"];
    let mut child = cli.command(words).stdout(Stdio::piped()).spawn().context("cannot run skiff")?;
    begun(&mut child)?;
    signal(&child, libc::SIGKILL);
    child.wait().context("waiting for skiff")?;
    cli.until("VMs without a front end are gone", || Ok(cli.run(["ps", "-aq"])?.is_empty()))
}

/// Waits until the command of `child` has said so.
fn begun(child: &mut Child) -> Result<()> {
    let mut line = [0; 6];
    child.stdout.as_mut().context("no pipe")?.read_exact(&mut line).context("the command says nothing")?;
    ensure!(&line == b"begun\n", "the command said {line:?}");
    Ok(())
}

/// What it says on standard error.
///
/// # Errors
/// When it fails.
pub fn told(cli: &Cli<'_>, arguments: &[&str]) -> Result<String> {
    let output = cli.output(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{arguments:?} failed: {said}");
    Ok(said)
}
