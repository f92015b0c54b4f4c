//! A user with VMs and snapshots of their own, below the bench's directory.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::Bench;
use crate::tool;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What a snapshot took, in microseconds.
pub struct Taken {
    pub pause: f64,
    pub total: f64,
}

/// A user. Dropped, all of it is gone.
pub struct User<'a> {
    bench: &'a Bench,
    home: PathBuf,
}

impl<'a> User<'a> {
    pub fn new(bench: &'a Bench) -> Result<Self> {
        let home = bench.work.join("snapshots");
        if home.exists() {
            fs::remove_dir_all(&home).with_context(|| format!("cannot remove {}", home.display()))?;
        }
        fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
        Ok(Self { bench, home })
    }

    /// Where the files of all snapshots are.
    pub fn snapshots(&self) -> PathBuf {
        self.home.join("data/skiff/snapshots")
    }

    fn skiff(&self) -> Command {
        let mut skiff = Command::new(&self.bench.skiff);
        skiff.env("XDG_STATE_HOME", self.home.join("state")).env("XDG_DATA_HOME", self.home.join("data"));
        skiff.stdin(Stdio::null());
        skiff
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        tool::capture(self.skiff().args(words))
    }

    pub fn start(&self, name: &str, guest: &str, memory: &str, cmdline: &str) -> Result<()> {
        let kernel = self.bench.guest(guest);
        let kernel = kernel.to_str().context("a path is not UTF-8")?;
        self.run(&[
            "run",
            "-d",
            "--name",
            name,
            "--kernel",
            kernel,
            "--memory",
            memory,
            "--cmdline",
            cmdline,
        ])?;
        Ok(())
    }

    /// All that the guest has printed.
    pub fn said(&self, name: &str) -> Result<String> {
        self.run(&["logs", name])
    }

    pub fn wait_for(&self, name: &str, text: &str) -> Result<()> {
        let start = Instant::now();
        while !self.said(name)?.contains(text) {
            ensure!(start.elapsed() < LIMIT, "the guest {name} did not say {text:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The next snapshot: s1, s2, and so on.
    pub fn snapshot(&self, name: &str) -> Result<Taken> {
        let said = self.run(&["snapshot", "create", name, "--json"])?;
        Ok(Taken { pause: number(&said, "pause_us")?, total: number(&said, "total_us")? })
    }

    /// How long a rollback took, in microseconds.
    pub fn roll_back(&self, name: &str, to: &str) -> Result<f64> {
        number(&self.run(&["rollback", name, to, "--json"])?, "us")
    }

    pub fn clones(&self, from: &str, name: &str, count: usize) -> Result<()> {
        self.run(&["clone", from, "--name", name, "-n", &count.to_string(), "-q"]).map(drop)
    }

    /// Runs a throw-away from a snapshot until its guest prints something.
    pub fn restore(&self, from: &str) -> Result<Duration> {
        let mut command = self.skiff();
        command.args(["run", "--from", from]).stdout(Stdio::piped()).stderr(Stdio::null());
        let start = Instant::now();
        let mut child = command.spawn().context("cannot run skiff")?;
        let pipe = child.stdout.take().context("there is no pipe")?;
        let mut fds = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
        let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
        let ready = poll(&mut fds, Some(&limit))? == 1;
        let took = start.elapsed();
        let mut byte = [0];
        let said = ready && rustix::io::read(&pipe, &mut byte)? == 1;
        drop(pipe);
        // The VM's process ends with the one that stands before its terminal.
        child.kill().context("cannot end skiff")?;
        child.wait().context("waiting for skiff")?;
        ensure!(said, "a restored guest printed nothing");
        Ok(took)
    }

    pub fn remove(&self, names: &[&str]) -> Result<()> {
        self.run(&[&["rm", "--force", "--snapshots"], names].concat()).map(drop)
    }

    /// The private memory of these VMs together, in bytes (proc_pid_smaps(5)).
    pub fn private_of(&self, names: &[&str]) -> Result<f64> {
        let list: serde_json::Value = serde_json::from_str(&self.run(&["ps", "--json"])?)?;
        let mut bytes = 0.0;
        for vm in list.as_array().context("ps lists nothing")? {
            if !vm["name"].as_str().is_some_and(|name| names.contains(&name)) {
                continue;
            }
            let pid = vm["pid"].as_u64().context("a VM does not run")?;
            let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("a VM has ended")?;
            let private = rollup.lines().filter(|line| line.starts_with("Private_"));
            let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            bytes += kib.sum::<f64>() * 1024.0;
        }
        ensure!(bytes > 0.0, "none of the VMs runs");
        Ok(bytes)
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        // Whatever went wrong, no VM is left.
        if let Ok(names) = self.run(&["ps", "-a", "-q"]) {
            let names: Vec<&str> = names.split_whitespace().collect();
            if !names.is_empty() {
                let _ = self.remove(&names);
            }
        }
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// A number of a JSON object.
fn number(json: &str, name: &str) -> Result<f64> {
    let value: serde_json::Value = serde_json::from_str(json).with_context(|| format!("no JSON: {json}"))?;
    match value[name].as_f64() {
        Some(number) => Ok(number),
        None => bail!("there is no {name} in {json}"),
    }
}
