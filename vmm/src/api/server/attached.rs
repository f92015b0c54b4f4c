//! A connection that carries the console's frames: a viewer's, or the owner's.
//!
//! ```text
//!  client ──Input, Resize──► api:N ──► typing, vmm
//!         ◄──Output, Skipped── view:N ◄── the viewer's queue ◄── the device's thread
//!         ◄──Ended── api:N, when view:N has sent everything
//! ```

use std::io::{self, BufReader, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use devices::worker::named_thread;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Place;
use super::connection::answer;
use crate::api::types::{Attach, Ended, Frame, MAX_FRAME, Response};
use crate::console::{Hub, Seen, Viewer};
use crate::control::{Outcome, VmAction, VmReply};

/// How often a client that types faster than the guest takes it looks for room, and whether somebody is there still.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How many sizes may wait for a busy VM.
const RESIZES: usize = 16;

/// How a client left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// As it said.
    Detached,
    /// It sends nothing more, but may listen.
    Silent,
}

/// A viewer's queue, which is filled as long as this lives.
struct Watching<'a> {
    hub: &'a Hub,
    viewer: Arc<Viewer>,
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.hub.dismiss(&self.viewer);
    }
}

/// A client that asked to join, on its own thread. What it has sent after that is in `reader`.
pub(super) fn viewer(place: &Place, mut reader: BufReader<&UnixStream>, how: Attach) -> io::Result<()> {
    let stream = place.stream();
    let console = place.shared.controller.console();
    if !console.has_stdio() {
        let why = "no console of this VM leads to stdio: start it with --serial stdio or --console stdio";
        return answer(stream, &Response::Error(why.to_owned()));
    }
    let hub = console.hub();
    // Before the answer: whoever has it sees everything from then on.
    let viewer = how.output.then(|| Watching { hub, viewer: hub.view(how.history) });
    answer(stream, &Response::Attached)?;
    // Whoever watches may stop its terminal for an hour.
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    let sending = viewer.as_ref().map(|viewer| {
        let (viewer, client) = (Arc::clone(&viewer.viewer), Arc::clone(&place.client));
        named_thread(format!("view:{}", place.number)).spawn(move || send(&viewer, &client.stream))
    });
    let left = match &sending {
        Some(Err(_)) => Ok(Left::Detached),
        _ => listen(place, &mut reader),
    };
    let end = match left {
        Ok(Left::Silent) => place.shared.end.wait(stream)?,
        _ => place.shared.end.get(),
    };
    if end.is_none() {
        // Wakes the thread that sends, whatever it waits for.
        let _ = stream.shutdown(Shutdown::Both);
        drop(viewer);
    }
    if let Some(sending) = sending {
        let _ = sending?.join();
    }
    if let Some(ended) = end {
        bid_farewell(stream, ended)?;
    }
    left.map(drop)
}

/// The `api:owner` thread.
pub(super) fn owner(place: &Place, ends_vm: bool) {
    let stream = place.stream();
    let left = listen(place, &mut BufReader::new(stream));
    if let Some(ended) = place.shared.end.get() {
        if let Err(error) = bid_farewell(stream, ended) {
            log::info!("the program that started the VM could not be told of its end: {error}");
        }
        return;
    }
    place.shared.controller.console().hub().leave_stdout();
    match left {
        Ok(Left::Detached) => log::info!("the program that started the VM has left it"),
        left if ends_vm => {
            log::info!("the program that started the VM is gone, and so is the VM ({left:?})");
            drop(place.shared.controller.request(VmAction::Kill));
        }
        left => log::info!("the program that started the VM is gone ({left:?})"),
    }
}

/// The `view:N` thread.
fn send(viewer: &Viewer, mut stream: &UnixStream) {
    while let Some(seen) = viewer.next() {
        let frame = match seen {
            Seen::Output(bytes) => Frame::Output(bytes),
            Seen::Skipped(count) => Frame::Skipped(count),
        };
        if frame.write(&mut stream).is_err() {
            // Nobody reads: whoever types is gone too.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Do what the client says, until it leaves or the VM has ended.
fn listen(place: &Place, from: &mut impl Read) -> io::Result<Left> {
    let mut resizes = Vec::new();
    loop {
        match Frame::read(from)? {
            None => return Ok(Left::Silent),
            Some(Frame::Detach) => return Ok(Left::Detached),
            Some(Frame::Input(bytes)) => type_in(place, bytes),
            Some(Frame::Resize { columns, rows }) => {
                resizes.retain(|answer: &Receiver<VmReply>| answer.try_recv() == Err(TryRecvError::Empty));
                if resizes.len() < RESIZES {
                    let action = VmAction::ResizeConsole { columns, rows };
                    resizes.push(place.shared.controller.request(action));
                }
            }
            Some(Frame::Output(_) | Frame::Skipped(_) | Frame::Ended(_)) => {
                let why = "a client sent a frame that only the VM sends";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
    }
}

/// At the guest's pace. For a client that is gone nothing is waited for: what it typed last is lost if there is no room,
/// but what it said after that is heard.
fn type_in(place: &Place, mut bytes: Vec<u8>) {
    while let Err(back) = place.shared.typing.push(bytes) {
        bytes = back;
        let mut fds = [PollFd::new(place.stream(), PollFlags::empty())];
        if !matches!(poll(&mut fds, Some(&LOOK)), Ok(0)) {
            return;
        }
    }
}

fn bid_farewell(mut stream: &UnixStream, ended: &Ended) -> io::Result<()> {
    match Frame::Ended(ended.clone()).write(&mut stream) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Frame::Ended(shortened(ended)).write(&mut stream)
        }
        done => done,
    }
}

/// Of an end whose report does not fit a frame.
fn shortened(ended: &Ended) -> Ended {
    // A character is six bytes of JSON at most.
    let short = |text: &str| text.chars().take(MAX_FRAME / 8).collect();
    match ended {
        Ended::Failed(why) => Ended::Failed(short(why)),
        Ended::Outcome(Outcome::Panicked { last_lines }) => {
            let last = last_lines.last().map(|line| short(line));
            Ended::Outcome(Outcome::Panicked { last_lines: last.into_iter().collect() })
        }
        ended => ended.clone(),
    }
}
