//! What the two ends of a box's port say to each other: frames of a kind byte, a length (u32, little
//! endian) and that many bytes. Pure values; no files.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result, bail};

/// The longest body either end sends; a longer one means that the stream is out of step.
pub const LIMIT: usize = 4 << 20;
const HEADER: usize = 5;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Host to box, first: what to run.
    Job(Job),
    /// Host to box: bytes for the command's input.
    Input(Vec<u8>),
    /// Host to box: the input has ended.
    InputEnd,
    /// Host to box: the terminal's new size.
    Size(Size),
    /// Host to box, every now and then: nothing, with an interrupt.
    Beat,
    /// Host to box: say what every program does.
    Look,
    /// Box to host: the agent is there and waits for its job.
    Hello,
    /// Box to host: the command wrote this.
    Output(Vec<u8>),
    /// Box to host: the command wrote this to its standard error.
    Error(Vec<u8>),
    /// Box to host, last: the command's exit code, or 128 plus the signal that ended it.
    Exit(u8),
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// A command and what it is to find around itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Whether to give it a terminal for input and output, and of what size.
    pub terminal: Option<Size>,
    /// Whether its standard error goes to that terminal too.
    pub error_to_terminal: bool,
    pub directory: OsString,
    pub arguments: Vec<OsString>,
    /// `NAME=value` each.
    pub environment: Vec<OsString>,
}

impl Frame {
    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u8, body: &[u8]| {
            out.push(kind);
            out.extend_from_slice(&(body.len() as u32).to_le_bytes());
            out.extend_from_slice(body);
        };
        match self {
            Frame::Job(job) => put(b'J', &job.encode()),
            Frame::Input(bytes) => put(b'I', bytes),
            Frame::InputEnd => put(b'N', &[]),
            Frame::Size(size) => put(b'S', &size.encode()),
            Frame::Beat => put(b'B', &[]),
            Frame::Look => put(b'L', &[]),
            Frame::Hello => put(b'H', &[]),
            Frame::Output(bytes) => put(b'O', bytes),
            Frame::Error(bytes) => put(b'E', bytes),
            Frame::Exit(code) => put(b'X', &[*code]),
        }
    }

    /// Takes the first whole frame off the front of `bytes`, or nothing if there is none yet.
    ///
    /// # Errors
    /// When the bytes are no frame.
    pub fn take(bytes: &mut Vec<u8>) -> Result<Option<Frame>> {
        let Some((kind, length)) = header(bytes) else {
            return Ok(None);
        };
        if length > LIMIT {
            bail!("a frame of {length} bytes");
        }
        let Some(body) = bytes.get(HEADER..HEADER + length) else {
            return Ok(None);
        };
        let frame = match kind {
            b'J' => Frame::Job(Job::decode(body)?),
            b'I' => Frame::Input(body.to_vec()),
            b'N' => Frame::InputEnd,
            b'S' => Frame::Size(Size::decode(body)?),
            b'B' => Frame::Beat,
            b'L' => Frame::Look,
            b'H' => Frame::Hello,
            b'O' => Frame::Output(body.to_vec()),
            b'E' => Frame::Error(body.to_vec()),
            b'X' => Frame::Exit(*body.first().context("an exit frame without its code")?),
            other => bail!("a frame of unknown kind {other:#x}"),
        };
        bytes.drain(..HEADER + length);
        Ok(Some(frame))
    }
}

fn header(bytes: &[u8]) -> Option<(u8, usize)> {
    let (kind, rest) = bytes.split_first()?;
    let length: [u8; 4] = rest.get(..4)?.try_into().ok()?;
    Some((*kind, u32::from_le_bytes(length) as usize))
}

impl Size {
    fn encode(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.rows.to_le_bytes(), self.columns.to_le_bytes());
        [a, b, c, d]
    }

    fn decode(body: &[u8]) -> Result<Size> {
        let [a, b, c, d] = body.try_into().context("a terminal size of the wrong length")?;
        Ok(Size { rows: u16::from_le_bytes([a, b]), columns: u16::from_le_bytes([c, d]) })
    }
}

impl Job {
    /// Strings that end in NUL, which none of them can hold: the terminal, the directory, the number of
    /// arguments, then arguments and environment.
    fn encode(&self) -> Vec<u8> {
        let terminal = match self.terminal {
            Some(size) => format!("{} {} {}", size.rows, size.columns, u8::from(self.error_to_terminal)),
            None => String::new(),
        };
        let count = self.arguments.len().to_string();
        let mut out = Vec::new();
        let head = [OsStr::new(&terminal), &self.directory, OsStr::new(&count)];
        let rest = self.arguments.iter().chain(&self.environment).map(OsString::as_os_str);
        for text in head.into_iter().chain(rest) {
            out.extend_from_slice(text.as_bytes());
            out.push(0);
        }
        out
    }

    fn decode(body: &[u8]) -> Result<Job> {
        let body = body.strip_suffix(&[0]).context("a job that is cut short")?;
        let mut texts = body.split(|byte| *byte == 0).map(|text| OsString::from_vec(text.to_vec()));
        let mut next = || texts.next().context("a job that is cut short");
        let (terminal, directory, count) = (next()?, next()?, next()?);
        let numbers: Vec<u16> = terminal.to_string_lossy().split_whitespace().flat_map(str::parse).collect();
        let (terminal, error_to_terminal) = match numbers[..] {
            [rows, columns, error] => (Some(Size { rows, columns }), error != 0),
            _ => (None, false),
        };
        let count: usize = count.to_string_lossy().parse().context("a job's number of arguments")?;
        let arguments = texts.by_ref().take(count).collect();
        Ok(Job { terminal, error_to_terminal, directory, arguments, environment: texts.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way_in_pieces() {
        let job = Job {
            terminal: Some(Size { rows: 24, columns: 80 }),
            error_to_terminal: true,
            directory: "/a b".into(),
            arguments: vec!["sh".into(), "".into()],
            environment: vec!["A=1".into(), OsString::from_vec(vec![b'B', b'=', 0xff])],
        };
        let size = Size { rows: 1, columns: 300 };
        let frames = [
            Frame::Job(job),
            Frame::Input(vec![0, 1, 255]),
            Frame::InputEnd,
            Frame::Size(size),
            Frame::Beat,
            Frame::Look,
            Frame::Exit(7),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        let (mut received, mut arrived) = (Vec::new(), Vec::new());
        for byte in bytes {
            arrived.push(byte);
            received.extend(Frame::take(&mut arrived).unwrap());
        }
        assert_eq!(received, frames);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Frame::take(&mut vec![b'?', 0, 0, 0, 0]).is_err());
        assert!(Frame::take(&mut vec![b'I', 255, 255, 255, 255]).is_err());
    }
}
