//! A program that runs one test after the other, each when it is told to: `linux-guests --serve`, here or in a box of its own.
//!
//! ```text
//! us     NAME          NAME             (end of its input)
//! it  ready   alive…  ok NAME… ready   alive… FAILED NAME… ready
//! ```
//! `alive` comes all the time. When it does not, the machine that the program is in has hung: emulated ones do so now and then, for
//! good. A guest that hangs is no such thing: its test gives up on it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A machine that says nothing for so long has hung. The program says something four times a minute.
const SILENCE: Duration = Duration::from_secs(180);
/// No test takes so long, whatever its guest does.
const LONGEST: Duration = Duration::from_secs(20 * 60);

/// How a test went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Failed,
    /// Nobody knows: the machine it ran on is of no use any more.
    Lost,
}

/// The program, running.
pub struct Runner {
    child: Child,
    tests: Option<ChildStdin>,
    lines: Receiver<String>,
    /// It has said so since the last test.
    is_ready: bool,
}

impl Runner {
    /// Starts it by this command.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let tests = child.stdin.take();
        let pipe = child.stdout.take().context("there is no pipe")?;
        let (sender, lines) = channel();
        // Ends with the pipe, which something else may hold open.
        std::thread::spawn(move || {
            let lost = |line: Vec<u8>| sender.send(String::from_utf8_lossy(&line).into_owned()).is_err();
            // Nobody listens any more once the program was ended.
            BufReader::new(pipe).split(b'\n').map_while(std::io::Result::ok).any(lost)
        });
        Ok(Self { child, tests, lines, is_ready: false })
    }

    /// Runs the test of this name and shows what comes of it.
    pub fn run(&mut self, name: &str) -> Verdict {
        let start = Instant::now();
        if !self.is_ready && self.until_ready("", start).is_none() {
            return Verdict::Lost;
        }
        self.is_ready = false;
        let told = self.tests.as_mut().is_some_and(|tests| writeln!(tests, "{name}").is_ok());
        match self.until_ready(name, start) {
            Some(verdict) if told => verdict,
            _ => Verdict::Lost,
        }
    }

    /// Shows what it says until it is ready for another test, and returns what it said of the one that is called `name`. Nothing is returned
    /// when that never comes.
    fn until_ready(&mut self, name: &str, start: Instant) -> Option<Verdict> {
        let mut verdict = Verdict::Lost;
        while start.elapsed() < LONGEST {
            match self.lines.recv_timeout(SILENCE).as_deref() {
                Ok("alive") => {}
                Ok("ready") => {
                    self.is_ready = true;
                    return Some(verdict);
                }
                Ok(line) => {
                    println!("{line}");
                    verdict = match line.split_whitespace().next() {
                        Some("ok") if line.contains(name) => Verdict::Passed,
                        Some("FAILED") if line.contains(name) => Verdict::Failed,
                        _ => verdict,
                    };
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }
}

impl Drop for Runner {
    /// Without input the program ends by itself, if it can.
    fn drop(&mut self) {
        self.tests = None;
        let patience = Instant::now() + Duration::from_secs(30);
        while Instant::now() < patience {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(50)),
                _ => return,
            }
        }
        // Not by force: it has processes of its own to end.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of the tests `a`, `b` and `c` where this shell script runs them.
    fn verdicts(script: &str) -> Vec<Verdict> {
        let mut runner = Runner::start(Command::new("sh").args(["-c", script])).unwrap();
        ["a", "b", "c"].map(|name| runner.run(name)).to_vec()
    }

    #[test]
    fn tests_are_run_one_after_the_other() {
        let script = "echo ready; while read -r name; do echo alive
            case $name in b) echo \"FAILED $name (1 s): ready\"; echo why;; *) echo \"ok     $name (1 s)\";; esac; echo ready; done";
        assert_eq!(verdicts(script), [Verdict::Passed, Verdict::Failed, Verdict::Passed]);
    }

    #[test]
    fn who_dies_loses_the_test() {
        let script = "echo ready; read -r name; echo \"ok     $name\"; echo ready; read -r name; exit 1";
        assert_eq!(verdicts(script), [Verdict::Passed, Verdict::Lost, Verdict::Lost]);
    }
}
