//! The box's end: this same program, started by `init.sh` as process 1. It takes a job from the port, runs
//! it with the host's input and output, and sends back its exit code. One thread waits for everything.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::wire::{Frame, Job, Size};
use super::{look, signals, wait};

const CHUNK: usize = 32 * 1024;
/// Input that the command has not taken yet; beyond this the port is left alone.
const INPUT_LIMIT: usize = 256 * 1024;

/// Runs one job and then waits for the host to end the box.
///
/// # Errors
/// When the port does not work. The box ends then, as process 1 does.
pub fn run() -> Result<()> {
    let mut port = open_port().context("cannot open the port to the host")?;
    send(&mut port, &Frame::Hello)?;
    let mut received = Vec::new();
    let job = loop {
        if let Some(Frame::Job(job)) = Frame::take(&mut received)? {
            break job;
        }
        receive(&mut port, &mut received)?;
    };
    let code = match Child::start(&job) {
        Ok(child) => serve(&mut port, received, child)?,
        Err(error) => {
            let text = format!(
                "kvmbox: cannot run {}: {error}\n",
                job.arguments.first().cloned().unwrap_or_default().display()
            );
            send(&mut port, &Frame::Error(text.into_bytes()))?;
            if error.kind() == ErrorKind::NotFound { 127 } else { 126 }
        }
    };
    // The host's root is written through a cache.
    rustix::fs::sync();
    send(&mut port, &Frame::Exit(code))?;
    loop {
        std::thread::park();
    }
}

/// The port is the only one in the box; its name, `/dev/vport<device>p<port>`, depends on the bus. The
/// driver makes it only after it has talked to the device.
fn open_port() -> io::Result<File> {
    let patience = Instant::now() + Duration::from_secs(30);
    loop {
        let names = std::fs::read_dir("/dev")?.flatten().map(|entry| entry.file_name());
        if let Some(name) = names.into_iter().find(|name| name.to_string_lossy().starts_with("vport")) {
            return File::options().read(true).write(true).open(Path::new("/dev").join(name));
        }
        if Instant::now() > patience {
            return Err(ErrorKind::NotFound.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running command and our ends of its input and output.
struct Child {
    pid: Pid,
    input: Option<File>,
    output: Option<File>,
    error: Option<File>,
    /// The master side of the command's terminal, if it has one.
    terminal: Option<OwnedFd>,
    ended: File,
}

impl Child {
    fn start(job: &Job) -> io::Result<Child> {
        let ended = signals::watch_children()?;
        let (program, rest) = job.arguments.split_first().ok_or(ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(rest).current_dir(&job.directory).env_clear();
        for pair in &job.environment {
            let (name, value) = split_variable(pair);
            command.env(name, value);
        }
        command.env("XDG_RUNTIME_DIR", "/run/user/0");
        // VMs have sockets there, which 9p has not.
        command.env("XDG_STATE_HOME", "/run/state").env("XDG_DATA_HOME", "/run/data");
        let overlay = std::env::var_os("BOX_TMP").is_some_and(|kind| kind == "overlay");
        command.env("TMPDIR", if overlay { "/tmp" } else { "/run" });
        match job.terminal {
            Some(size) => Child::on_terminal(command, size, job.error_to_terminal, ended),
            None => Child::on_pipes(command, ended),
        }
    }

    fn on_pipes(mut command: Command, ended: File) -> io::Result<Child> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let file = |fd: OwnedFd| File::from(fd);
        Ok(Child {
            pid: Pid::from_child(&child),
            input: child.stdin.take().map(|pipe| file(pipe.into())),
            output: child.stdout.take().map(|pipe| file(pipe.into())),
            error: child.stderr.take().map(|pipe| file(pipe.into())),
            terminal: None,
            ended,
        }
        .without_blocking())
    }

    fn on_terminal(mut command: Command, size: Size, error_too: bool, ended: File) -> io::Result<Child> {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let slave = rustix::fs::open(
            name,
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        resize(&master, size);
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?);
        command.stderr(if error_too { Stdio::from(slave.try_clone()?) } else { Stdio::piped() });
        // SAFETY: the closure runs between fork and exec and makes system calls only: no allocation, no locks.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(io::stdin())?;
                Ok(())
            })
        };
        let mut child = command.spawn()?;
        Ok(Child {
            pid: Pid::from_child(&child),
            input: Some(master.try_clone()?.into()),
            output: Some(master.try_clone()?.into()),
            error: child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe))),
            terminal: Some(master),
            ended,
        }
        .without_blocking())
    }

    fn without_blocking(self) -> Child {
        for file in [&self.input, &self.output, &self.error].into_iter().flatten() {
            // If this fails, a read or write may wait a little; nothing is lost.
            let _ = rustix::fs::fcntl_setfl(file, OFlags::NONBLOCK);
        }
        self
    }

    /// Reaps whatever has ended: as process 1 we inherit orphans. Returns the command's exit code once
    /// it is among them.
    fn reap(&mut self) -> Option<u8> {
        let _ = self.ended.read(&mut [0; 512]);
        let mut code = None;
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid == self.pid {
                code = Some(exit_code(status));
            }
        }
        code
    }
}

