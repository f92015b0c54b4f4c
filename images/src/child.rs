//! [`Running`]: a program that was started for a while, with all that it starts itself. None of them outlives this process where that can be
//! helped: who ends of a signal ends them first ([`end_all`]).
//!
//! Each is the leader of a process group of its own, so that a signal to it reaches its children too. A terminal's Ctrl-C does not reach it.

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, test_kill_process_group, waitid,
};

/// What a program has to clean up in, if it is asked to end.
const CLEANING: Duration = Duration::from_secs(10);
/// What a program that was killed is waited for, at most.
const DYING: Duration = Duration::from_secs(2);
/// How often it is looked whether a group is gone.
const NAP: Duration = Duration::from_millis(2);

/// All that run.
static ALL: Mutex<All> = Mutex::new(All { groups: Vec::new(), over: false });
/// One of them is gone.
static GONE: Condvar = Condvar::new();

struct All {
    groups: Vec<Group>,
    /// This process ends: nothing is started any more.
    over: bool,
}

struct Group {
    id: Pid,
    ending: Ending,
    /// Whether the ID is surely its own: the leader has not been waited for.
    sure: bool,
}

/// How a program is ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It leaves nothing that matters.
    Kill,
    /// It is asked to, and given time to take away what nobody else can.
    Ask,
}

/// It is killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    id: Pid,
}

/// Starts a program. What reads from it comes to an end when it does.
pub fn start(command: &mut Command, ending: Ending) -> io::Result<Running> {
    // It is known as soon as it is there.
    let mut all = unless_over(all());
    let child = command.process_group(0).spawn()?;
    let id = Pid::from_child(&child);
    all.groups.push(Group { id, ending, sure: true });
    Ok(Running { child, id })
}

impl Running {
    /// Its standard output and standard error, if they are piped and nobody has taken them.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for its end. If this process ends meanwhile, of a signal, this does not return: what comes of the program is nobody's business then.
    pub fn end(mut self) -> io::Result<ExitStatus> {
        self.wait()
    }

    /// Waits for its end, and for all that it says until then.
    pub fn output(mut self) -> io::Result<Output> {
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let complaints = thread::spawn(move || read(stderr));
        let stdout = read(stdout);
        let status = self.end()?;
        Ok(Output { status, stdout, stderr: complaints.join().unwrap_or_default() })
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        // Its ID stays its own until it is taken from the list.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(self.id), options).is_err_and(|errno| errno == Errno::INTR) {}
        let status = {
            let mut all = all();
            let _ = kill_process_group(self.id, Signal::KILL);
            all.groups.iter_mut().filter(|group| group.id == self.id).for_each(|group| group.sure = false);
            self.child.wait()
        };
        // Its children have died as well, but may not be gone. In some containers nobody ever waits for them.
        let since = Instant::now();
        while test_kill_process_group(self.id).is_ok() && since.elapsed() < DYING / 2 {
            thread::sleep(NAP);
        }
        let mut all = all();
        all.groups.retain(|group| group.id != self.id);
        GONE.notify_all();
        drop(unless_over(all));
        status
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let known = all().groups.iter().any(|group| group.id == self.id);
        if known {
            // Nobody has waited for it yet.
            let _ = kill_process_group(self.id, Signal::KILL);
            let _ = self.wait();
        }
    }
}

/// Ends all that run, and waits for that, but not for ever. This process is about to end of a signal: nothing is started any more, and who
/// waits for a program waits until then.
pub fn end_all() {
    let mut all = all();
    all.over = true;
    for group in all.groups.iter().filter(|group| group.sure) {
        let signal = if group.ending == Ending::Ask { Signal::TERM } else { Signal::KILL };
        let _ = kill_process_group(group.id, signal);
    }
    all = gone(all, CLEANING);
    for group in all.groups.iter().filter(|group| group.sure) {
        let _ = kill_process_group(group.id, Signal::KILL);
    }
    drop(gone(all, DYING));
}

/// If this process ends, it does so in here.
fn unless_over(all: MutexGuard<'_, All>) -> MutexGuard<'_, All> {
    GONE.wait_while(all, |all| all.over).unwrap_or_else(PoisonError::into_inner)
}

fn gone(all: MutexGuard<'_, All>, limit: Duration) -> MutexGuard<'_, All> {
    let waited = GONE.wait_timeout_while(all, limit, |all| !all.groups.is_empty());
    waited.unwrap_or_else(PoisonError::into_inner).0
}

fn all() -> MutexGuard<'static, All> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read(from: Option<impl Read>) -> Vec<u8> {
    let mut all = Vec::new();
    if let Some(mut from) = from {
        // What cannot be read has not been said.
        let _ = from.read_to_end(&mut all);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;

    use super::*;

    fn shell(script: &str) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        start(&mut command, Ending::Kill).unwrap()
    }

    #[test]
    fn what_it_says_and_how_it_ends_is_told() {
        let output = shell("echo one; echo two >&2; exit 3").output().unwrap();
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"one\n"[..], &b"two\n"[..]));
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn no_child_of_it_outlives_it() {
        // The pipe has an end when nobody has it open any more.
        let lines = |script: &str, drops: bool| {
            let mut running = shell(script);
            let mut stdout = BufReader::new(running.child().stdout.take().unwrap());
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            if drops {
                drop(running)
            } else {
                assert!(running.end().unwrap().success())
            }
            let mut rest = String::new();
            stdout.read_to_string(&mut rest).unwrap();
            assert_eq!((line.as_str(), rest.as_str()), ("ready\n", ""));
        };
        lines("sleep 1000 & echo ready", false);
        lines("sleep 1000 & echo ready; wait", true);
    }
}
