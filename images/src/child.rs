//! [`end`]: how a program that was started has ended.

use std::io;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::Duration;

/// What passes between a signal's reaching one program of a terminal and its reaching the next, at most.
const APART: Duration = Duration::from_millis(100);

/// Waits for its end.
pub fn end(mut child: Child) -> io::Result<ExitStatus> {
    let status = child.wait()?;
    settle(status);
    Ok(status)
}

/// Ctrl-C goes to all programs of a terminal, one after the other. The one that was started may have it, and have failed of it, before this
/// one has: then it is not the failure that is to be told of, and the signal, which ends this program, is given the time to come.
pub fn settle(status: ExitStatus) {
    if !status.success() {
        thread::sleep(APART);
    }
}
