//! Files and trees, as tar archives: [`pack`] sends, [`unpack`] takes, [`look`] says what is there.

mod pack;
mod unpack;

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::frame::{Frame, MAX_FRAME};
use agent::message::{Ended, Looked, Pack, Refusal, Unpack};

use crate::serve::{accept_request, refuse};
use crate::stream::Stream;
use crate::users;

/// How long the other side may be silent while it is still to take or to say something.
const GOODBYE: Duration = Duration::from_secs(2);

/// Entries of one archive at most: what is remembered of each is small.
const MAX_ENTRIES: usize = 4_000_000;

/// The path that a user means: relative ones begin at root's home.
fn resolve(path: &str) -> Result<PathBuf, Refusal> {
    if path.is_empty() || path.contains('\0') {
        return Err(Refusal::Failed("the path is empty or has a NUL in it".into()));
    }
    let home = || users::find(None).map(|user| user.home).map_err(Refusal::Failed);
    Ok(if path.starts_with('/') { PathBuf::from(path) } else { Path::new(&home()?).join(path) })
}

/// Say what is at a path.
pub fn look(mut stream: Stream, path: &str) -> io::Result<()> {
    let path = match resolve(path) {
        Ok(path) => path,
        Err(why) => return refuse(stream, why),
    };
    let looked = match fs::metadata(&path) {
        Ok(found) if found.is_dir() => Looked::Directory,
        Ok(found) => Looked::File { size: found.len() },
        // A link that leads nowhere can be copied, too.
        Err(_) => match fs::symlink_metadata(&path) {
            Ok(found) => Looked::File { size: found.len() },
            Err(_) => Looked::Nothing,
        },
    };
    accept_request(&mut stream)?;
    Frame::message(&looked)?.write(&mut stream)?;
    stream.finish(GOODBYE);
    Ok(())
}

/// Send a file or a tree.
pub fn pack(mut stream: Stream, wanted: &Pack) -> io::Result<()> {
    let found = resolve(&wanted.path).and_then(|path| {
        let metadata = if wanted.follow { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        metadata.map(|metadata| (path, metadata)).map_err(|error| failed(&wanted.path, &error))
    });
    let (path, metadata) = match found {
        Ok(found) => found,
        Err(why) => return refuse(stream, why),
    };
    accept_request(&mut stream)?;
    let mut output = Outputs { stream: &mut stream, bytes: Vec::with_capacity(MAX_FRAME) };
    let name = wanted.name.as_deref().map(Path::new);
    let packed = pack::pack(&path, &metadata, wanted.follow, name, &mut output).and_then(|()| output.flush());
    end(stream, packed)
}

/// Take an archive.
pub fn unpack(mut stream: Stream, wanted: &Unpack) -> io::Result<()> {
    let opened = resolve(&wanted.dir).and_then(|dir| {
        let owner = wanted.owner.as_deref().map(|owner| users::find(Some(owner))).transpose();
        let owner = owner.map_err(Refusal::Failed)?.map(|user| (user.uid, user.gid));
        unpack::Unpacker::new(&dir, wanted.rename.as_deref(), owner)
            .map_err(|error| failed(&wanted.dir, &error))
    });
    let unpacker = match opened {
        Ok(unpacker) => unpacker,
        Err(why) => return refuse(stream, why),
    };
    accept_request(&mut stream)?;
    let mut input = Inputs { stream: &mut stream, bytes: Vec::new(), at: 0, ended: false };
    let unpacked = unpacker.unpack(&mut input);
    // The other side may be in the midst of it: it reads how it went when it has said all.
    let rest = input.skip();
    end(stream, unpacked.and(rest))
}

fn failed(path: &str, error: &io::Error) -> Refusal {
    Refusal::Failed(format!("{path}: {error}"))
}

/// The last word of a transfer.
fn end(mut stream: Stream, result: io::Result<()>) -> io::Result<()> {
    let ended = match result {
        Ok(()) => Ended::Exited(0),
        Err(error) => Ended::Failed(error.to_string()),
    };
    Frame::message(&ended)?.write(&mut stream)?;
    stream.finish(GOODBYE);
    Ok(())
}

/// `Output` frames from what is written.
struct Outputs<'a> {
    stream: &'a mut Stream,
    bytes: Vec<u8>,
}

impl Write for Outputs<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_FRAME.saturating_sub(self.bytes.len());
        let part = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.bytes.extend_from_slice(part);
        if self.bytes.len() >= MAX_FRAME {
            self.flush()?;
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::replace(&mut self.bytes, Vec::with_capacity(MAX_FRAME));
        Frame::Output(bytes).write(self.stream)
    }
}

/// What is in `Input` frames, to `InputEnd`.
struct Inputs<'a> {
    stream: &'a mut Stream,
    bytes: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Inputs<'_> {
    /// Pass over the rest.
    fn skip(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        while self.read(&mut bytes)? > 0 {}
        Ok(())
    }
}

impl Read for Inputs<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.bytes.len() {
            if self.ended {
                return Ok(0);
            }
            match Frame::read(self.stream)? {
                Some(Frame::Input(bytes)) => (self.bytes, self.at) = (bytes, 0),
                Some(Frame::InputEnd) => self.ended = true,
                Some(_) => return Err(io::Error::other("something else than an archive was sent")),
                None => return Err(io::Error::other("the archive was not sent to its end")),
            }
        }
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let count = rest.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.at = self.at.saturating_add(count);
        Ok(count)
    }
}
