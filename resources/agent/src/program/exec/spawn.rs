//! The start of a command: what a login does between `fork` and `exec`.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use agent::message::{Exec, Refusal};

use super::prepare::Plan;
use super::{failed, pty};
use crate::children::Child;
use crate::{limits, power, sys};

/// A command that runs, and our ends of what it reads and writes.
#[derive(Debug)]
pub struct Started {
    pub child: Arc<Child>,
    pub io: Io,
}

/// Our ends.
#[derive(Debug)]
pub enum Io {
    /// It keeps to the guest.
    Detached,
    /// One terminal.
    Terminal(OwnedFd),
    /// A pipe each; no input is an empty one.
    Pipes { input: Option<OwnedFd>, output: OwnedFd, error: OwnedFd },
}

impl Started {
    /// The process.
    pub fn child(&self) -> Arc<Child> {
        Arc::clone(&self.child)
    }
}

/// What a new process does to itself. Failed ones are told apart by adding this times [`STEP`] to the error's number, the only
/// thing that comes back from a process that is not yet the command.
#[derive(Clone, Copy)]
enum Step {
    Session = 1,
    Groups = 2,
    User = 3,
    Directory = 4,
}

const STEP: i32 = 10_000;

/// Start it.
pub fn start(exec: &Exec, plan: &Plan) -> Result<Started, Refusal> {
    let mut command = Command::new(&plan.program);
    command.arg0(&plan.name).args(&plan.args).env_clear().envs(&plan.env);
    let io_failed = |what: &'static str| move |error: io::Error| failed(format!("{what}: {error}"));
    let mut master = None;
    if exec.detach {
        let console = pty::console().map_err(io_failed("the console cannot be opened"))?;
        let error = console.try_clone().map_err(io_failed("the console cannot be opened"))?;
        command.stdin(Stdio::null()).stdout(console).stderr(error);
    } else if let Some(terminal) = &exec.terminal {
        let cannot = "no terminal can be made in the guest";
        let owner = sys::is_root().then_some(plan.user.uid);
        let (ours, theirs) = pty::open(terminal.rows, terminal.columns, owner).map_err(io_failed(cannot))?;
        let [input, output] =
            [theirs.try_clone(), theirs.try_clone()].map(|fd| fd.map_err(io_failed(cannot)));
        command.stdin(input?).stdout(output?).stderr(theirs);
        master = Some(ours);
    } else {
        command.stdin(if exec.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    become_the_user(&mut command, plan, master.is_some())?;
    let (child, mut started) = Child::spawn(&mut command).map_err(|error| refusal(exec, plan, &error))?;
    let io = match (master, started.stdout.take(), started.stderr.take()) {
        (Some(master), ..) => Io::Terminal(master),
        (None, Some(output), Some(error)) => {
            let input = started.stdin.take().map(OwnedFd::from);
            Io::Pipes { input, output: output.into(), error: error.into() }
        }
        (None, ..) => Io::Detached,
    };
    Ok(Started { child, io })
}

fn become_the_user(command: &mut Command, plan: &Plan, terminal: bool) -> Result<(), Refusal> {
    let (uid, gid) = (plan.user.uid, plan.user.gid);
    let root = sys::is_root();
    let me = rustix::process::geteuid().as_raw();
    if !root && uid != me {
        return Err(failed(format!(
            "the agent is not root: it cannot run a command as '{}'",
            plan.user.name
        )));
    }
    let groups = plan.user.groups.clone();
    let cwd = plan.cwd.clone();
    let asked = plan.cwd_is_asked;
    if asked && power::is_init() {
        // As container engines do. If it cannot be made, the command says so when it starts.
        let _ = fs::create_dir_all(OsStr::from_bytes(cwd.as_bytes()));
    }
    let limits = limits::of_commands();
    let enter = move || {
        // SAFETY: system calls on values that were made before the fork. Nothing allocates, locks or touches shared memory.
        unsafe {
            step(Step::Session, libc::setsid())?;
            if terminal {
                step(Step::Session, libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            clean_up(&limits);
            if root {
                step(Step::Groups, libc::setgroups(groups.len(), groups.as_ptr()))?;
                step(Step::Groups, libc::setgid(gid))?;
                step(Step::User, libc::setuid(uid))?;
            }
            if libc::chdir(cwd.as_ptr()) < 0 {
                if asked {
                    step(Step::Directory, -1)?;
                }
                step(Step::Directory, libc::chdir(c"/".as_ptr()))?;
            }
        }
        Ok(())
    };
    // SAFETY: see the closure.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

fn step(step: Step, result: i32) -> io::Result<()> {
    if result >= 0 {
        return Ok(());
    }
    let number = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
    Err(io::Error::from_raw_os_error((step as i32).saturating_mul(STEP).saturating_add(number)))
}

/// What the agent has for itself alone: its protection from being killed for memory, signals, limits, descriptors.
///
/// # Safety
/// For a process between `fork` and `exec`.
unsafe fn clean_up(limits: &libc::rlimit) {
    // SAFETY: calls that are async-signal-safe, on constants and on values that outlive them.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, c"0".as_ptr().cast(), 1);
            libc::close(file);
        }
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        // The agent as init has some blocked, which a command must hear.
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::umask(0o022);
        libc::setrlimit(libc::RLIMIT_NOFILE, limits);
        // Everything is made close-on-exec; this is for what is not, if something ever is not.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

fn refusal(exec: &Exec, plan: &Plan, error: &io::Error) -> Refusal {
    let number = error.raw_os_error().unwrap_or_default();
    let reason = io::Error::from_raw_os_error(number.checked_rem(STEP).unwrap_or_default());
    let program = &plan.program;
    match number.checked_div(STEP).unwrap_or_default() {
        step if step == Step::Session as i32 => failed(format!("no session can be made: {reason}")),
        step if step == Step::Groups as i32 => failed(format!("the groups cannot be taken on: {reason}")),
        step if step == Step::User as i32 => failed(format!("the user cannot be taken on: {reason}")),
        step if step == Step::Directory as i32 => {
            failed(format!("{}: {reason}", exec.cwd.as_deref().unwrap_or("/")))
        }
        _ => match error.kind() {
            ErrorKind::NotFound => {
                Refusal::NotFound(format!("{program}: there is no such command in the guest"))
            }
            ErrorKind::WouldBlock | ErrorKind::OutOfMemory => {
                failed(format!("no process can be made: {error}"))
            }
            _ => Refusal::NotExecutable(format!("{program}: {error}")),
        },
    }
}
