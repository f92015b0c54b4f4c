//! Commands: [`prepare`] finds the user and the environment, [`spawn`] starts it, [`session`] carries its bytes.
//!
//! All of a command is done by the thread of its connection, with one loop over `poll`.

mod prepare;
mod pty;
mod session;
mod spawn;

use std::io;
use std::time::Duration;

use agent::frame::Frame;
use agent::message::{Answer, Exec, Refusal};

use crate::children::Child;
use crate::stream::Stream;
use crate::{link, note, power, serve};

/// How long the other side may take to read a command's end.
const GOODBYE: Duration = Duration::from_secs(1);

/// Run a command for who is at the other end.
pub fn run(stream: Stream, exec: &Exec) -> io::Result<()> {
    let started = match prepare::prepare(exec).and_then(|plan| spawn::start(exec, &plan)) {
        Ok(started) => started,
        Err(why) => return serve::refuse(stream, why),
    };
    let child = started.child();
    let accepted =
        Frame::message(&Answer::Accepted { pid: Some(child.pid()), window: session::WINDOW as u64 })?;
    if exec.detach {
        let mut stream = stream;
        let told = accepted.write(&mut stream);
        stream.finish(GOODBYE);
        if exec.then_power_off {
            power_off_after(&child);
        }
        return told;
    }
    let ended = session::Session::new(stream, started, exec.stdin, &accepted)?.run();
    if let Some(stream) = ended? {
        stream.finish(GOODBYE);
    }
    if exec.then_power_off {
        power_off_after(&child);
    }
    Ok(())
}

/// Wait for the command, tell the host how it ended, and switch the guest off.
fn power_off_after(child: &Child) {
    child.wait();
    let told = child.how().map_or(Ok(()), |how| link::finished(&how));
    if let Err(error) = told {
        note(format_args!("the host was not told how the command ended: {error}"));
    }
    power::off();
}

/// A refusal that is none of a shell's.
fn failed(why: impl Into<String>) -> Refusal {
    Refusal::Failed(why.into())
}
