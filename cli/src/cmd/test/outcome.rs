//! [`Verdict`]: what became of a test, told from what was seen of its guest.

use serde::{Deserialize, Serialize};

use super::console::panic_line;
use crate::exit;

/// What the kernel says when it kills for want of memory (mm/oom_kill.c): of the process, of a control group's, and why.
const OOM_WORDS: [&str; 3] =
    ["Out of memory: Killed process", "Memory cgroup out of memory: Killed process", "oom-kill:"];
/// What is said of a panic of which nothing else is known.
pub const PANICKED: &str = "the guest's kernel panicked";
/// The longest line that is repeated in a report, in letters.
const LONGEST_LINE: usize = 300;

/// What became of a test. The words are those of the reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The command ended with 0.
    Passed,
    /// It failed, and passed when it was tried again.
    Flaky,
    /// The command ended with another code, or by a signal, or the guest switched itself off.
    Failed,
    /// The command took longer than it may.
    TimedOut,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest's kernel killed for want of memory, and the command failed.
    OutOfMemory,
    /// The agent in the guest was lost: it died, or the guest was reset or hangs.
    AgentLost,
    /// skiff itself failed, or the setup did: the test says nothing.
    Error,
    /// It was not run to its end, for somebody wanted no more.
    NotRun,
}

impl Verdict {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Flaky => "flaky",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED OUT",
            Self::Panicked => "PANICKED",
            Self::OutOfMemory => "OUT OF MEMORY",
            Self::AgentLost => "AGENT LOST",
            Self::Error => "ERROR",
            Self::NotRun => "not run",
        }
    }

    /// Whether all is well.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Passed | Self::Flaky)
    }

    /// Whether the test itself is to blame.
    pub fn is_failure(self) -> bool {
        !self.is_good() && !matches!(self, Self::Error | Self::NotRun)
    }
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    /// It ended by itself.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// It did not end within so many seconds.
    TooLong(u64),
    /// It cannot be run in the guest, with what the agent says.
    NotRunnable {
        /// Of a shell that is asked for such a command.
        code: u8,
        /// Why.
        why: String,
    },
    /// The connection to the agent broke, or it says nothing.
    Lost(String),
    /// skiff failed.
    Error(String),
}

/// How the VM ended while the command ran, if it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEnd {
    /// The guest's kernel panicked; the last lines of its console.
    Panicked(Vec<String>),
    /// The guest switched itself off.
    PoweredOff,
    /// In another way.
    Other(String),
}

/// The verdict, and why.
pub fn judge(came: &Came, vm: Option<&VmEnd>, oom: Option<&str>) -> (Verdict, String) {
    match (came, vm) {
        (Came::Exited(0), None) => (Verdict::Passed, String::new()),
        (_, Some(VmEnd::Panicked(lines))) => {
            let told = panic_line(lines.iter().map(String::as_str));
            let line = told.or(lines.last().map(String::as_str));
            let why = line.map_or_else(|| PANICKED.to_owned(), |line| shorten(bare(line)));
            (Verdict::Panicked, why)
        }
        (_, Some(VmEnd::PoweredOff)) => (Verdict::Failed, "the guest switched itself off".to_owned()),
        (_, Some(VmEnd::Other(why))) => (Verdict::Error, format!("the VM ended: {why}")),
        (Came::Error(why), None) => (Verdict::Error, why.clone()),
        (_, None) => match oom {
            Some(line) => (Verdict::OutOfMemory, shorten(bare(line))),
            None => plain(came),
        },
    }
}

fn plain(came: &Came) -> (Verdict, String) {
    match came {
        Came::Exited(code) => (Verdict::Failed, format!("exit code {code}")),
        Came::Signaled(number) => (Verdict::Failed, format!("signal {number}")),
        Came::TooLong(limit) => (Verdict::TimedOut, format!("not done after {limit} s")),
        Came::NotRunnable { why, .. } => (Verdict::Failed, why.clone()),
        Came::Lost(why) => (Verdict::AgentLost, why.clone()),
        Came::Error(why) => (Verdict::Error, why.clone()),
    }
}

/// The exit code that a shell would tell, if the command came to have one.
pub fn code(came: &Came) -> Option<i32> {
    match came {
        Came::Exited(code) => Some(*code),
        Came::Signaled(number) => Some(number.saturating_add(exit::SIGNAL.into())),
        Came::NotRunnable { code, .. } => Some((*code).into()),
        Came::TooLong(_) | Came::Lost(_) | Came::Error(_) => None,
    }
}

/// How many lines of a kernel's log tell that it killed for want of memory.
pub fn count_oom(log: &str) -> usize {
    log.lines().filter(|line| is_oom(line)).count()
}

