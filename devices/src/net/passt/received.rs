//! What was read of a stream of frames and not yet used: cut into frames as a value, without the socket.

use std::io::{self, Read};
use std::ops::Range;

use super::{MAX_FRAME, MIN_FRAME, PREFIX};

/// How much one read can bring, in bytes: many small frames, or four of the largest. Memory that is not touched costs nothing.
const CAPACITY: usize = 4 * (PREFIX + MAX_FRAME);

/// A length that no frame has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes, which no network has")]
pub(super) struct BadLength(u32);

/// A buffer between the stream and the guest.
pub(super) struct Received {
    bytes: Box<[u8]>,
    /// What lies in `bytes` and was not used.
    held: Range<usize>,
}

impl Received {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; CAPACITY].into_boxed_slice(), held: 0..0 }
    }

    /// The next frame, if it is there as a whole. It is used with this.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, BadLength> {
        let Some((prefix, rest)) =
            self.bytes.get(self.held.clone()).and_then(|held| held.split_first_chunk())
        else {
            return Ok(None);
        };
        let claimed = u32::from_be_bytes(*prefix);
        let len = usize::try_from(claimed).unwrap_or(usize::MAX);
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return Err(BadLength(claimed));
        }
        let Some(frame) = rest.get(..len) else { return Ok(None) };
        self.held.start += PREFIX + len;
        Ok(Some(frame))
    }

    /// Read once, after what is held. Says how many bytes came, 0 at the end of the stream.
    pub(super) fn read(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        // To the front: less than one frame is held when more is wanted, so there is room for the rest of it.
        self.bytes.copy_within(self.held.clone(), 0);
        self.held = 0..self.held.len();
        let room = self.bytes.get_mut(self.held.end..).unwrap_or_default();
        let count = stream.read(room)?;
        self.held.end += count.min(room.len());
        Ok(count)
    }
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Received").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(len: usize, fill: u8) -> Vec<u8> {
        let mut message = u32::try_from(len).unwrap().to_be_bytes().to_vec();
        message.resize(PREFIX + len, fill);
        message
    }

    /// All frames of `stream`, read in pieces of `piece` bytes.
    fn frames(stream: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, BadLength> {
        let mut received = Received::new();
        let mut frames = Vec::new();
        for mut piece in stream.chunks(piece) {
            while !piece.is_empty() {
                received.read(&mut piece).unwrap();
                while let Some(frame) = received.next()? {
                    frames.push(frame.to_vec());
                }
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let lens =
            [MIN_FRAME, 1514, 60, MAX_FRAME, MAX_FRAME, 14, 15, MAX_FRAME, 9000, MAX_FRAME, MAX_FRAME, 100];
        let stream: Vec<u8> = lens.iter().zip(1..).flat_map(|(len, n)| message(*len, n)).collect();
        for piece in [1, 3, 4, 5, 1000, 70_000, CAPACITY, usize::MAX] {
            let frames = frames(&stream, piece).unwrap();
            assert_eq!(frames.len(), lens.len(), "in pieces of {piece}");
            for ((frame, len), n) in frames.iter().zip(lens).zip(1..) {
                assert_eq!(*frame, vec![n; len], "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_length_that_no_frame_has_is_found_before_its_bytes_come() {
        for len in [0, MIN_FRAME - 1, MAX_FRAME + 1, 1 << 24, u32::MAX as usize] {
            let mut stream = message(60, 1);
            stream.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
            assert_eq!(frames(&stream, usize::MAX), Err(BadLength(u32::try_from(len).unwrap())));
        }
    }

    #[test]
    fn the_end_of_the_stream_is_no_frame() {
        let mut received = Received::new();
        received.read(&mut &message(60, 1)[..30]).unwrap();
        assert_eq!(received.next(), Ok(None));
        assert_eq!(received.read(&mut io::empty()).unwrap(), 0);
        assert_eq!(received.next(), Ok(None));
    }
}
