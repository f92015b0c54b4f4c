//! What the user types or pipes, on its way to the guest.
//!
//! From a terminal, the `stdin` thread reads keys and looks for the [escape](crate::escape); a second thread, `typing`,
//! hands the guest's part on, since a guest that takes nothing must not keep the user from leaving. From
//! anything else, bytes go straight to the guest, at its pace, until they end.

use std::io::{self, Read};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use crate::escape::{Escape, Key};

/// How much is taken at once.
const CHUNK: usize = 4096;
/// How many chunks may wait for the guest: what a user can paste.
const WAITING: usize = 256;

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
    let (typed, waiting) = sync_channel::<Vec<u8>>(WAITING);
    vmm::named_thread("typing").spawn(move || {
        for bytes in waiting {
            guest(&bytes);
        }
    })?;
    vmm::named_thread("stdin").spawn(move || {
        let mut escape = Escape::default();
        each_chunk(terminal, |bytes| {
            for key in escape.keys(bytes) {
                match key {
                    Key::Guest(bytes) => hand_on(&typed, bytes),
                    other => act(other),
                }
            }
        });
    })?;
    Ok(())
}

fn hand_on(typed: &SyncSender<Vec<u8>>, bytes: Vec<u8>) {
    if let Err(TrySendError::Full(bytes)) = typed.try_send(bytes) {
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
