//! What the user types or pipes, on its way to the guest.
//!
//! From a terminal, the `stdin` thread reads keys and looks for the [escape](crate::escape); a second thread, `typing`,
//! hands the guest's part on, since a guest that takes nothing must not keep the user from leaving. From
//! anything else, bytes go straight to the guest, at its pace, until they end.

use std::io::{self, Read};
use std::sync::mpsc::{Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

use crate::escape::{Escape, Key};

/// How much is taken at once.
const CHUNK: usize = 4096;
/// How many chunks may wait for the guest: what a user can paste.
const WAITING: usize = 256;
/// How long what was typed before one of skiff's own keys may take to reach the guest first.
const BEFORE: Duration = Duration::from_millis(200);

/// For the `typing` thread.
enum Typed {
    /// The guest's.
    Bytes(Vec<u8>),
    /// Say when all before it has been handed on.
    Flush(Sender<()>),
}

/// Hand everything that `source` holds to `guest`, which may block.
pub fn pipe(source: impl Read + Send + 'static, guest: impl Fn(&[u8]) + Send + 'static) -> io::Result<()> {
    vmm::named_thread("stdin").spawn(move || each_chunk(source, guest))?;
    Ok(())
}

/// Hand the keys of `terminal` to `guest`, which may block, and those that are skiff's own to `act`, which may not.
pub fn keys(
    terminal: impl Read + Send + 'static,
    guest: impl Fn(&[u8]) + Send + 'static,
    act: impl Fn(Key) + Send + 'static,
) -> io::Result<()> {
    let (typed, waiting) = sync_channel(WAITING);
    vmm::named_thread("typing").spawn(move || {
        for piece in waiting {
            match piece {
                Typed::Bytes(bytes) => guest(&bytes),
                // Whoever asked may have lost patience.
                Typed::Flush(done) => drop(done.send(())),
            }
        }
    })?;
    vmm::named_thread("stdin").spawn(move || {
        let mut escape = Escape::default();
        each_chunk(terminal, |bytes| {
            for key in escape.keys(bytes) {
                match key {
                    Key::Guest(bytes) => hand_on(&typed, bytes),
                    other => {
                        flush(&typed);
                        act(other);
                    }
                }
            }
        });
    })?;
    Ok(())
}

/// Wait until the guest has what was typed, unless it does not take it.
fn flush(typed: &SyncSender<Typed>) {
    let (done, flushed) = channel();
    if typed.try_send(Typed::Flush(done)).is_ok() {
        let _ = flushed.recv_timeout(BEFORE);
    }
}

fn hand_on(typed: &SyncSender<Typed>, bytes: Vec<u8>) {
    if let Err(TrySendError::Full(Typed::Bytes(bytes))) = typed.try_send(Typed::Bytes(bytes)) {
        log::warn!("the guest takes no input: {} bytes typed are dropped", bytes.len());
    }
}

fn each_chunk(mut source: impl Read, mut take: impl FnMut(&[u8])) {
    let mut buffer = [0; CHUNK];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) => take(buffer.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return log::info!("standard input ended: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_pipe_is_handed_on_byte_by_byte_and_has_no_escape() {
        let (sender, receiver) = mpsc::channel();
        let all: Vec<u8> = (0..=255).cycle().take(3 * CHUNK).collect();
        pipe(io::Cursor::new(all.clone()), move |bytes| sender.send(bytes.to_vec()).unwrap()).unwrap();
        // The channel ends when the thread does.
        assert_eq!(receiver.iter().flatten().collect::<Vec<u8>>(), all);
    }

    #[test]
    fn what_was_typed_before_a_key_is_handed_on_before_it() {
        let (sender, receiver) = mpsc::channel();
        let acts = sender.clone();
        let slow = move |bytes: &[u8]| {
            std::thread::sleep(Duration::from_millis(20));
            sender.send(Key::Guest(bytes.to_vec())).unwrap();
        };
        keys(io::Cursor::new(b"ab\x1dd"), slow, move |key| acts.send(key).unwrap()).unwrap();
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [Key::Guest(b"ab".into()), Key::Detach]);
    }

    #[test]
    fn a_guest_that_takes_nothing_does_not_keep_the_user_from_leaving() {
        let (reader, mut writer) = io::pipe().unwrap();
        let (acts, acted) = mpsc::channel();
        let (_release, blocked) = mpsc::channel::<()>();
        keys(reader, move |_| _ = blocked.recv(), move |key| acts.send(key).unwrap()).unwrap();
        io::Write::write_all(&mut writer, &vec![b'x'; 3 * CHUNK]).unwrap();
        io::Write::write_all(&mut writer, b"\x1dq").unwrap();
        assert_eq!(acted.recv_timeout(PATIENCE), Ok(Key::Leave));
    }
}
