//! `skiff test` with an image made by hand: the tests' own initrd with the agent, which is ready seconds after a boot. Guests that pass, fail, hang,
//! panic and run out of memory are told apart; what failed can be entered; nothing is left of the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cli::Cli;
use crate::exec::with_agent;
use crate::vm::Kernel;

/// What is tested.
const FILE: &str = r#"
on = ["tiny:1"]
command = ["sh", "/t/case"]
timeout = "10s"
jobs = 2
artifacts = ["/t/said"]

[[setup]]
copy = ["case", "/t/case"]

[[setup]]
run = "cat /proc/sys/kernel/random/boot_id > /t/boot"

[matrix]
memory = ["256M"]
env.CASE = ["pass", "fail", "hang", "panic", "oom"]
"#;

/// What each guest does. The kernel is told to kill for want of memory: an emulated guest would take long to have none.
const CASE: &str = r#"
cat /t/boot
cmp /t/boot /proc/sys/kernel/random/boot_id || exit 99
echo "$CASE" > /t/said
case $CASE in
    pass) exit 0 ;;
    fail) exit 3 ;;
    hang) echo hanging; sleep 1000 ;;
    panic) echo c > /proc/sysrq-trigger; sleep 1000 ;;
    oom) echo 1000 > /proc/self/oom_score_adj; echo f > /proc/sysrq-trigger; sleep 1000 ;;
esac
"#;

/// All of it.
///
/// # Errors
/// What is not as it should be.
pub fn testing(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = Cli::new(skiff, dir)?;
    let project = dir.join("project");
    fs::create_dir(&project)?;
    fs::write(project.join("skiff-test.toml"), FILE)?;
    fs::write(project.join("case"), CASE)?;
    image(&cli, kernel, dir)?;
    let tests = Tests { cli: &cli, project };
    tests.told_apart()?;
    tests.entered()?;
    tests.warm()?;
    tests.interrupted()?;
    tests.orphaned()?;
    let pruned = cli.run(["image", "prune"])?;
    ensure!(pruned.contains("forgot 1 snapshots of tests"), "prune said: {pruned}");
    tests.cli.run(["rm", "--snapshots", "failed-tiny-1-CASE-fail-1"])?;
    Ok(())
}

/// An image of the tests' initrd with the agent behind it, as files of the store: it has no file system, and needs none.
fn image(cli: &Cli<'_>, kernel: &Kernel, dir: &Path) -> Result<()> {
    let initrd = with_agent(cli, kernel, dir)?;
    let disk = dir.join("empty");
    fs::write(&disk, vec![0; 1 << 20])?;
    let images = dir.join("state/data/skiff/images");
    for part in ["blobs", "manifests", "names"] {
        fs::create_dir_all(images.join(part))?;
    }
    let blob = |path: &Path| -> Result<String> {
        let (digest, size) = (digest(path)?, fs::metadata(path)?.len());
        fs::copy(path, images.join(format!("blobs/sha256-{digest}")))?;
        Ok(format!("{{\"digest\":\"sha256:{digest}\",\"size\":{size}}}"))
    };
    let (kernel, initrd, disk) = (blob(Path::new(&kernel.image()))?, blob(Path::new(&initrd))?, blob(&disk)?);
    let manifest = format!(
        "{{\"schema\":1,\"os\":\"tiny\",\"created-ms\":1,\"source\":{{\"kind\":\"rootfs\"}},\"kernel\":{kernel},\"initrd\":{initrd},\
         \"cmdline\":\"quiet skiff.do=agent,idle\",\"disk\":{{\"layers\":[{disk}],\"size\":1048576,\"grows-to\":1048576}},\
         \"agent\":\"service\",\"defaults\":{{}}}}"
    );
    let path = dir.join("manifest");
    fs::write(&path, manifest)?;
    let id = digest(&path)?;
    fs::copy(&path, images.join(format!("manifests/sha256-{id}")))?;
    fs::write(images.join("names/tiny:1"), format!("sha256:{id}"))?;
    Ok(())
}

fn digest(path: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(path).output().context("cannot run sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split_whitespace().next().context("sha256sum says nothing")?.to_owned())
}

struct Tests<'a> {
    cli: &'a Cli<'a>,
    project: PathBuf,
}

