//! What the guest printed, kept in a file of bounded size.
//!
//! A log that cannot be written (a full disk, a directory that is gone) stops neither the guest nor the VM: what it
//! misses is counted, it is tried again later, and then the log itself says how much is missing.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How large the file grows, in bytes. The one before it is kept too.
const LARGEST: u64 = 4 << 20;
/// How long a log that failed is left alone.
const RETRY: Duration = Duration::from_secs(1);
/// How often is complained of it.
const COMPLAIN: Duration = Duration::from_secs(60);

/// A log file. It is opened by the first bytes, not before: nothing is to delay the guest's start.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    open: Option<Open>,
    largest: u64,
    retry: Duration,
    /// Bytes lost since the last success.
    missing: u64,
    failed: Option<Instant>,
    complained: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    file: File,
    len: u64,
}

/// Where a log file goes when a new one is begun: `.1` after its name.
fn older(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

/// The file at `path`, as it is in `open` or anew, with room for `len` more bytes of `largest`.
fn with_room<'a>(
    open: &'a mut Option<Open>,
    path: &Path,
    len: u64,
    largest: u64,
) -> io::Result<&'a mut Open> {
    let mut current = match open.take() {
        Some(current) => current,
        None => Open::append(path)?,
    };
    if current.len > 0 && current.len.saturating_add(len) > largest {
        std::fs::rename(path, older(path))?;
        current = Open::append(path)?;
    }
    Ok(open.insert(current))
}

impl LogFile {
    pub(super) fn new(path: PathBuf) -> Self {
        let (open, failed, complained) = (None, None, None);
        Self { path, open, largest: LARGEST, retry: RETRY, missing: 0, failed, complained }
    }

    /// Add `bytes`, or count them as missing.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let resting = self.failed.is_some_and(|failed| failed.elapsed() < self.retry);
        if resting {
            self.missing = self.missing.saturating_add(bytes.len() as u64);
            return;
        }
        match self.try_append(bytes) {
            Ok(()) => self.failed = None,
            Err((error, written)) => self.fail(&error, bytes.len().saturating_sub(written)),
        }
    }

    /// On failure, says how many of `bytes` are in the file all the same.
    fn try_append(&mut self, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
        let open = with_room(&mut self.open, &self.path, bytes.len() as u64, self.largest);
        let open = open.map_err(|error| (error, 0))?;
        if self.missing > 0 {
            let note =
                format!("\r\n[skiff: {} bytes of the guest's output are missing here]\r\n", self.missing);
            let before = open.len;
            if let Err((error, _)) = open.write(note.as_bytes()) {
                // Half a note would only puzzle. If this fails as well, it does.
                let _ = open.file.set_len(before);
                return Err((error, 0));
            }
            self.missing = 0;
        }
        open.write(bytes)
    }

    fn fail(&mut self, error: &io::Error, lost: usize) {
        self.missing = self.missing.saturating_add(lost as u64);
        self.open = None;
        self.failed = Some(Instant::now());
        if self.complained.is_none_or(|last| last.elapsed() > COMPLAIN) {
            self.complained = self.failed;
            let path = self.path.display();
            log::warn!("the guest's output is missing from the log {path} until it can be written: {error}");
        }
    }
}

impl Open {
    fn append(path: &Path) -> io::Result<Self> {
        // Nobody but the VM's user reads what is typed and printed; a fifo in its place is not waited for.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    /// On failure, says how many bytes were written all the same.
    fn write(&mut self, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return Err((io::ErrorKind::WriteZero.into(), written)),
                Ok(count) => {
                    written += count;
                    self.len = self.len.saturating_add(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((error, written)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn log(dir: &tempfile::TempDir) -> (LogFile, PathBuf) {
        let path = dir.path().join("console.log");
        let mut log = LogFile::new(path.clone());
        log.retry = Duration::ZERO;
        (log, path)
    }

    #[test]
    fn a_full_log_becomes_the_older_one_and_nothing_is_lost_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = log(&dir);
        log.largest = 100;
        std::fs::write(older(&path), "from long ago").unwrap();
        for n in 0..25 {
            log.append(format!("line {n:02}\r\n").as_bytes());
        }
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let (old, new) = (read(&older(&path)), read(&path));
        assert!(old.len() <= 100 && new.len() <= 100);
        let expected: String = (11..25).map(|n| format!("line {n:02}\r\n")).collect();
        assert_eq!(old + &new, expected);
    }

    #[test]
    fn a_log_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (mut first, path) = log(&dir);
        first.append(b"first run\n");
        drop(first);
        log(&dir).0.append(b"second run\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"first run\nsecond run\n");
    }

    #[test]
    fn a_full_disk_loses_output_and_the_log_says_how_much() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, path) = log(&dir);
        symlink("/dev/full", &path).unwrap();
        log.append(b"lost");
        log.append(b"lost too");
        std::fs::remove_file(&path).unwrap();
        log.append(b"kept");
        log.append(b" as well");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "\r\n[skiff: 12 bytes of the guest's output are missing here]\r\nkept as well");
    }

    #[test]
    fn a_directory_that_comes_late_is_no_reason_to_stop_and_a_failed_log_rests() {
        let dir = tempfile::tempdir().unwrap();
        let late = dir.path().join("late");
        let path = late.join("console.log");
        let mut log = LogFile::new(path.clone());
        log.append(b"lost");
        std::fs::create_dir(&late).unwrap();
        log.append(b"resting");
        assert!(!path.exists());
        log.retry = Duration::ZERO;
        log.append(b"kept");
        assert!(std::fs::read_to_string(&path).unwrap().contains("11 bytes"));
    }
}
