//! Blobs from a registry into the store: resumed where they were cut off, and checked by their digest before anything sees them.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::thread;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use ureq::Body;
use ureq::http::{Response, header};

use super::client::{Call, Client, TRIES, text};
use super::error::Error;
use super::transfer::Transfer;
use crate::digest::Digest;
use crate::manifest::Blob;
use crate::store::{Partial, Store, StoreError};

/// How much is read at once, in bytes.
const CHUNK: usize = 256 << 10;
/// How often is looked whether another process has fetched a blob.
const LOOK: Duration = Duration::from_millis(200);

/// A download under way.
struct Download<'a> {
    client: &'a Client,
    blob: &'a Blob,
    transfer: &'a Transfer,
    partial: &'a Partial,
    hasher: Sha256,
    have: u64,
}

/// Make `blob` one of the store's.
///
/// # Errors
/// If the registry does not have it or sends something else, or the store is full.
pub(super) fn fetch(client: &Client, store: &Store, blob: &Blob, transfer: &Transfer) -> Result<(), Error> {
    if let Some(partial) = fetch_aside(client, store, blob, transfer)? {
        store.adopt(partial.path(), Some(blob), &mut |_| {})?;
    }
    Ok(())
}

/// Fetch `blob` to a file beside the store's; none if the store has it.
///
/// # Errors
/// As [`fetch`].
pub(super) fn fetch_aside(
    client: &Client,
    store: &Store,
    blob: &Blob,
    transfer: &Transfer,
) -> Result<Option<Partial>, Error> {
    let partial = loop {
        if store.keep(blob)? {
            transfer.add(blob.size);
            return Ok(None);
        }
        match store.partial(&blob.digest.to_string()) {
            // Another process is at it: it will be there soon, or given up.
            Err(StoreError::Busy { .. }) if !transfer.is_stopped() => thread::sleep(LOOK),
            partial => break partial?,
        }
    };
    let mut download = Download { client, blob, transfer, partial: &partial, hasher: Sha256::new(), have: 0 };
    let resumed = download.take_up()?;
    store.room(blob.size.saturating_sub(download.have))?;
    download.complete()?;
    let mut got = download.digest();
    if got != blob.digest && resumed {
        // What was there from before may be damaged.
        download.restart()?;
        download.complete()?;
        got = download.digest();
    }
    if got != blob.digest {
        let _ = partial.remove();
        return Err(Error::Digest { registry: client.registry(), wanted: blob.digest, got });
    }
    Ok(Some(partial))
}

impl<'a> Download<'a> {
    fn file(&self) -> &'a File {
        self.partial.file()
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::io(format!("write {}", self.partial.path().display()))
    }

    /// Go on behind what is there. Whether there is anything.
    fn take_up(&mut self) -> Result<bool, Error> {
        let there = self.partial.len().map_err(self.failed())?;
        if there > self.blob.size {
            self.restart()?;
            return Ok(false);
        }
        let mut file = self.file();
        let mut buffer = vec![0; CHUNK];
        file.rewind().map_err(self.failed())?;
        loop {
            let got = file.read(&mut buffer).map_err(self.failed())?;
            let part = buffer.get(..got).unwrap_or_default();
            if part.is_empty() {
                break;
            }
            self.hasher.update(part);
            self.have = self.have.saturating_add(got as u64);
        }
        self.transfer.add(self.have);
        Ok(self.have > 0)
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.transfer.take_back(self.have);
        self.have = 0;
        self.hasher = Sha256::new();
        self.file().set_len(0).map_err(self.failed())
    }

    fn digest(&self) -> Digest {
        Digest::from_hasher(self.hasher.clone())
    }

    /// Fetch what is missing.
    fn complete(&mut self) -> Result<(), Error> {
        let mut idle = 0_u32;
        while self.have < self.blob.size {
            let before = self.have;
            let answer = self.ask()?;
            let Some(answer) = answer else { continue };
            let ended = self.receive(answer.into_body())?;
            if self.have == self.blob.size {
                break;
            }
            idle = if self.have > before { 0 } else { idle.saturating_add(1) };
            if idle >= TRIES {
                let source = ended.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                return Err(Error::Unreachable { registry: self.client.registry(), source });
            }
            self.client.wait(idle, None);
        }
        Ok(())
    }

    /// Ask for the rest; none if it has to be asked for again, from the start.
    fn ask(&mut self) -> Result<Option<Response<Body>>, Error> {
        let url = self.client.url("blobs", &self.blob.digest.to_string());
        let range = [(header::RANGE, format!("bytes={}-", self.have))];
        let headers = if self.have > 0 { &range[..] } else { &[] };
        let answer = self.client.send(&Call { headers, ..Call::get(&url) })?;
        match answer.status().as_u16() {
            200 => {
                if self.have > 0 {
                    self.restart()?;
                }
            }
            206 if self.have > 0 => {
                let start = text(&answer, header::CONTENT_RANGE).and_then(start_of_range);
                if start != Some(self.have) {
                    return Err(self
                        .client
                        .protocol("it sends another part of a blob than the one it was asked for"));
                }
            }
            416 if self.have > 0 => {
                self.restart()?;
                return Ok(None);
            }
            _ => return Err(self.client.refused(answer, &format!("blob {}", self.blob.digest))),
        }
        let left = self.blob.size.saturating_sub(self.have);
        let promised = text(&answer, header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        if promised.is_some_and(|promised| promised != left) {
            return Err(self
                .client
                .protocol("it has a blob of another length than the image's manifest says"));
        }
        Ok(Some(answer))
    }

    /// Read a body to its end or until it breaks off, and say why it did.
    fn receive(&mut self, mut body: Body) -> Result<Option<io::Error>, Error> {
        let mut reader = body.as_reader();
        let mut file = self.file();
        file.seek(SeekFrom::Start(self.have)).map_err(self.failed())?;
        let mut buffer = vec![0; CHUNK];
        loop {
            if self.transfer.is_stopped() {
                return Err(self.client.protocol("another blob could not be fetched"));
            }
            let got = match reader.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Some(error)),
            };
            let part = buffer.get(..got).unwrap_or_default();
            if self.have.saturating_add(got as u64) > self.blob.size {
                return Err(self.client.protocol("it sends more of a blob than the image's manifest says"));
            }
            file.write_all(part).map_err(Error::io(format!("write {}", self.partial.path().display())))?;
            self.hasher.update(part);
            self.have = self.have.saturating_add(got as u64);
            self.transfer.add(got as u64);
        }
    }
}

/// Where a part begins, by a `Content-Range` (RFC 9110, section 14.4).
fn start_of_range(header: &str) -> Option<u64> {
    let (start, _) = header.trim().strip_prefix("bytes")?.trim_start().split_once('-')?;
    start.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_say_where_they_begin() {
        assert_eq!(start_of_range("bytes 5-9/10"), Some(5));
        for text in ["", "bytes", "bytes */10", "5-9/10", "bytes -9/10"] {
            assert_eq!(start_of_range(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_range_makes_it_fall_over(text: String, start: u64) {
            let _ = start_of_range(&text);
            prop_assert_eq!(start_of_range(&format!("bytes {start}-/*")), Some(start));
        }
    }
}