impl Tests<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.cli.command([&["test"], arguments].concat());
        command.current_dir(&self.project);
        command
    }

    fn output(&self, arguments: &[&str]) -> Result<(Output, String, String)> {
        let output = self.command(arguments).output().context("cannot run skiff")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Ok((output, stdout, stderr))
    }

    fn result(&self, case: &str, file: &str) -> Result<String> {
        let path = self.project.join(format!("skiff-test/tiny-1-CASE-{case}/{file}"));
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// VMs, layers and snapshots: what is to be as it was.
    fn there(&self) -> Result<String> {
        let names = |path: &Path| -> Result<Vec<String>> {
            let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
            let mut names = Vec::new();
            for entry in entries {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        };
        let layers = self.cli.layers();
        let snapshots = layers.with_file_name("snapshots");
        Ok(format!("{} {:?} {:?}", self.cli.run(["ps", "-aq"])?, names(&layers)?, names(&snapshots)?))
    }

    /// The first run boots once, and says of each guest what it came to.
    fn told_apart(&self) -> Result<()> {
        let (output, table, said) = self.output(&["--junit", "junit.xml", "--json", "all.json"])?;
        let all = format!("{table}\n{said}");
        ensure!(output.status.code() == Some(1), "it ended with {}: {all}", output.status);
        ensure!(said.matches("] boot …").count() == 1, "not one boot: {all}");
        for (case, result, reason) in [
            ("pass", "passed", ""),
            ("fail", "FAILED", "exit code 3"),
            ("hang", "TIMED OUT", "not done after 10 s"),
            ("panic", "PANICKED", "Kernel panic - not syncing: sysrq triggered crash"),
            ("oom", "OUT OF MEMORY", "Killed process"),
        ] {
            let start = format!("tiny:1 CASE={case} ");
            let line = table.lines().find(|line| line.starts_with(&start)).unwrap_or_default();
            ensure!(line.contains(result) && line.contains(reason), "{case} is told as {line:?}: {all}");
            ensure!(self.result(case, "result.json")?.contains("\"verdict\""), "{case} has no result");
            let kept = format!("skiff run --from failed-tiny-1-CASE-{case}-1@failed -it sh");
            ensure!(
                table.contains(&kept) != matches!(case, "pass" | "panic"),
                "{case} is kept or not: {all}"
            );
        }
        ensure!(table.contains("no guest is kept, for its VM has ended"), "nobody says why: {all}");
        ensure!(self.result("panic", "console.log")?.contains("Kernel panic"), "the console's log is lost");
        ensure!(self.result("fail", "artifacts/said")? == "fail\n", "the artifact is lost");
        let xml = fs::read_to_string(self.project.join("junit.xml"))?;
        ensure!(xml.contains("tests=\"5\"") && xml.contains("failures=\"4\""), "JUnit's XML says {xml}");
        let json = fs::read_to_string(self.project.join("all.json"))?;
        ensure!(json.contains("\"verdict\": \"out-of-memory\""), "the JSON says {json}");
        Ok(())
    }

    /// What failed is as it was then, by the line that was printed.
    fn entered(&self) -> Result<()> {
        let point = "failed-tiny-1-CASE-hang-1@failed";
        let found =
            self.cli.run(["run", "--from", point, "sh", "-c", "cat /t/said; ps | grep -c 'sleep [1]000'"])?;
        ensure!(found == "hang\n1\n", "the guest that hung has {found:?}");
        ensure!(
            self.cli.run(["ps", "-a"])?.contains("failed-tiny-1-CASE-oom-1"),
            "what is kept is not listed"
        );
        Ok(())
    }

    /// The second run boots nothing: it is the same boot.
    fn warm(&self) -> Result<()> {
        let boot = self.result("pass", "output.log")?;
        let (output, table, said) = self.output(&["--filter", "pass"])?;
        ensure!(output.status.success(), "the second run failed: {table}\n{said}");
        ensure!(said.contains("warm, from ") && !said.contains("] boot …"), "the second run said {said}");
        ensure!(self.result("pass", "output.log")? == boot, "the second run was of another boot");
        Ok(())
    }

    /// Starts the guest that hangs, and waits until it does.
    fn hanging(&self) -> Result<Child> {
        // What was said before is not to be taken for what this one says.
        fs::remove_dir_all(self.project.join("skiff-test")).context("there are no results")?;
        let mut command = self.command(&["--filter", "hang", "--timeout", "10m"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        self.cli.until("the guest hangs", || {
            Ok(self.result("hang", "output.log").is_ok_and(|log| log.contains("hanging")))
        })?;
        Ok(child)
    }

    /// Ctrl-C leaves nothing.
    fn interrupted(&self) -> Result<()> {
        self.cli.run(["system", "prune"])?;
        let before = self.there()?;
        let mut child = self.hanging()?;
        ensure!(self.there()? != before, "there is no guest that hangs");
        signal(&child, libc::SIGINT);
        let status = child.wait()?;
        ensure!(status.code() == Some(130), "Ctrl-C ended it with {status}");
        let after = self.there()?;
        ensure!(after == before, "Ctrl-C has left something:\n{before}\n{after}");
        Ok(())
    }

    /// Nor does it when it is killed.
    fn orphaned(&self) -> Result<()> {
        let before = self.there()?;
        let mut child = self.hanging()?;
        signal(&child, libc::SIGKILL);
        child.wait()?;
        self.cli.until("nothing is left", || Ok(self.there()? == before))
    }
}

fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).unwrap_or(0);
    // SAFETY: touches no memory; the process is a child of this one that nobody has waited for.
    unsafe { libc::kill(pid, signal) };
}
