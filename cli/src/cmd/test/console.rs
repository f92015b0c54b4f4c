//! [`Console`]: what a guest's kernel prints while its test runs. A panic is found there, whether the guest can tell its VM of it or not.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

/// How much of the end is looked through, in bytes.
const END: usize = 256 << 10;
/// How much is read at once, in bytes.
const READ: usize = 64 << 10;
/// What a kernel says last (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing";

/// See the module's documentation.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    /// Kept open: it goes with a VM that ends.
    file: Option<File>,
    end: Vec<u8>,
}

impl Console {
    /// The log at `path`, which is made if the guest has printed nothing yet.
    pub fn open(path: PathBuf) -> Self {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(&path).ok();
        Self { path, file, end: Vec::new() }
    }

    /// See what has come, as far as it can be read.
    pub fn look(&mut self) {
        let mut buffer = vec![0; READ];
        loop {
            let read = self.file.as_mut().map_or(Ok(0), |file| file.read(&mut buffer));
            match read {
                Ok(len @ 1..) => {
                    self.end.extend_from_slice(buffer.get(..len).unwrap_or_default());
                    let surplus = self.end.len().saturating_sub(END);
                    self.end.drain(..surplus);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A log that has become long is begun anew.
                Ok(_) | Err(_) => match self.next() {
                    Some(next) => self.file = Some(next),
                    None => return,
                },
            }
        }
    }

    /// The log that has taken this one's place, if one has.
    fn next(&self) -> Option<File> {
        let next = File::open(&self.path).ok()?;
        let (one, other) = (self.file.as_ref()?.metadata().ok()?, next.metadata().ok()?);
        (one.ino() != other.ino()).then_some(next)
    }

    /// The end of it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.end).into_owned()
    }

    /// The line by which the kernel tells that it has panicked, if it has.
    pub fn panic(&self) -> Option<String> {
        let found = self.end.windows(PANIC.len()).any(|words| words == PANIC.as_bytes());
        let text = if found { self.text() } else { return None };
        panic_line(text.lines()).map(str::to_owned)
    }

    /// Its end as a file of its own.
    pub fn write(&self, mut to: File) -> io::Result<()> {
        io::Write::write_all(&mut to, &self.end)
    }
}

/// The line that tells why the kernel has panicked. It says so again below the trace.
pub fn panic_line<'a>(mut lines: impl DoubleEndedIterator<Item = &'a str>) -> Option<&'a str> {
    lines.rfind(|line| line.contains(PANIC) && !line.contains("---[ end"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_panic_is_seen_when_it_comes_and_stays_when_the_log_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut console = Console::open(path.clone());
        console.look();
        assert_eq!(console.panic(), None);
        let mut log = OpenOptions::new().append(true).open(&path).unwrap();
        log.write_all(b"[ 1.0] boot\r\n").unwrap();
        console.look();
        assert!(console.text().contains("boot") && console.panic().is_none());
        // A new one takes its place.
        std::fs::rename(&path, path.with_extension("1")).unwrap();
        std::fs::write(
            &path,
            "[ 2.0] Kernel panic - not syncing: sysrq\r\n[ 2.1] ---[ end Kernel panic - not syncing ]---\r\n",
        )
        .unwrap();
        console.look();
        assert_eq!(console.panic().as_deref(), Some("[ 2.0] Kernel panic - not syncing: sysrq"));
        drop(dir);
        console.look();
        assert!(console.text().starts_with("[ 1.0] boot"));
    }

    #[test]
    fn no_guest_makes_it_keep_more_than_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, vec![b'x'; END * 3 + 5]).unwrap();
        let mut console = Console::open(path.clone());
        console.look();
        assert_eq!(console.end.len(), END);
        console.write(File::create(dir.path().join("copy")).unwrap()).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("copy")).unwrap().len(), END as u64);
        assert!(Console::open(dir.path().join("none/console.log")).panic().is_none());
    }
}
