//! [`Frame`]: a piece of a connection. One byte of kind, four of length (little-endian), the content.

use std::io::{self, ErrorKind, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest content of a frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// What stands before the content.
const HEADER: usize = 5;
const MESSAGE: u8 = 0;
const INPUT: u8 = 1;
const INPUT_END: u8 = 2;
const OUTPUT: u8 = 3;
const ERROR: u8 = 4;

/// Which of a command's streams bytes are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// A piece of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A value of [`crate::message`], as JSON.
    Message(Vec<u8>),
    /// For a command's standard input, or a tree's archive.
    Input(Vec<u8>),
    /// Nothing more is put in.
    InputEnd,
    /// From a command's standard output, or a tree's archive.
    Output(Vec<u8>),
    /// From a command's standard error.
    Error(Vec<u8>),
}

impl Frame {
    /// A message.
    ///
    /// # Errors
    /// If it cannot be written as JSON, or is longer than [`MAX_FRAME`].
    pub fn message(value: &impl Serialize) -> io::Result<Self> {
        let bytes = serde_json::to_vec(value)?;
        if bytes.len() > MAX_FRAME {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the request is longer than 64 KiB"));
        }
        Ok(Self::Message(bytes))
    }

    /// What a message says.
    ///
    /// # Errors
    /// If this is no message, or not one of these.
    pub fn read_as<T: DeserializeOwned>(&self) -> io::Result<T> {
        match self {
            Self::Message(bytes) => Ok(serde_json::from_slice(bytes)?),
            _ => Err(io::Error::new(ErrorKind::InvalidData, "a message was expected")),
        }
    }

    /// Write it whole. Content that is longer than [`MAX_FRAME`] is refused.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, content): (u8, &[u8]) = match self {
            Self::Message(bytes) => (MESSAGE, bytes),
            Self::Input(bytes) => (INPUT, bytes),
            Self::InputEnd => (INPUT_END, &[]),
            Self::Output(bytes) => (OUTPUT, bytes),
            Self::Error(bytes) => (ERROR, bytes),
        };
        // One write for both: small frames are one packet.
        let mut bytes = Vec::with_capacity(content.len().saturating_add(HEADER));
        bytes.extend_from_slice(&header(kind, content.len())?);
        bytes.extend_from_slice(content);
        to.write_all(&bytes)
    }

    /// Put a frame of `stream` behind `bytes`, whose content `read` appends, and says how much that is. Nothing is put there if it fails, or
    /// if it says that there is nothing.
    ///
    /// # Errors
    /// That of `read`, or if it has appended more than [`MAX_FRAME`].
    pub fn append(
        stream: Stream,
        bytes: &mut Vec<u8>,
        read: impl FnOnce(&mut Vec<u8>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let kind = match stream {
            Stream::Output => OUTPUT,
            Stream::Error => ERROR,
        };
        let start = bytes.len();
        // Written over when the length is known.
        bytes.extend_from_slice(&[0; HEADER]);
        let put = read(bytes).and_then(|_| {
            let count = bytes.len().saturating_sub(start).saturating_sub(HEADER);
            header(kind, count).map(|header| (header, count))
        });
        match (put, bytes.get_mut(start..start.saturating_add(HEADER))) {
            (Ok((header, count)), Some(place)) if count > 0 => {
                place.copy_from_slice(&header);
                Ok(count)
            }
            (put, _) => {
                bytes.truncate(start);
                put.map(|_| 0)
            }
        }
    }

    /// The content of the `Input` frame that `bytes` begin with, where it lies, and how many bytes the frame is. `None` if it is not whole yet, or
    /// they begin with something else.
    #[must_use]
    pub fn split_input(bytes: &[u8]) -> Option<(&[u8], usize)> {
        let (kind, len) = begins(bytes)?;
        let end = len.checked_add(HEADER).filter(|_| kind == INPUT && len <= MAX_FRAME)?;
        bytes.get(HEADER..end).map(|content| (content, end))
    }

    /// The frame that `bytes` begin with, and how many of them it is. `None` if it is not whole yet.
    ///
    /// # Errors
    /// If they begin with none.
    pub fn split(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let Some((kind, len)) = begins(bytes) else { return Ok(None) };
        if len > MAX_FRAME || kind > ERROR {
            return Err(io::Error::new(ErrorKind::InvalidData, "this is no frame"));
        }
        let Some(whole) = bytes.get(..len.saturating_add(HEADER)) else { return Ok(None) };
        Ok(Self::read(&mut &*whole)?.map(|frame| (frame, whole.len())))
    }

    /// Read the next one. `None` at an end between two frames.
    ///
    /// # Errors
    /// If the connection fails, ends within a frame, or carries none.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut kind = [0];
        loop {
            match from.read(&mut kind) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut len = [0; 4];
        from.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_FRAME {
            return Err(io::Error::new(ErrorKind::InvalidData, "a frame is too long"));
        }
        let mut content = vec![0; len];
        from.read_exact(&mut content)?;
        match kind {
            [MESSAGE] => Ok(Some(Self::Message(content))),
            [INPUT] => Ok(Some(Self::Input(content))),
            [INPUT_END] => Ok(Some(Self::InputEnd)),
            [OUTPUT] => Ok(Some(Self::Output(content))),
            [ERROR] => Ok(Some(Self::Error(content))),
            _ => Err(io::Error::new(ErrorKind::InvalidData, "a frame is of no known kind")),
        }
    }
}

