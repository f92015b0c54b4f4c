//! One run of `skiff run` as a user would start it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// An emulated guest on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(180);

/// A kernel to run.
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    /// Its files' directory.
    pub dir: &'a Path,
    /// How its guest's devices are reached.
    pub transport: &'static str,
}

impl Kernel<'_> {
    /// The bzImage, as a flag takes it.
    pub fn image(&self) -> String {
        self.dir.join("vmlinuz").display().to_string()
    }

    /// An initrd with everything that network tests need, in `dir`: the kernel unpacks one archive after the other.
    ///
    /// # Errors
    /// When there is none.
    pub fn initrd(&self, dir: &Path) -> Result<String> {
        let name = self.dir.file_name().unwrap_or_default().display().to_string();
        let path = dir.join(format!("initrd-{name}"));
        let mut bytes = Vec::new();
        for part in ["initramfs", "extra"] {
            let part = self.dir.join(part);
            bytes.extend(fs::read(&part).with_context(|| format!("cannot read {}", part.display()))?);
        }
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.display().to_string())
    }
}

/// What to run.
pub struct Vm<'a> {
    pub skiff: &'a Path,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// What the guest is to do: `skiff.do=`.
    pub actions: &'a str,
    pub cpus: u32,
    /// In MiB.
    pub memory: u32,
    pub transport: &'a str,
    /// `--disk` values.
    pub disks: Vec<String>,
    /// The test's own directory.
    pub dir: &'a Path,
}

/// How it went.
pub struct Ended {
    pub code: Option<i32>,
    pub serial: String,
    pub console: String,
    pub stderr: String,
}

impl Vm<'_> {
    /// Runs to the end.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run(&self) -> Result<Ended> {
        let [serial, console, errors] = ["serial", "console", "stderr"].map(|name| self.dir.join(name));
        let stderr = File::create(&errors).with_context(|| format!("cannot write {}", errors.display()))?;
        let mut command = Command::new(self.skiff);
        command.arg("run").arg("--kernel").arg(&self.kernel).arg("--initrd").arg(&self.initrd);
        // A character on the serial port costs an exit, and an emulated one costs the most.
        command.arg("--cmdline").arg(format!("console=ttyS0 quiet skiff.do={}", self.actions));
        command.args(["--cpus", &self.cpus.to_string(), "--memory", &format!("{}M", self.memory)]);
        command.args(["--transport", self.transport]);
        command.args(["--serial", &format!("file={}", serial.display())]);
        command.args(["--console", &format!("file={}", console.display())]);
        for disk in &self.disks {
            command.args(["--disk", disk]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn();
        let mut child = child.with_context(|| format!("cannot run {}", self.skiff.display()))?;
        let code = wait(&mut child)?;
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let ended = Ended {
            code: code.flatten(),
            serial: read(&serial),
            console: read(&console),
            stderr: read(&errors),
        };
        match code {
            Some(_) => Ok(ended),
            None => bail!("not done after {} s{}", PATIENCE.as_secs(), ended.tails()),
        }
    }
}

/// Waits for the end and returns the exit code, if it exited. Nothing is returned when it had to be killed.
fn wait(child: &mut Child) -> Result<Option<Option<i32>>> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().context("waiting for skiff")? {
            return Ok(Some(status.code()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().context("cannot end skiff")?;
    child.wait().context("waiting for skiff")?;
    Ok(None)
}

impl Ended {
    /// Checks the exit code.
    ///
    /// # Errors
    /// When it is another; the message holds what the guest and skiff said last.
    pub fn expect_code(&self, wanted: i32) -> Result<()> {
        if self.code != Some(wanted) {
            let code = self.code.map_or("a signal".into(), |code| format!("code {code}"));
            bail!("skiff ended with {code}, not code {wanted}{}", self.tails());
        }
        Ok(())
    }

    /// The last lines of everything, to print below a failure.
    pub fn tails(&self) -> String {
        let mut text = String::new();
        for (name, said) in [("serial", &self.serial), ("stderr", &self.stderr)] {
            text.push_str(&format!("\n  the end of {name}:"));
            let lines: Vec<&str> = said.lines().map(str::trim_end).collect();
            for line in &lines[lines.len().saturating_sub(25)..] {
                text.push_str("\n    ");
                text.push_str(line);
            }
        }
        text
    }
}
