//! [`Frame`]: a piece of a connection. One byte of kind, four of length (little-endian), the content.

use std::io::{self, ErrorKind, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest content of a frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

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
            Self::Message(bytes) => (0, bytes),
            Self::Input(bytes) => (1, bytes),
            Self::InputEnd => (2, &[]),
            Self::Output(bytes) => (3, bytes),
            Self::Error(bytes) => (4, bytes),
        };
        let len = u32::try_from(content.len()).ok().filter(|len| *len as usize <= MAX_FRAME);
        let len = len.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "a frame is too long"))?;
        // One write for both: small frames are one packet.
        let mut bytes = Vec::with_capacity(content.len().saturating_add(5));
        bytes.push(kind);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(content);
        to.write_all(&bytes)
    }

    /// The frame that `bytes` begin with, and how many of them it is. `None` if it is not whole yet.
    ///
    /// # Errors
    /// If they begin with none.
    pub fn split(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let Some((kind, [a, b, c, d])) =
            bytes.split_first().and_then(|(kind, rest)| Some((kind, rest.first_chunk()?)))
        else {
            return Ok(None);
        };
        let len = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        if len > MAX_FRAME || *kind > 4 {
            return Err(io::Error::new(ErrorKind::InvalidData, "this is no frame"));
        }
        let Some(whole) = bytes.get(..len.saturating_add(5)) else { return Ok(None) };
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
            [0] => Ok(Some(Self::Message(content))),
            [1] => Ok(Some(Self::Input(content))),
            [2] => Ok(Some(Self::InputEnd)),
            [3] => Ok(Some(Self::Output(content))),
            [4] => Ok(Some(Self::Error(content))),
            _ => Err(io::Error::new(ErrorKind::InvalidData, "a frame is of no known kind")),
        }
    }
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

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let read = Frame::read(&mut &bytes[..]);
            if let Ok(Some((frame, len))) = Frame::split(&bytes) {
                prop_assert!(len <= bytes.len());
                prop_assert_eq!(read.unwrap(), Some(frame));
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
