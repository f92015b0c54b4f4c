//! The agent as a process of this machine, over Unix sockets.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use agent::frame::Frame;
use agent::message::{Answer, Control, Ended, Exec, Heard, Open, Refusal, Request};
use tempfile::TempDir;

/// It runs until it is dropped.
pub struct Agent {
    pub dir: TempDir,
    process: Child,
}

/// As an init has them, which waits for those that ask it to switch off.
fn block_signals() -> std::io::Result<()> {
    // SAFETY: `all` is a plain set, and the mask is the process's own.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
    Ok(())
}

impl Agent {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let unix = |name: &str| format!("unix:{}", dir.path().join(name).display());
        let mut process = Command::new(env!("CARGO_BIN_EXE_skiff-agent"));
        process.args(["--listen", &unix("agent"), "--link", &unix("link"), "--root"]).arg(dir.path());
        // SAFETY: both calls are async-signal-safe, and `all` lives on the stack.
        unsafe { process.pre_exec(block_signals) };
        let process = process.spawn().unwrap();
        let agent = Self { dir, process };
        while agent.connect().is_err() {
            thread::sleep(Duration::from_millis(2));
        }
        agent
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.path("agent"))
    }

    pub fn is_alive(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// A connection on which `request` has been said.
    pub fn ask(&self, request: &Request) -> UnixStream {
        let mut stream = self.connect().unwrap();
        let open = Open {
            protocol: agent::PROTOCOL,
            version: agent::VERSION.into(),
            request: serde_json::to_value(request).unwrap(),
        };
        Frame::message(&open).unwrap().write(&mut stream).unwrap();
        stream
    }

    /// One on which it has been accepted, too.
    pub fn accepted(&self, request: &Request) -> UnixStream {
        let mut stream = self.ask(request);
        let answer = Frame::read(&mut stream).unwrap().unwrap().read_as::<Answer>().unwrap();
        assert!(matches!(answer, Answer::Accepted { .. }), "{answer:?}");
        stream
    }

    pub fn refused(&self, request: &Request) -> Refusal {
        let mut stream = self.ask(request);
        let answer = Frame::read(&mut stream).unwrap().unwrap().read_as::<Answer>().unwrap();
        match answer {
            Answer::Refused { why, .. } => {
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
                why
            }
            Answer::Accepted { .. } => panic!("{request:?} is accepted"),
        }
    }

    pub fn exec(&self, exec: Exec) -> UnixStream {
        self.accepted(&Request::Exec(exec))
    }

    /// What a shell's command says and how it ends.
    pub fn sh(&self, script: &str) -> Finished {
        finish(self.exec(shell(script)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A shell's command.
pub fn shell(script: &str) -> Exec {
    Exec { argv: vec!["sh".into(), "-c".into(), script.into()], ..Exec::default() }
}

pub fn control(stream: &UnixStream, control: Control) {
    Frame::message(&control).unwrap().write(&mut &*stream).unwrap();
}

pub fn input(stream: &UnixStream, bytes: &[u8]) {
    Frame::Input(bytes.to_vec()).write(&mut &*stream).unwrap();
}

#[derive(Debug)]
pub struct Finished {
    pub output: String,
    pub error: String,
    pub ended: Ended,
}

/// Read to the end.
pub fn finish(mut stream: UnixStream) -> Finished {
    let (mut output, mut error) = (Vec::new(), Vec::new());
    loop {
        match Frame::read(&mut stream).unwrap().expect("a last word") {
            Frame::Output(bytes) => output.extend(bytes),
            Frame::Error(bytes) => error.extend(bytes),
            frame if matches!(frame.read_as(), Ok(Heard::Taken(_))) => {}
            frame => {
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                return Finished {
                    output: text(&output),
                    error: text(&error),
                    ended: frame.read_as().unwrap(),
                };
            }
        }
    }
}

/// Read output until `wanted` is in it.
pub fn until(stream: &mut UnixStream, wanted: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        match Frame::read(stream).unwrap() {
            Some(Frame::Output(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            Some(frame) if matches!(frame.read_as(), Ok(Heard::Taken(_))) => {}
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    seen
}
