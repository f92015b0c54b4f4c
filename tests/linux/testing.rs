//! `skiff test` with an image made by hand: the tests' own initrd with the agent, which is ready seconds after a boot. Guests that pass, fail, hang,
//! panic, lose their agent and run out of memory are told apart; what failed can be entered.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

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
env.CASE = ["pass", "fail", "hang", "panic", "lost", "oom"]
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
    lost) killall -9 skiff-agent; sleep 1000 ;;
    oom) echo 1000 > /proc/self/oom_score_adj; echo f > /proc/sysrq-trigger; sleep 1000 ;;
esac
"#;

/// All of it.
///
/// # Errors
/// What is not as it should be.
pub fn testing(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = Cli::new(skiff, dir)?;
    let tests = Tests::new(&cli, kernel, dir, &[("skiff-test.toml", FILE), ("case", CASE)])?;
    tests.told_apart()?;
    tests.entered()?;
    tests.crashed()?;
    tests.warm()?;
    let pruned = cli.run(["image", "prune"])?;
    ensure!(pruned.contains("forgot 1 snapshots of tests"), "prune said: {pruned}");
    cli.run(["rm", "--snapshots", "failed-tiny-1-CASE-fail-1"])?;
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

/// A project with tests, and the image that they are run on.
pub struct Tests<'a> {
    pub cli: &'a Cli<'a>,
    pub project: PathBuf,
}

impl<'a> Tests<'a> {
    /// With these files.
    ///
    /// # Errors
    /// When the image cannot be made, or a file not be written.
    pub fn new(cli: &'a Cli<'a>, kernel: &Kernel, dir: &Path, files: &[(&str, &str)]) -> Result<Self> {
        let project = dir.join("project");
        fs::create_dir(&project)?;
        for (name, content) in files {
            fs::write(project.join(name), content)?;
        }
        image(cli, kernel, dir)?;
        Ok(Self { cli, project })
    }

    /// `skiff test` with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
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

    /// A file of the results of this case.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn result(&self, case: &str, file: &str) -> Result<String> {
        let path = self.project.join(format!("skiff-test/tiny-1-CASE-{case}/{file}"));
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
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
            ("lost", "AGENT LOST", "broke"),
            ("oom", "OUT OF MEMORY", "Killed process"),
        ] {
            let start = format!("tiny:1 CASE={case} ");
            let line = table.lines().find(|line| line.starts_with(&start)).unwrap_or_default();
            ensure!(line.contains(result) && line.contains(reason), "{case} is told as {line:?}: {all}");
            ensure!(self.result(case, "result.json")?.contains("\"verdict\""), "{case} has no result");
            let enter = match case {
                "panic" => format!("skiff start failed-tiny-1-CASE-{case}-1"),
                _ => format!("skiff run --from failed-tiny-1-CASE-{case}-1@failed -it sh"),
            };
            ensure!(table.contains(&enter) != (case == "pass"), "{case} is kept or not: {all}");
        }
        ensure!(self.result("panic", "console.log")?.contains("Kernel panic"), "the console's log is lost");
        ensure!(self.result("fail", "artifacts/said")? == "fail\n", "the artifact is lost");
        let xml = fs::read_to_string(self.project.join("junit.xml"))?;
        ensure!(xml.contains("tests=\"6\"") && xml.contains("failures=\"5\""), "JUnit's XML says {xml}");
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

    /// A guest whose kernel has panicked is there as it was then, with what it said; and its disk can be booted.
    fn crashed(&self) -> Result<()> {
        let vm = "failed-tiny-1-CASE-panic-1";
        let status = self.cli.status(vm)?;
        ensure!(status.contains("Panicked"), "the guest that panicked is listed as {status:?}");
        ensure!(self.cli.run(["logs", vm])?.contains("sysrq triggered crash"), "what it said is lost");
        // From there it goes on to say that this was all.
        let goes_on = self.cli.run(["run", "-d", "--name", "crashed", "--from", &format!("{vm}@failed")]);
        self.cli.told(goes_on)?;
        let end = "---[ end Kernel panic";
        self.cli.until("it goes on", || Ok(self.cli.run(["logs", "crashed"])?.contains(end)))?;
        self.cli.run(["rm", "-f", "crashed"])?;
        self.cli.run(["start", vm])?;
        self.cli.run(["wait", "--ready", "--timeout", "120", vm])?;
        ensure!(self.cli.run(["exec", vm, "uname"])? == "Linux\n", "what was booted runs no command");
        self.cli.run(["rm", "-f", "--snapshots", vm])?;
        Ok(())
    }

    /// The second run boots nothing: it is the same boot, and takes less than half of what one takes that begins anew.
    fn warm(&self) -> Result<()> {
        let boot = self.result("pass", "output.log")?;
        let (said, warm) = self.passes(&["--filter", "pass"])?;
        ensure!(said.contains("warm, from ") && !said.contains("] boot …"), "the second run said {said}");
        ensure!(self.result("pass", "output.log")? == boot, "the second run was of another boot");
        let (said, fresh) = self.passes(&["--filter", "pass", "--fresh"])?;
        ensure!(said.contains("to be made anew") && said.contains("] boot …"), "a fresh run said {said}");
        ensure!(self.result("pass", "output.log")? != boot, "the fresh run was of the same boot");
        println!("a warm test took {warm:.1?}, a fresh one {fresh:.1?}");
        ensure!(warm * 2 < fresh, "a warm test takes {warm:?}, a fresh one {fresh:?}");
        Ok(())
    }

    /// What a run says that passes, and how long it takes.
    fn passes(&self, arguments: &[&str]) -> Result<(String, Duration)> {
        let begin = Instant::now();
        let (output, table, said) = self.output(arguments)?;
        ensure!(output.status.success(), "skiff test {arguments:?} failed: {table}\n{said}");
        Ok((said, begin.elapsed()))
    }
}
