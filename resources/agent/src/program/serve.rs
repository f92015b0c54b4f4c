//! Requests: the listener's loop, and a thread a connection.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use agent::frame::Frame;
use agent::message::{Answer, Open, Refusal, Request};

use crate::stream::{Address, Direction, Listener, Stream};
use crate::{exec, note, power, transfer};

/// Connections at once.
const MAX_CONNECTIONS: usize = 256;
/// How long somebody may take to say what is wanted, or to read why it is not done.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries of what may work later.
const RETRY: Duration = Duration::from_millis(100);
/// Of a connection's thread: it holds a frame on it.
const STACK: usize = 512 << 10;

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Listen at `address` for ever. The first tries may fail: the driver may not be there yet.
pub fn serve(address: &Address) -> ! {
    let mut said = false;
    loop {
        match address.listen() {
            Ok(listener) => accept(&listener),
            Err(error) if !said => {
                said = true;
                note(format_args!("cannot listen at {address} yet: {error}"));
            }
            Err(_) => {}
        }
        thread::sleep(RETRY);
    }
}

/// Take connections until the listener is of no more use.
fn accept(listener: &Listener) {
    loop {
        match listener.accept() {
            Ok(Some(stream)) => start(stream),
            Ok(None) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK) => return,
                Some(libc::EINTR | libc::ECONNABORTED) => {}
                // No descriptors or no memory: others will end.
                _ => thread::sleep(RETRY),
            },
        }
    }
}

/// One of the places for connections.
struct Place;

impl Drop for Place {
    fn drop(&mut self) {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn start(stream: Stream) {
    let taken = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let place = Place;
    if taken >= MAX_CONNECTIONS {
        let _ = stream.set_timeout(Direction::Write, Some(Duration::from_millis(1)));
        let mut stream = stream;
        let why = format!("the agent does {MAX_CONNECTIONS} things already: try again when one has ended");
        let _ = refusal(Refusal::Failed(why)).and_then(|frame| frame.write(&mut stream));
        return;
    }
    let run = move || {
        let _place = place;
        // A fault of ours in one connection is not the end of the others.
        let _ = catch_unwind(AssertUnwindSafe(|| answer(stream)));
    };
    let _ = thread::Builder::new().name("request".into()).stack_size(STACK).spawn(run);
}

fn refusal(why: Refusal) -> io::Result<Frame> {
    Frame::message(&Answer::Refused { protocol: agent::PROTOCOL, version: agent::VERSION.into(), why })
}

/// Say why not, and be done.
pub fn refuse(mut stream: Stream, why: Refusal) -> io::Result<()> {
    refusal(why)?.write(&mut stream)?;
    stream.finish(PATIENCE);
    Ok(())
}

/// Say that it is being done.
pub fn accept_request(stream: &mut Stream) -> io::Result<()> {
    Frame::message(&Answer::Accepted { pid: None, window: 0 })?.write(stream)
}

fn answer(mut stream: Stream) -> io::Result<()> {
    stream.set_timeout(Direction::Read, Some(PATIENCE))?;
    let Some(frame) = Frame::read(&mut stream)? else { return Ok(()) };
    stream.set_timeout(Direction::Read, None)?;
    let Ok(open) = frame.read_as::<Open>() else {
        return refuse(stream, Refusal::Skew);
    };
    if open.protocol != agent::PROTOCOL {
        return refuse(stream, Refusal::Skew);
    }
    let Ok(request) = serde_json::from_value::<Request>(open.request) else {
        return refuse(stream, Refusal::Skew);
    };
    match request {
        Request::Exec(wanted) => exec::run(stream, &wanted),
        Request::Pack(wanted) => transfer::pack(stream, &wanted),
        Request::Unpack(wanted) => transfer::unpack(stream, &wanted),
        Request::Look { path } => transfer::look(stream, &path),
        Request::PowerOff => {
            accept_request(&mut stream)?;
            stream.finish(Duration::from_millis(200));
            power::off();
            Ok(())
        }
    }
}
