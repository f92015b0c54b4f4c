//! Writing to whoever reads at its own pace, without ever blocking in the write itself.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How much is written at once: so much fits a pipe that has any room at all (`PIPE_BUF`).
const PIECE: usize = 4096;
/// How often a writer that waits for its reader looks whether to give up.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Tells outputs that their readers are not worth waiting for any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cut(Arc<AtomicBool>);

impl Cut {
    /// From now on, what cannot be written at once is dropped.
    pub(crate) fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Write all of `bytes`, at the pace of whoever reads them.
///
/// # Errors
/// If the host refuses, or `gives_up` ends the wait (`TimedOut`).
pub(super) fn send(file: &mut File, mut bytes: &[u8], gives_up: impl Fn() -> bool) -> io::Result<()> {
    while !bytes.is_empty() {
        wait_for_room(file, &gives_up)?;
        match file.write(bytes.get(..PIECE).unwrap_or(bytes)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            // Whoever shares the open file may have made it non-blocking, and may be faster to fill it.
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_for_room(file: &File, gives_up: &impl Fn() -> bool) -> io::Result<()> {
    loop {
        match poll(&mut [PollFd::new(file, PollFlags::OUT)], Some(&LOOK)) {
            Ok(0) if gives_up() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(0) | Err(Errno::INTR) => {}
            // Room, or an error that the write will tell.
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
