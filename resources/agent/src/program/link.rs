//! The link: one connection to the host, for as long as both live. Its thread does nothing else.
//!
//! A guest that was restored finds the connection reset: it is made again at once, and the host's `Welcome` says who the guest is now.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use agent::frame::Frame;
use agent::message::{Ask, Ended, Finished, Hello, Ready, Welcome};

use crate::identity::Guest;
use crate::stream::{Address, Direction, Stream};
use crate::{note, power, shares};

/// The first pause after a connection that could not be made; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How long the host may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of the thread.
const STACK: usize = 512 << 10;

/// Where the host listens.
static HOST: OnceLock<Address> = OnceLock::new();

/// Start the thread.
pub fn start(address: Address, mut guest: Guest) -> io::Result<()> {
    // There is one link.
    let _ = HOST.set(address.clone());
    let run = move || {
        let mut pause = FIRST_PAUSE;
        let mut said = false;
        loop {
            let talked = catch_unwind(AssertUnwindSafe(|| {
                let mut stream = address.connect()?;
                greet(&mut stream, &mut guest, &mut said).map(|()| stream)
            }));
            if let Ok(Ok(mut stream)) = talked {
                let since = Instant::now();
                listen(&mut stream);
                pause = FIRST_PAUSE;
                // A host that hangs up at once each time is not to be asked for ever without a pause.
                if since.elapsed() > FIRST_PAUSE {
                    continue;
                }
            }
            thread::sleep(pause);
            pause = pause.saturating_mul(2).min(LAST_PAUSE);
        }
    };
    thread::Builder::new().name("link".into()).stack_size(STACK).spawn(run).map(drop)
}

/// From `Hello` to `Ready`.
fn greet(stream: &mut Stream, guest: &mut Guest, said: &mut bool) -> io::Result<()> {
    stream.set_timeout(Direction::Read, Some(PATIENCE))?;
    stream.set_timeout(Direction::Write, Some(PATIENCE))?;
    let hello = Hello {
        protocol: agent::PROTOCOL,
        version: agent::VERSION.into(),
        boot_id: guest.boot_id(),
        init: power::is_init(),
    };
    Frame::message(&hello)?.write(stream)?;
    let frame = Frame::read(stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let welcome: Welcome = frame.read_as()?;
    if welcome.protocol != agent::PROTOCOL {
        if !std::mem::replace(said, true) {
            let (theirs, ours) = (&welcome.version, agent::VERSION);
            note(format_args!(
                "skiff {theirs} on the host speaks another protocol than this agent of {ours}"
            ));
        }
        return Err(io::Error::other("another protocol"));
    }
    guest.take_on(&welcome);
    let unmounted = shares::mount_all(&welcome.mounts).err();
    let mounts = if unmounted.is_none() { welcome.mounts.len() } else { 0 };
    Frame::message(&Ready { mounts: Some(mounts), unmounted })?.write(stream)?;
    stream.set_timeout(Direction::Read, None)
}

/// Do as the host says, until it has gone.
fn listen(stream: &mut Stream) {
    while let Ok(Some(frame)) = Frame::read(stream) {
        // A host that is newer may say more.
        if let Ok(Ask::PowerOff) = frame.read_as() {
            power::off();
        }
    }
}

/// Tell the host how the command ended that the guest was for. It knows when this returns, if it can be told.
pub fn finished(how: &Ended) -> io::Result<()> {
    let code = match how {
        Ended::Exited(code) => code & 0xff,
        Ended::Signaled(signal) => 128 | signal & 0x7f,
        Ended::Failed(_) => 125,
    };
    let address = HOST.get().ok_or(io::ErrorKind::NotConnected)?;
    let mut stream = address.connect()?;
    stream.set_timeout(Direction::Read, Some(PATIENCE))?;
    stream.set_timeout(Direction::Write, Some(PATIENCE))?;
    Frame::message(&Finished { finished: u8::try_from(code).unwrap_or(u8::MAX) })?.write(&mut stream)?;
    Frame::read(&mut stream).map(drop)
}