/// What stands before so much content.
fn header(kind: u8, len: usize) -> io::Result<[u8; HEADER]> {
    let len = u32::try_from(len).ok().filter(|len| *len as usize <= MAX_FRAME);
    let [a, b, c, d] =
        len.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "a frame is too long"))?.to_le_bytes();
    Ok([kind, a, b, c, d])
}

/// Kind and length of the frame that `bytes` begin with, whatever they are.
fn begins(bytes: &[u8]) -> Option<(u8, usize)> {
    let [kind, a, b, c, d] = *bytes.first_chunk()?;
    Some((kind, u32::from_le_bytes([a, b, c, d]) as usize))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let frames = [
            Frame::message(&7).unwrap(),
            Frame::Input(vec![1; MAX_FRAME]),
            Frame::InputEnd,
            Frame::Output(Vec::new()),
            Frame::Error(b"no".to_vec()),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes).unwrap());
        let mut from = &bytes[..];
        for frame in &frames {
            assert_eq!(Frame::read(&mut from).unwrap().as_ref(), Some(frame));
        }
        assert_eq!(Frame::read(&mut from).unwrap(), None);
    }

    #[test]
    fn frames_are_split_off_as_soon_as_they_are_whole() {
        let mut bytes = Vec::new();
        Frame::Output(b"out".to_vec()).write(&mut bytes).unwrap();
        for short in 0..bytes.len() {
            assert_eq!(Frame::split(&bytes[..short]).unwrap(), None);
        }
        Frame::InputEnd.write(&mut bytes).unwrap();
        assert_eq!(Frame::split(&bytes).unwrap(), Some((Frame::Output(b"out".to_vec()), 8)));
        assert_eq!(Frame::split(&bytes[8..]).unwrap(), Some((Frame::InputEnd, 5)));
        assert!(Frame::split(&[9, 0, 0, 0, 0]).is_err());
        assert!(Frame::split(&[1, 1, 0, 1, 0]).is_err());
    }

    #[test]
    fn a_frame_is_put_behind_others_with_what_there_is() {
        let mut bytes = b"before".to_vec();
        let put = |text: &'static [u8]| {
            move |to: &mut Vec<u8>| {
                to.extend_from_slice(text);
                Ok(text.len())
            }
        };
        assert_eq!(Frame::append(Stream::Error, &mut bytes, put(b"oh")).unwrap(), 2);
        let whole = bytes.clone();
        assert_eq!(Frame::split(&bytes[6..]).unwrap(), Some((Frame::Error(b"oh".to_vec()), 7)));
        assert_eq!(Frame::append(Stream::Output, &mut bytes, put(b"")).unwrap(), 0);
        let fails = |to: &mut Vec<u8>| {
            to.push(1);
            Err(ErrorKind::WouldBlock.into())
        };
        assert!(Frame::append(Stream::Output, &mut bytes, fails).is_err());
        assert!(Frame::append(Stream::Output, &mut bytes, put(&[0; MAX_FRAME + 1])).is_err());
        assert_eq!(bytes, whole);
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let read = Frame::read(&mut &bytes[..]);
            if let Ok(Some((frame, len))) = Frame::split(&bytes) {
                prop_assert!(len <= bytes.len());
                let input = Frame::split_input(&bytes).map(|(content, len)| (Frame::Input(content.to_vec()), len));
                prop_assert_eq!(input, matches!(frame, Frame::Input(_)).then(|| (frame.clone(), len)));
                prop_assert_eq!(read.unwrap(), Some(frame));
            } else {
                prop_assert_eq!(Frame::split_input(&bytes), None);
            }
        }
    }

    #[test]
    fn nothing_that_is_no_frame_is_read() {
        for bytes in [&[9, 0, 0, 0, 0][..], &[1, 1, 0, 1, 0], &[1, 4, 0, 0, 0, 1], &[1, 0]] {
            assert!(Frame::read(&mut &bytes[..]).is_err(), "{bytes:?}");
        }
        assert!(Frame::Input(vec![0; MAX_FRAME + 1]).write(&mut Vec::new()).is_err());
    }
}