/// The line that tells best which process the kernel has killed for want of memory, after so many such lines that are of no interest.
pub fn find_oom(log: &str, known: usize) -> Option<&str> {
    let fresh = || log.lines().filter(|line| is_oom(line)).skip(known);
    fresh().find(|line| line.contains("Killed process")).or_else(|| fresh().next())
}

fn is_oom(line: &str) -> bool {
    OOM_WORDS.iter().any(|words| line.contains(words))
}

/// Without the time with which a kernel begins its lines.
fn bare(line: &str) -> &str {
    let rest = line.trim_start().strip_prefix('[').and_then(|line| line.split_once(']'));
    let time = |text: &str| text.trim().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    rest.filter(|(within, _)| time(within)).map_or(line, |(_, rest)| rest).trim()
}

/// `line` as one that fits into a report.
pub fn shorten(line: &str) -> String {
    line.chars().filter(|letter| !letter.is_control()).take(LONGEST_LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: &str = "[   12.3] Out of memory: Killed process 77 (eat) total-vm:9kB";

    fn panicked() -> VmEnd {
        let lines = [
            "[ 1.0] sysrq: Trigger a crash",
            "[ 1.2] Kernel panic - not syncing: sysrq",
            "[ 1.3] ---[ end Kernel panic - not syncing: sysrq ]---",
        ];
        VmEnd::Panicked(lines.map(str::to_owned).to_vec())
    }

    #[test]
    fn what_was_seen_is_told_apart() {
        let lost = || Came::Lost("the connection broke".to_owned());
        let cases = [
            (Came::Exited(0), None, None, Verdict::Passed, ""),
            (Came::Exited(3), None, None, Verdict::Failed, "exit code 3"),
            (Came::Signaled(11), None, None, Verdict::Failed, "signal 11"),
            (
                Came::Signaled(9),
                None,
                Some(KILLED),
                Verdict::OutOfMemory,
                "Out of memory: Killed process 77 (eat) total-vm:9kB",
            ),
            (Came::Exited(1), None, Some(KILLED), Verdict::OutOfMemory, "Killed process 77"),
            (Came::Signaled(9), None, None, Verdict::Failed, "signal 9"),
            (Came::TooLong(5), None, None, Verdict::TimedOut, "not done after 5 s"),
            (lost(), None, None, Verdict::AgentLost, "broke"),
            (lost(), None, Some(KILLED), Verdict::OutOfMemory, "Killed"),
            (lost(), Some(panicked()), None, Verdict::Panicked, "Kernel panic - not syncing: sysrq"),
            (lost(), Some(panicked()), Some(KILLED), Verdict::Panicked, "Kernel panic"),
            (lost(), Some(VmEnd::PoweredOff), None, Verdict::Failed, "switched itself off"),
            (lost(), Some(VmEnd::Other("killed".to_owned())), None, Verdict::Error, "killed"),
            (Came::Error("no room".to_owned()), None, Some(KILLED), Verdict::Error, "no room"),
            (
                Came::NotRunnable { code: 127, why: "x: not found".to_owned() },
                None,
                None,
                Verdict::Failed,
                "x: not found",
            ),
        ];
        for (came, vm, oom, verdict, words) in cases {
            let (told, why) = judge(&came, vm.as_ref(), oom);
            assert_eq!(told, verdict, "{came:?} {vm:?}");
            assert!(why.contains(words) && (words.is_empty() == why.is_empty()), "{came:?}: {why}");
        }
    }

    #[test]
    fn a_command_that_passed_although_something_was_killed_has_passed() {
        assert_eq!(judge(&Came::Exited(0), None, Some(KILLED)).0, Verdict::Passed);
    }

    #[test]
    fn only_what_came_after_the_warm_snapshot_counts() {
        let log = format!("boot\n{KILLED}\nx\n[ 13.0] oom-kill:constraint=CONSTRAINT_NONE\n[ 13.1] {KILLED}");
        assert_eq!(count_oom(&log), 3);
        assert_eq!(find_oom(&log, 0), Some(KILLED));
        assert!(
            find_oom(&log, 1).unwrap().starts_with("[ 13.1]"),
            "the process is told rather than the cause"
        );
        assert_eq!(find_oom(&log, 3), None);
    }

    #[test]
    fn a_kernels_time_is_left_out_and_nothing_else() {
        assert_eq!(bare("[    1.25] a [b]"), "a [b]");
        assert_eq!(bare("[drm] x"), "[drm] x");
        assert_eq!(bare("plain"), "plain");
    }

    #[test]
    fn codes_are_as_a_shell_tells_them() {
        assert_eq!(code(&Came::Signaled(9)), Some(137));
        assert_eq!(code(&Came::Exited(4)), Some(4));
        assert_eq!(code(&Came::TooLong(4)), None);
    }
}
