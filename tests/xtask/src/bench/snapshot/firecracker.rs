//! The same work by Firecracker, through its API socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::{Bench, median};
use super::{MIB, SETTLE, occupied};
use crate::tool;

/// Firecracker, if it is on PATH.
pub struct Firecracker<'a> {
    bench: &'a Bench,
}

/// A running Firecracker.
struct Machine {
    child: Child,
    socket: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Machine {
    fn start(dir: &Path) -> Result<Self> {
        let socket = dir.join("firecracker.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("firecracker");
        command.args(["--level", "Off", "--api-sock"]).arg(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let machine = Self { child: command.spawn().context("cannot run firecracker")?, socket };
        let start = Instant::now();
        while UnixStream::connect(&machine.socket).is_err() {
            ensure!(start.elapsed() < Duration::from_secs(5), "firecracker does not listen");
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(machine)
    }

    /// One request. Returns how long the answer took.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Duration> {
        let mut stream = UnixStream::connect(&self.socket).context("cannot reach firecracker")?;
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let start = Instant::now();
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()))?;
        let mut answer = [0; 4096];
        let count = stream.read(&mut answer).context("firecracker does not answer")?;
        let took = start.elapsed();
        let answer = String::from_utf8_lossy(&answer[..count]);
        ensure!(answer.starts_with("HTTP/1.1 20"), "firecracker refuses {path}: {answer}");
        Ok(took)
    }

    fn output(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().context("there is no pipe")
    }
}

impl<'a> Firecracker<'a> {
    pub fn found(bench: &'a Bench) -> Option<Self> {
        tool::find("firecracker").map(|_| Self { bench })
    }

    fn boot(&self, guest: &str, mebibytes: u32, cmdline: &str) -> Result<Machine> {
        let machine = Machine::start(&self.bench.work)?;
        let config = json!({ "vcpu_count": 1, "mem_size_mib": mebibytes, "track_dirty_pages": true });
        machine.ask("PUT", "/machine-config", &config)?;
        let source = json!({ "kernel_image_path": self.bench.guest(guest), "boot_args": cmdline });
        machine.ask("PUT", "/boot-source", &source)?;
        machine.ask("PUT", "/actions", &json!({ "action_type": "InstanceStart" }))?;
        Ok(machine)
    }

    /// Its guest is paused for all of it.
    fn snapshot(&self, machine: &Machine, kind: &str) -> Result<Duration> {
        let [state, memory] = self.files();
        let paused = Instant::now();
        machine.ask("PATCH", "/vm", &json!({ "state": "Paused" }))?;
        let what = json!({ "snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory });
        machine.ask("PUT", "/snapshot/create", &what)?;
        machine.ask("PATCH", "/vm", &json!({ "state": "Resumed" }))?;
        Ok(paused.elapsed())
    }

    fn files(&self) -> [PathBuf; 2] {
        ["state", "memory"].map(|name| self.bench.work.join("firecracker").join(name))
    }

    fn empty_files(&self) -> Result<PathBuf> {
        let dir = self.bench.work.join("firecracker");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// The pause of a first snapshot and of the next, in milliseconds, and the size of the first in MiB.
    pub fn idle(&self, rounds: usize) -> Result<[f64; 3]> {
        let (mut full, mut diff, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let dir = self.empty_files()?;
            let machine = self.boot("testguest", 1024, "test=idle")?;
            std::thread::sleep(SETTLE);
            full.push(self.snapshot(&machine, "Full")?.as_secs_f64() * 1e3);
            sizes.push(occupied(&dir)? / MIB);
            diff.push(self.snapshot(&machine, "Diff")?.as_secs_f64() * 1e3);
        }
        Ok([median(&full), median(&diff), median(&sizes)])
    }

    /// From the request to load, on a process that waits for it, to the guest's next byte, in milliseconds.
    pub fn restore(&self, mebibytes: u32, rounds: usize) -> Result<f64> {
        self.empty_files()?;
        let machine = self.boot("memguest", mebibytes, "span=64 dot=100 say=0")?;
        std::thread::sleep(SETTLE);
        self.snapshot(&machine, "Full")?;
        drop(machine);
        let [state, memory] = self.files();
        let backend = json!({ "backend_type": "File", "backend_path": memory });
        let what = json!({ "snapshot_path": state, "mem_backend": backend, "resume_vm": true });
        let mut times = Vec::new();
        for _ in 0..rounds {
            let mut machine = Machine::start(&self.bench.work)?;
            let mut output = machine.output()?;
            let start = Instant::now();
            machine.ask("PUT", "/snapshot/load", &what)?;
            output.read_exact(&mut [0]).context("a restored guest printed nothing")?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(median(&times))
    }
}
