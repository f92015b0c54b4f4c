//! Blobs to a registry (distribution-spec, "Pushing blobs"): whole, or in chunks where something between us takes no large bodies.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ureq::Body;
use ureq::http::{Response, header};

use super::address;
use super::client::{Call, Client, Payload, TRIES, text};
use super::error::Error;
use super::transfer::Transfer;
use crate::manifest::Blob;

/// The length of a chunk, in bytes, if the registry does not want longer ones.
const CHUNK: u64 = 4 << 20;
/// The longest chunk that a registry may ask for.
const MAX_CHUNK: u64 = 1 << 30;
/// The shortest chunk that a registry takes.
const MIN_CHUNK: header::HeaderName = header::HeaderName::from_static("oci-chunk-min-length");
/// What a blob's bytes are.
const OCTETS: &str = "application/octet-stream";

/// A place for a blob in a registry.
struct Upload {
    location: String,
    chunk: u64,
}

/// Send the blob at `path` unless the registry has it; perhaps it has it in its repository `from`.
///
/// # Errors
/// If the registry does not take it.
pub(super) fn send(
    client: &Client,
    blob: &Blob,
    path: &Path,
    from: Option<&str>,
    transfer: &Transfer,
) -> Result<(), Error> {
    if is_there(client, blob)? {
        transfer.add(blob.size);
        return Ok(());
    }
    let Some(upload) = begin(client, blob, from)? else {
        transfer.add(blob.size);
        return Ok(());
    };
    let sent = AtomicU64::new(0);
    let read = |bytes| {
        sent.fetch_add(bytes, Ordering::Relaxed);
        transfer.add(bytes);
    };
    let whole = Payload::File { path, from: 0, len: blob.size, read: &read };
    match finish(client, blob, &upload.location, whole) {
        Ok(answer) if answer.status() == 201 => Ok(()),
        Ok(answer) if !may_be_length(answer.status().as_u16()) => {
            Err(client.refused(answer, &format!("blob {}", blob.digest)))
        }
        // A proxy between us may take no large bodies, and many say so by closing the connection.
        Ok(_) | Err(Error::Unreachable { .. }) => {
            transfer.take_back(sent.swap(0, Ordering::Relaxed));
            chunked(client, blob, path, transfer)
        }
        Err(error) => Err(error),
    }
}

/// Whether an answer to a whole blob may be about its length, or about a session that an earlier request has left behind.
fn may_be_length(status: u16) -> bool {
    matches!(status, 404 | 408 | 411 | 413 | 416 | 429 | 500..=599)
}

