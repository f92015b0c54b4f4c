//! One client: a line asked, a line answered.

use std::io::{self, BufReader, ErrorKind, Write};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::{Place, attached};
use crate::api::line::{LineError, read_line};
use crate::api::types::{Request, Response};
use crate::control::{VmAction, VmReply};

/// Why a guest cannot say that it is ready.
const NO_VSOCK: &str = "the VM has no vsock, by which its agent would be reached: start it with --vsock auto";
/// The longest request, in bytes.
const MAX_LINE: usize = 64 * 1024;
/// How long a client may keep its place without asking anything.
const IDLE: Duration = Duration::from_secs(60);
/// How long a client may take to read an answer.
const STALL: Duration = Duration::from_secs(5);

/// The `api:N` thread.
pub(super) fn serve(place: &Place) {
    if let Err(error) = converse(place) {
        log::debug!("client {} of the control socket: {error}", place.number);
    }
}

/// Until the client closes, breaks a rule or becomes a viewer.
fn converse(place: &Place) -> io::Result<()> {
    let stream = place.stream();
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(STALL))?;
    let mut reader = BufReader::new(stream);
    loop {
        place.set_idle(true);
        let line = read_line(&mut reader, MAX_LINE);
        place.set_idle(false);
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => return answer(stream, &Response::Error(refusal(&error))),
        };
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(&line) {
            Ok(Request::Act(action)) => act(place, stream, action)?,
            Ok(Request::Wait) => match place.shared.end.wait(stream)? {
                Some(ended) => answer(stream, &Response::Ended(ended.clone()))?,
                None => return Ok(()),
            },
            Ok(Request::WaitReady) => match wait_ready(place, stream)? {
                Some(response) => answer(stream, &response)?,
                None => return Ok(()),
            },
            Ok(Request::Attach(how)) => return attached::viewer(place, reader, how),
            Err(error) => answer(stream, &Response::Error(not_understood(&error)))?,
        }
    }
}

/// Have it done, and pass on every answer until the last.
fn act(place: &Place, stream: &UnixStream, action: VmAction) -> io::Result<()> {
    for reply in place.shared.controller.request(action) {
        let more = matches!(reply, VmReply::Progress { .. });
        answer(stream, &Response::Reply(reply))?;
        if !more {
            return Ok(());
        }
    }
    answer(stream, &Response::Reply(VmReply::Ended))
}

/// Wait for the agent in the guest, or for the VM's end. `None` if the client has gone.
fn wait_ready(place: &Place, stream: &UnixStream) -> io::Result<Option<Response>> {
    let Some(readiness) = place.shared.controller.readiness() else {
        return Ok(Some(Response::Error(NO_VSOCK.to_owned())));
    };
    loop {
        if let Some(ended) = place.shared.end.get() {
            return Ok(Some(Response::Ended(ended.clone())));
        }
        if let Some(agent) = readiness.agent() {
            return Ok(Some(Response::Ready(agent)));
        }
        if let Some(why) = readiness.useless() {
            return Ok(Some(Response::Error(why)));
        }
        let mut fds = [
            PollFd::new(stream, PollFlags::empty()),
            PollFd::from_borrowed_fd(place.shared.end.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(readiness.as_fd(), PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        if !fds[0].revents().is_empty() {
            return Ok(None);
        }
    }
}

/// Why a client that sent no line is not listened to any more.
fn refusal(error: &LineError) -> String {
    match error {
        LineError::Io(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            format!("nothing was asked for {} seconds: connect again to ask something", IDLE.as_secs())
        }
        error => format!("the connection ends here: {error}"),
    }
}

fn not_understood(error: &serde_json::Error) -> String {
    format!(
        r#"this version of skiff does not understand the request: {error}; ask one JSON value a line, such as {{"act":"state"}} or "wait""#
    )
}

pub(super) fn answer(mut stream: &UnixStream, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    stream.write_all(&line)
}