fn exit_code(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}

/// `NAME=value`; the name may start with an equals sign and nothing else.
fn split_variable(pair: &OsString) -> (OsString, OsString) {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = pair.as_bytes();
    let at = bytes.iter().skip(1).position(|byte| *byte == b'=').map_or(bytes.len(), |at| at + 1);
    let value = bytes.get(at + 1..).unwrap_or_default();
    (OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(value.to_vec()))
}

/// Passes input and output until the command has ended and its output is drained.
fn serve(port: &mut File, mut received: Vec<u8>, mut child: Child) -> Result<u8> {
    let mut input = Vec::new();
    let mut input_ends = false;
    loop {
        while let Some(frame) = Frame::take(&mut received)? {
            match frame {
                Frame::Input(bytes) => input.extend(bytes),
                Frame::InputEnd => input_ends = true,
                Frame::Size(size) => child.terminal.iter().for_each(|terminal| resize(terminal, size)),
                Frame::Look => send(port, &Frame::Error(look::programs().into_bytes()))?,
                _ => {}
            }
        }
        if !feed(&mut child.input, &mut input) || (input_ends && input.is_empty()) {
            child.input = None;
            input.clear();
        }
        let port_flags = if input.len() < INPUT_LIMIT { PollFlags::IN } else { PollFlags::empty() };
        let input_flags = if input.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let [port_ready, ended, _, output, error] = wait::ready(
            [
                (Some(port.as_fd()), port_flags),
                (Some(child.ended.as_fd()), PollFlags::IN),
                (child.input.as_ref().map(AsFd::as_fd), input_flags),
                (child.output.as_ref().map(AsFd::as_fd), PollFlags::IN),
                (child.error.as_ref().map(AsFd::as_fd), PollFlags::IN),
            ],
            None,
        )?;
        if !output.is_empty() {
            pass_on(&mut child.output, port, Frame::Output)?;
        }
        if !error.is_empty() {
            pass_on(&mut child.error, port, Frame::Error)?;
        }
        if !ended.is_empty()
            && let Some(code) = child.reap()
        {
            // What others hold open of its output is not waited for.
            while pass_on(&mut child.output, port, Frame::Output)? {}
            while pass_on(&mut child.error, port, Frame::Error)? {}
            return Ok(code);
        }
        if !port_ready.is_empty() {
            receive(port, &mut received)?;
        }
    }
}

/// Writes what the command takes now. Returns false once it takes no more for good.
fn feed(to: &mut Option<File>, input: &mut Vec<u8>) -> bool {
    let Some(file) = to else {
        return false;
    };
    while !input.is_empty() {
        match file.write(input) {
            Ok(written) => drop(input.drain(..written)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// Passes on one chunk of output; at its end, closes `from`. Returns whether there was a chunk.
fn pass_on(from: &mut Option<File>, port: &mut File, frame: fn(Vec<u8>) -> Frame) -> Result<bool> {
    let Some(file) = from else {
        return Ok(false);
    };
    let mut bytes = vec![0; CHUNK];
    match file.read(&mut bytes) {
        Ok(0) => *from = None,
        Ok(length) => {
            bytes.truncate(length);
            send(port, &frame(bytes))?;
            return Ok(true);
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        // The last process on the other side of a terminal has gone.
        Err(_) => *from = None,
    }
    Ok(false)
}

fn resize(terminal: &OwnedFd, size: Size) {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // A wrong size is a nuisance, not a failure.
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

fn send(port: &mut File, frame: &Frame) -> Result<()> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    port.write_all(&bytes).context("writing to the host")
}

fn receive(port: &mut File, received: &mut Vec<u8>) -> Result<()> {
    let mut bytes = [0; CHUNK];
    let length = port.read(&mut bytes).context("reading from the host")?;
    received.extend_from_slice(&bytes[..length]);
    Ok(())
}