fn is_there(client: &Client, blob: &Blob) -> Result<bool, Error> {
    let url = client.url("blobs", &blob.digest.to_string());
    let answer = client.send(&Call { method: "HEAD", ..Call::get(&url) })?;
    match answer.status().as_u16() {
        200 => {
            let length = text(&answer, header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
            Ok(length.is_none_or(|length| length == blob.size))
        }
        401 | 403 => Err(client.refused(answer, "blobs")),
        _ => Ok(false),
    }
}

/// Ask for a place; none if the registry took it from its repository `from`.
fn begin(client: &Client, blob: &Blob, from: Option<&str>) -> Result<Option<Upload>, Error> {
    let mut url = client.url("blobs", "uploads/");
    if let Some(from) = from {
        url = address::with_query(&url, "mount", &blob.digest.to_string());
        url = address::with_query(&url, "from", from);
    }
    let answer = client.send(&Call { method: "POST", payload: Payload::Bytes(&[]), ..Call::get(&url) })?;
    match answer.status().as_u16() {
        201 => Ok(None),
        202 => {
            let least = text(&answer, MIN_CHUNK).and_then(|least| least.parse().ok()).unwrap_or(0_u64);
            if least > MAX_CHUNK {
                return Err(client.protocol("it wants chunks of more than a gigabyte"));
            }
            Ok(Some(Upload { location: client.location(&url, &answer)?, chunk: CHUNK.max(least) }))
        }
        _ => Err(client.refused(answer, &format!("an upload to {}", client.repository()))),
    }
}

/// End an upload, with its last or all bytes.
fn finish(
    client: &Client,
    blob: &Blob,
    location: &str,
    payload: Payload<'_>,
) -> Result<Response<Body>, Error> {
    let url = address::with_query(location, "digest", &blob.digest.to_string());
    let headers = [(header::CONTENT_TYPE, OCTETS.to_owned())];
    client.send(&Call { method: "PUT", url: &url, headers: &headers, payload, retried: false })
}

/// Send a blob in chunks, each of which is tried again if it fails.
fn chunked(client: &Client, blob: &Blob, path: &Path, transfer: &Transfer) -> Result<(), Error> {
    let refused = |answer| client.refused(answer, &format!("blob {}", blob.digest));
    let Some(Upload { mut location, chunk }) = begin(client, blob, None)? else {
        transfer.add(blob.size);
        return Ok(());
    };
    let sent = Cell::new(0_u64);
    let mut failures = 0_u32;
    while sent.get() < blob.size {
        if transfer.is_stopped() {
            return Err(client.protocol("another blob could not be sent"));
        }
        let from = sent.get();
        let len = chunk.min(blob.size.saturating_sub(from));
        let last = from.saturating_add(len).saturating_sub(1);
        let headers =
            [(header::CONTENT_TYPE, OCTETS.to_owned()), (header::CONTENT_RANGE, format!("{from}-{last}"))];
        let payload = Payload::File { path, from, len, read: &|_| {} };
        let answer = client.send(&Call {
            method: "PATCH",
            url: &location,
            headers: &headers,
            payload,
            retried: false,
        });
        match answer {
            Ok(answer) if matches!(answer.status().as_u16(), 201 | 202 | 204) => {
                location = client.location(&location, &answer)?;
                sent.set(from.saturating_add(len));
                transfer.add(len);
                failures = 0;
                continue;
            }
            Ok(answer) if !matches!(answer.status().as_u16(), 408 | 416 | 429 | 500..=599) => {
                return Err(refused(answer));
            }
            Ok(answer) if failures.saturating_add(1) >= TRIES => return Err(refused(answer)),
            Err(error) if failures.saturating_add(1) >= TRIES => return Err(error),
            _ => {}
        }
        client.wait(failures, None);
        failures = failures.saturating_add(1);
        let there = state(client, &mut location)?;
        if there > blob.size {
            return Err(client.protocol("it has more of a blob than it was sent"));
        }
        transfer.take_back(from);
        transfer.add(there);
        sent.set(there);
    }
    let answer = finish(client, blob, &location, Payload::Bytes(&[]))?;
    if answer.status() == 201 { Ok(()) } else { Err(refused(answer)) }
}

/// How many bytes of an upload have arrived.
fn state(client: &Client, location: &mut String) -> Result<u64, Error> {
    let answer = client.send(&Call::get(location))?;
    if !matches!(answer.status().as_u16(), 200 | 202 | 204) {
        return Err(client.refused(answer, "an upload that it has begun"));
    }
    let there = text(&answer, header::RANGE).and_then(end_of_range).unwrap_or(0);
    if answer.headers().contains_key(header::LOCATION) {
        *location = client.location(location, &answer)?;
    }
    Ok(there)
}

/// How many bytes `0-LAST` are.
fn end_of_range(header: &str) -> Option<u64> {
    let (first, last) = header.trim().trim_start_matches("bytes=").split_once('-')?;
    let last: u64 = last.parse().ok()?;
    // An upload with nothing in it is said to be 0-0 by some.
    if first == "0" && last > 0 { last.checked_add(1) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_say_how_much_has_arrived() {
        for (text, there) in [
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            ("0-0", None),
            ("5-9", None),
            ("", None),
            ("0-x", None),
        ] {
            assert_eq!(end_of_range(text), there, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_range_makes_it_fall_over(text: String, last: u64) {
            let _ = end_of_range(&text);
            let _ = end_of_range(&format!("0-{last}"));
        }
    }
}
