//! [`Frame`]s on the wire: one byte of kind, four of length (little-endian), the content.

use std::io::{self, ErrorKind, Read, Write};

use super::types::{Frame, MAX_FRAME};

const OUTPUT: u8 = 1;
const SKIPPED: u8 = 2;
const ENDED: u8 = 3;
const DETACH: u8 = 4;
const INPUT: u8 = 5;
const RESIZE: u8 = 6;

impl Frame {
    /// Wait for the next frame of `from`. `None` at its end.
    ///
    /// # Errors
    /// If reading fails, a frame is cut off (`UnexpectedEof`), or this is no frame (`InvalidData`).
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let Some(kind) = read_kind(from)? else { return Ok(None) };
        let mut len = [0; 4];
        from.read_exact(&mut len).map_err(cut_off)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_FRAME {
            return Err(no_frame(format!("{len} bytes are too many")));
        }
        let mut content = vec![0; len];
        from.read_exact(&mut content).map_err(cut_off)?;
        Self::decode(kind, content)
    }

    fn decode(kind: u8, content: Vec<u8>) -> io::Result<Option<Self>> {
        let len = content.len();
        let wrong_len = || no_frame(format!("{len} bytes do not fit the kind {kind}"));
        Ok(Some(match kind {
            OUTPUT => Self::Output(content),
            INPUT => Self::Input(content),
            SKIPPED => Self::Skipped(u64::from_le_bytes(content.try_into().map_err(|_| wrong_len())?)),
            ENDED => {
                Self::Ended(serde_json::from_slice(&content).map_err(|error| no_frame(error.to_string()))?)
            }
            DETACH if len == 0 => Self::Detach,
            RESIZE => {
                let [c0, c1, r0, r1] = <[u8; 4]>::try_from(content).map_err(|_| wrong_len())?;
                Self::Resize { columns: u16::from_le_bytes([c0, c1]), rows: u16::from_le_bytes([r0, r1]) }
            }
            DETACH => return Err(wrong_len()),
            _ => return Err(no_frame(format!("the kind {kind} is unknown"))),
        }))
    }

    /// Write it whole.
    ///
    /// # Errors
    /// If writing fails, or its content is longer than [`MAX_FRAME`] (`InvalidInput`, and nothing is written).
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let resize;
        let skipped;
        let ended;
        let (kind, content): (u8, &[u8]) = match self {
            Self::Output(bytes) => (OUTPUT, bytes),
            Self::Input(bytes) => (INPUT, bytes),
            Self::Skipped(count) => {
                skipped = count.to_le_bytes();
                (SKIPPED, &skipped)
            }
            Self::Ended(how) => {
                ended = serde_json::to_vec(how)?;
                (ENDED, &ended)
            }
            Self::Detach => (DETACH, &[]),
            Self::Resize { columns, rows } => {
                let ([c0, c1], [r0, r1]) = (columns.to_le_bytes(), rows.to_le_bytes());
                resize = [c0, c1, r0, r1];
                (RESIZE, &resize)
            }
        };
        let len = u32::try_from(content.len()).ok().filter(|_| content.len() <= MAX_FRAME);
        let Some(len) = len else { return Err(ErrorKind::InvalidInput.into()) };
        // In one piece: others may write to the same connection.
        let mut bytes = Vec::with_capacity(content.len() + 5);
        bytes.push(kind);
        bytes.extend(len.to_le_bytes());
        bytes.extend(content);
        to.write_all(&bytes)
    }
}

/// `None` at the end, which may come between frames only.
fn read_kind(from: &mut impl Read) -> io::Result<Option<u8>> {
    let mut kind = [0];
    loop {
        match from.read(&mut kind) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(kind[0])),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn cut_off(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::UnexpectedEof => {
            io::Error::new(ErrorKind::UnexpectedEof, "the connection ended in the middle of a frame")
        }
        _ => error,
    }
}

fn no_frame(why: String) -> io::Error {
    let why = format!(
        "what comes over the connection is no frame ({why}): is the other end another version of skiff?"
    );
    io::Error::new(ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::types::Ended;
    use crate::control::Outcome;

    fn frames() -> impl Strategy<Value = Frame> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            bytes().prop_map(Frame::Output),
            bytes().prop_map(Frame::Input),
            any::<u64>().prop_map(Frame::Skipped),
            ".*".prop_map(|why| Frame::Ended(Ended::Failed(why))),
            prop::collection::vec(".*", 0..5)
                .prop_map(|last_lines| Frame::Ended(Ended::Outcome(Outcome::Panicked { last_lines }))),
            Just(Frame::Detach),
            any::<(u16, u16)>().prop_map(|(columns, rows)| Frame::Resize { columns, rows }),
        ]
    }

    fn wire(frames: &[Frame]) -> Vec<u8> {
        let mut wire = Vec::new();
        for frame in frames {
            frame.write(&mut wire).unwrap();
        }
        wire
    }

    proptest! {
        #[test]
        fn frames_come_back_as_they_went(frames in prop::collection::vec(frames(), 0..8)) {
            let wire = wire(&frames);
            let mut from = &wire[..];
            for frame in frames {
                prop_assert_eq!(Frame::read(&mut from).unwrap(), Some(frame));
            }
            prop_assert_eq!(Frame::read(&mut from).unwrap(), None);
        }

        #[test]
        fn a_frame_that_is_cut_off_is_an_error(frame in frames(), at in any::<prop::sample::Index>()) {
            let wire = wire(&[frame]);
            let at = 1 + at.index(wire.len() - 1);
            prop_assert_eq!(Frame::read(&mut &wire[..at]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }

        #[test]
        fn garbage_is_an_error_or_a_frame_that_can_be_written(garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(frame)) = Frame::read(&mut &garbage[..]) {
                frame.write(&mut io::sink()).unwrap();
            }
        }
    }

    #[test]
    fn what_is_too_long_is_neither_written_nor_read() {
        let mut wire = Vec::new();
        let error = Frame::Output(vec![0; MAX_FRAME + 1]).write(&mut wire).unwrap_err();
        assert_eq!((error.kind(), wire.len()), (ErrorKind::InvalidInput, 0));
        Frame::Output(vec![0; MAX_FRAME]).write(&mut wire).unwrap();
        let len = (MAX_FRAME as u32 + 1).to_le_bytes();
        wire[1..5].copy_from_slice(&len);
        assert_eq!(Frame::read(&mut &wire[..]).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn kinds_and_lengths_are_checked() {
        for (wire, says) in [
            (&[0_u8, 0, 0, 0, 0][..], "kind 0 is unknown"),
            (&[DETACH, 1, 0, 0, 0, 9], "1 bytes do not fit"),
            (&[RESIZE, 1, 0, 0, 0, 9], "1 bytes do not fit"),
            (&[SKIPPED, 1, 0, 0, 0, 9], "1 bytes do not fit"),
            (&[ENDED, 1, 0, 0, 0, b'{'], "EOF while parsing"),
        ] {
            let text = Frame::read(&mut &wire[..]).unwrap_err().to_string();
            assert!(text.contains(says), "{text}");
        }
    }
}
