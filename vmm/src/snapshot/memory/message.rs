//! What the saving process tells the VM's at its end. Values.

use std::io;

use super::child::Failure;
use super::error::Step;
use super::index::{Content, Run};

/// How it went.
pub(super) enum Message {
    /// All is in the file.
    Saved {
        /// Of all data.
        crc32: u32,
        /// Which pages there are.
        runs: Vec<Run>,
    },
    /// It is not.
    Failed(Failure),
}

/// The first byte.
const SAVED: u8 = 0;
const FAILED: u8 = 1;
/// Of a run's count: its pages are zero.
const ZERO: u32 = 1 << 31;
/// In place of a layer: none.
const NONE: u32 = u32::MAX;

impl Message {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Saved { crc32, runs } => {
                let mut bytes = Vec::with_capacity(runs.len().saturating_mul(8).saturating_add(5));
                bytes.push(SAVED);
                bytes.extend(crc32.to_ne_bytes());
                for run in runs {
                    let zero = if run.content == Content::Zero { ZERO } else { 0 };
                    bytes.extend(run.first.to_ne_bytes());
                    bytes.extend((run.count | zero).to_ne_bytes());
                }
                bytes
            }
            Self::Failed(Failure { step, layer, error }) => {
                let layer = layer.and_then(|layer| u32::try_from(layer).ok()).unwrap_or(NONE);
                let mut bytes = vec![FAILED, *step as u8];
                bytes.extend(layer.to_ne_bytes());
                // An error that is not the system's is a file that ends too early.
                bytes.extend(error.raw_os_error().unwrap_or(0).to_ne_bytes());
                bytes
            }
        }
    }

    /// `None` if it is not whole.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match *kind {
            SAVED => {
                let (crc32, rest) = rest.split_first_chunk()?;
                let (pairs, []) = rest.as_chunks::<8>() else { return None };
                let runs = pairs.iter().map(|[a, b, c, d, e, f, g, h]| {
                    let count = u32::from_ne_bytes([*e, *f, *g, *h]);
                    let content = if count & ZERO != 0 { Content::Zero } else { Content::Data };
                    Run { first: u32::from_ne_bytes([*a, *b, *c, *d]), count: count & !ZERO, content }
                });
                Some(Self::Saved { crc32: u32::from_ne_bytes(*crc32), runs: runs.collect() })
            }
            FAILED => {
                let (step, rest) = rest.split_first()?;
                let (layer, rest) = rest.split_first_chunk()?;
                let code = i32::from_ne_bytes(rest.try_into().ok()?);
                let error = match code {
                    0 => io::ErrorKind::UnexpectedEof.into(),
                    code => io::Error::from_raw_os_error(code),
                };
                let layer = usize::try_from(u32::from_ne_bytes(*layer)).ok().filter(|l| *l != NONE as usize);
                Some(Self::Failed(Failure { step: Step::from_code(*step)?, layer, error }))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_was_cut_short_is_none() {
        let runs = vec![
            Run { first: 7, count: 2, content: Content::Zero },
            Run { first: 9, count: 1, content: Content::Data },
        ];
        let bytes = Message::Saved { crc32: 0x1234_5678, runs: runs.clone() }.encode();
        let Some(Message::Saved { crc32: 0x1234_5678, runs: read }) = Message::decode(&bytes) else {
            panic!("{bytes:?}")
        };
        assert_eq!(read, runs);
        assert!(Message::decode(&bytes[..bytes.len() - 1]).is_none());
        assert!(Message::decode(&[]).is_none());

        let error = io::Error::from_raw_os_error(libc::ENOSPC);
        let bytes = Message::Failed(Failure { step: Step::Write, layer: None, error }).encode();
        let Some(Message::Failed(failure)) = Message::decode(&bytes) else { panic!("{bytes:?}") };
        assert_eq!((failure.step, failure.layer), (Step::Write, None));
        assert_eq!(failure.error.raw_os_error(), Some(libc::ENOSPC));
        assert!(Message::decode(&bytes[..bytes.len() - 1]).is_none());
    }
}
