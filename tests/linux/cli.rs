//! skiff as a user runs it, with a state directory of its own.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::facts::{Fact, Facts};

/// An emulated guest on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(240);

/// A user's skiff.
pub struct Cli<'a> {
    skiff: &'a Path,
    state: PathBuf,
    user: Option<u32>,
}

impl<'a> Cli<'a> {
    /// With its state below `dir`.
    ///
    /// # Errors
    /// When that cannot be made.
    pub fn new(skiff: &'a Path, dir: &Path) -> Result<Self> {
        let state = dir.join("state");
        fs::create_dir(&state).with_context(|| format!("cannot make {}", state.display()))?;
        Ok(Self { skiff, state, user: None })
    }

    /// The same for a user who is not root, if we are.
    ///
    /// # Errors
    /// When the state directory cannot be given away.
    pub fn of_nobody(mut self, dir: &Path) -> Result<Self> {
        const USER: u32 = 1000;
        for path in [&self.state, dir] {
            std::os::unix::fs::chown(path, Some(USER), Some(USER))
                .with_context(|| format!("cannot give away {}", path.display()))?;
        }
        fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666))
            .context("cannot open up /dev/kvm")?;
        self.user = Some(USER);
        Ok(self)
    }

    /// Where its layers are.
    pub fn layers(&self) -> PathBuf {
        self.state.join("data/skiff/layers")
    }

    /// `skiff` with these arguments.
    pub fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = match self.user {
            None => Command::new(self.skiff),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()]);
                command.arg(self.skiff);
                command
            }
        };
        command.args(arguments).env("XDG_STATE_HOME", &self.state).env("HOME", &self.state);
        command.env("XDG_DATA_HOME", self.state.join("data"));
        command.stdin(Stdio::null());
        command
    }

    /// Runs it to its end and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the message holds what it said.
    pub fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Result<String> {
        let arguments: Vec<I> = arguments.into_iter().collect();
        let output = self.output(&arguments)?;
        if !output.status.success() {
            let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("skiff {} failed ({}): {}", words.join(" "), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it to its end, however that is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output<I: AsRef<OsStr>>(&self, arguments: &[I]) -> Result<Output> {
        self.command(arguments).output().context("cannot run skiff")
    }

    /// What the guest of this VM has said so far.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn facts(&self, vm: &str) -> Result<Facts> {
        Ok(Facts::of(&self.run(["logs", vm])?))
    }

    /// Waits until the guest of this VM says `word`.
    ///
    /// # Errors
    /// When it does not, or says that it has a problem.
    pub fn wait_for(&self, vm: &str, word: &str) -> Result<Fact> {
        let start = Instant::now();
        loop {
            let facts = self.facts(vm)?;
            facts.no_problems()?;
            if let Ok(fact) = facts.last(word) {
                return Ok(fact.clone());
            }
            if start.elapsed() > PATIENCE {
                bail!("the guest {vm} did not say '{word}'; the end of its console:{}", self.last_words(vm));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until `holds`.
    ///
    /// # Errors
    /// When it never does, or cannot be told.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !holds()? {
            if start.elapsed() > PATIENCE {
                bail!("it never came that {what}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// What this result is, with what is known of every VM if it is an error.
    ///
    /// # Errors
    /// As said.
    pub fn told<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let list = self.run(["ps", "-a"]).unwrap_or_else(|error| format!("{error:#}"));
            let names = self.run(["ps", "-a", "-q"]).unwrap_or_default();
            let of_vm = |vm| {
                let log = self.state.join("skiff/vms").join(vm).join("vm.log");
                let log = fs::read_to_string(&log).unwrap_or_else(|error| error.to_string());
                let (console, log) = (self.last_words(vm), tail(&log));
                format!("\n  the end of {vm}'s console:{console}\n  and of its vm.log:{log}")
            };
            let vms: String = names.lines().map(of_vm).collect();
            anyhow!("{error:#}\n  the VMs:{}{vms}", tail(&list))
        })
    }

    /// The end of what a VM has printed, to go below a failure.
    fn last_words(&self, vm: &str) -> String {
        tail(&self.run(["logs", vm]).unwrap_or_else(|error| format!("{error:#}")))
    }

    /// One VM's entry of `ps -a`, as JSON text; empty if there is none.
    ///
    /// # Errors
    /// When `ps` fails.
    pub fn status(&self, vm: &str) -> Result<String> {
        let list = self.run(["ps", "-a"])?;
        Ok(list
            .lines()
            .find(|line| line.split_whitespace().next() == Some(vm))
            .unwrap_or_default()
            .to_owned())
    }
}

/// The last lines of a text, each indented.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(25)..].iter();
    tail.map(|line| format!("\n    {}", line.trim_end())).collect()
}

impl Drop for Cli<'_> {
    /// Whatever went wrong, no VM is left.
    fn drop(&mut self) {
        let Ok(names) = self.run(["ps", "-a", "-q"]) else { return };
        for name in names.split_whitespace() {
            let _ = self.output(&["rm", "-f", name]);
        }
    }
}
