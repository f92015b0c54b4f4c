//! A request to a disk of layers: cut into pieces, each of which is one extent of one file, zeroes, or work for this thread.

use std::io;

use super::super::layers::Place;
use super::super::stack::{Stack, Target};
use super::files::Files;
use super::transfer::{BOUNCE, Step, Transfer};
use super::{Buffers, Io};

/// The most that is given its place at once, in bytes.
const WRITE: u64 = 256 * 1024;

/// Zeroes to put into guest memory.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A part of a request that one call after the other moves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Piece {
    member: usize,
    /// In the file.
    offset: u64,
    left: u64,
}

impl Piece {
    /// Some of it was moved.
    pub(super) fn advance(&mut self, moved: u64) {
        self.offset = self.offset.saturating_add(moved);
        self.left = self.left.saturating_sub(moved);
    }
}

impl Transfer {
    /// The next step of a request to `stack`.
    pub(super) fn layered_step(&mut self, files: &Files, stack: &Stack) -> io::Result<Step> {
        match &self.io {
            Io::Read { offset, .. } => self.read_layers(files, stack, *offset),
            Io::Write { offset, durable, .. } => self.write_layers(files, stack, *offset, *durable),
            Io::Flush if self.done > 0 => Ok(Step::Finished(Ok(()))),
            Io::Flush if stack.is_dirty() => Ok(Step::Finished(stack.flush())),
            Io::Flush => Ok(Step::Sync { file: stack.top_number() }),
            Io::Erase(extents) => {
                extents.iter().try_for_each(|extent| stack.erase(*extent))?;
                Ok(Step::Finished(Ok(())))
            }
        }
    }

    fn read_layers(&mut self, files: &Files, stack: &Stack, start: u64) -> io::Result<Step> {
        loop {
            let Io::Read { buffers, .. } = &self.io else { return Ok(Step::Finished(Ok(()))) };
            let left = buffers.total().saturating_sub(self.done);
            if left == 0 {
                return Ok(Step::Finished(Ok(())));
            }
            if self.piece.left == 0 {
                let at = start + self.done;
                let (place, len) = stack.locate(at, left)?;
                match place {
                    Place::Absent | Place::Zero => self.done += fill_zeroes(buffers, self.done, len)?,
                    Place::Data { member, offset } if self.suits(files, offset, len) => {
                        self.piece = Piece { member, offset, left: len };
                    }
                    Place::Data { .. } | Place::Packed { .. } => {
                        let mut data = vec![0; len.min(BOUNCE) as usize];
                        stack.read(at, &mut data)?;
                        buffers.fill(self.done, &data)?;
                        self.done += data.len() as u64;
                    }
                }
                continue;
            }
            let Piece { member, offset, left } = self.piece;
            self.aim(files, offset, left)?;
            return Ok(Step::Read { file: member, offset });
        }
    }

    fn write_layers(&mut self, files: &Files, stack: &Stack, start: u64, durable: bool) -> io::Result<Step> {
        loop {
            let Io::Write { buffers, .. } = &self.io else { return Ok(Step::Finished(Ok(()))) };
            let left = buffers.total().saturating_sub(self.done);
            if left == 0 {
                // What got its place is safe when the tables are; it may have got it from another queue's request just now.
                let unsafe_yet = durable && (self.copied || stack.is_dirty());
                let result = if unsafe_yet { stack.flush() } else { Ok(()) };
                return Ok(Step::Finished(result));
            }
            if self.piece.left == 0 {
                let at = start + self.done;
                match stack.target(at, left)? {
                    (Target::Placed { member, offset }, len) if self.suits(files, offset, len) => {
                        self.piece = Piece { member, offset, left: len };
                    }
                    (_, len) => {
                        let mut data = vec![0; len.min(WRITE) as usize];
                        buffers.fetch(self.done, &mut data)?;
                        stack.write(at, &data)?;
                        self.done += data.len() as u64;
                        self.copied = true;
                    }
                }
                continue;
            }
            let Piece { member, offset, left } = self.piece;
            self.aim(files, offset, left)?;
            self.fetch_bounce(left)?;
            return Ok(Step::Write { file: member, offset, durable });
        }
    }

    /// Whether direct I/O, if it is asked for, can move an extent of a file.
    fn suits(&self, files: &Files, offset: u64, len: u64) -> bool {
        files.direct().is_none_or(|align| (offset | len).is_multiple_of(align.offset.into()))
    }
}

fn fill_zeroes(buffers: &Buffers, from: u64, len: u64) -> io::Result<u64> {
    let mut done = 0;
    while done < len {
        let part = (len - done).min(ZEROES.len() as u64);
        buffers.fill(from + done, ZEROES.get(..part as usize).unwrap_or(&ZEROES))?;
        done += part;
    }
    Ok(len)
}
