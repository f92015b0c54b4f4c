//! A user with VMs, snapshots and layers of their own, who types `skiff` commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::machine::{guest, skiff};

/// How long anything may take. A busy machine, or one in software emulation, takes longer than a test needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user. When it is dropped, none of their VMs runs any more and all files are gone.
#[derive(Debug)]
pub struct User {
    home: PathBuf,
}

impl User {
    /// A new one, whose files are in a directory with `name` in its name.
    ///
    /// # Panics
    /// If that cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let home = std::env::temp_dir().join(format!("skiff-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&home);
        fs::create_dir_all(&home).unwrap_or_else(|error| panic!("{}: {error}", home.display()));
        Self { home }
    }

    /// A directory for the test's own files.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Where snapshots and layers are.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.home.join("data/skiff")
    }

    /// `skiff`, with nothing said yet.
    #[must_use]
    pub fn skiff(&self) -> Command {
        let mut command = Command::new(skiff());
        command.env("XDG_STATE_HOME", self.home.join("state")).env("XDG_DATA_HOME", self.home.join("data"));
        command.env_remove("SKIFF_LOG").stdin(Stdio::null());
        command
    }

    /// Types a command, and waits for its end, however that is.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn output(&self, words: &[&str]) -> Output {
        self.skiff().args(words).output().unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// Types a command that must succeed, and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skiff {}: {}: {said}{complained}", words.join(" "), output.status);
        said
    }

    /// Types a command that must fail, and returns what it says of that.
    ///
    /// # Panics
    /// If it succeeds.
    #[must_use]
    pub fn refused(&self, words: &[&str]) -> String {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "skiff {} was not refused: {said}", words.join(" "));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Starts a VM with a bare-metal guest in the background: `how` is what else `skiff run` is told.
    ///
    /// # Panics
    /// If that fails.
    pub fn start(&self, name: &str, kernel: &str, cmdline: &str, how: &[&str]) {
        let kernel = guest(kernel);
        let kernel = kernel.to_str().unwrap_or_default();
        let what = ["run", "-d", "--name", name, "--kernel", kernel, "--cmdline", cmdline];
        self.run(&[&what[..], how].concat());
    }

    /// All that is kept of what the VM's guest has printed.
    #[must_use]
    pub fn said(&self, name: &str) -> String {
        self.run(&["logs", name])
    }

    /// Waits until `holds`, of all that the guest has printed, and returns that.
    ///
    /// # Panics
    /// If it never does, or a test of the guest's fails.
    pub fn wait(&self, name: &str, what: &str, mut holds: impl FnMut(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let said = self.said(name);
            assert!(!said.contains("FAIL"), "{name}: {}", tail(&said));
            if holds(&said) {
                return said;
            }
            assert!(start.elapsed() < PATIENCE, "{name} never {what}: {}", tail(&said));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the guest has printed `text`.
    ///
    /// # Panics
    /// If it never does, or a test of the guest's fails.
    pub fn wait_for(&self, name: &str, text: &str) -> String {
        self.wait(name, &format!("said {text:?}"), |said| said.contains(text))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Ok(names) = self.skiff().args(["ps", "-a", "-q"]).output() {
            let names = String::from_utf8_lossy(&names.stdout).into_owned();
            for name in names.split_whitespace() {
                // One that a failed test left behind may be in any state.
                let _ = self.skiff().args(["rm", "--force", "--snapshots", name]).output();
            }
        }
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.home);
        }
    }
}

/// The last lines of what a guest said.
fn tail(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
