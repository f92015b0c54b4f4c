//! The directory of a run's results: what was printed, what was fetched, and the result.
//!
//! ```text
//! skiff-test/                    ignored by git; .lock in it says whose it is
//!   debian-12/                   one a test
//!     output.log                 what the command printed
//!     console.log                what the guest's kernel printed
//!     setup.log                  what the setup printed, if it failed
//!     artifacts/…                what was fetched
//!     result.json                see [`Ran`](super::report::Ran)
//!     skiff.log                  what skiff had to say, if it had
//!     retry-1/… round-2/…        the same of further runs
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::FlockOperation;

use super::report::Ran;
use super::schedule::Turn;
use crate::transfer;

/// What the command printed.
pub const OUTPUT_LOG: &str = "output.log";
/// What the guest's kernel printed.
const CONSOLE_LOG: &str = "console.log";
/// What skiff had to say.
const SKIFF_LOG: &str = "skiff.log";
/// What became of it.
const RESULT: &str = "result.json";
/// What the setup printed, if it failed.
pub const SETUP_LOG: &str = "setup.log";
/// What was fetched.
const ARTIFACTS: &str = "artifacts";
/// Whose the directory is, and that it is one of these.
const LOCK: &str = ".lock";
const MARK: &[u8] = b"results of skiff test\n";
/// The most that is kept of what a command prints, in bytes.
const MOST: u64 = 256 << 20;

/// Where a run's results go, below `output`.
pub fn of_turn(output: &Path, slug: &str, turn: Turn) -> PathBuf {
    let mut dir = output.join(slug);
    if turn.round > 0 {
        dir.push(format!("round-{}", turn.round.saturating_add(1)));
    }
    if turn.attempt > 0 {
        dir.push(format!("retry-{}", turn.attempt));
    }
    dir
}

/// Make the directory of all results, or use one that a run before has made: what is in it goes. It is this run's as long as what this
/// returns is there.
pub fn begin(output: &Path) -> Result<File> {
    let failed = || format!("cannot write in {}: choose another directory with --output", output.display());
    fs::create_dir_all(output).with_context(failed)?;
    let path = output.join(LOCK);
    if !fs::read(&path).is_ok_and(|text| text == MARK) {
        for entry in fs::read_dir(output).with_context(failed)? {
            // A run that was killed at its very beginning has left it empty.
            if entry.with_context(failed)?.file_name() != LOCK {
                bail!(
                    "{} has files that skiff test has not written: choose a new or empty directory with --output",
                    output.display()
                );
            }
        }
    }
    // As it is, for it may be another run's.
    let mut lock = open(&path).with_context(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another skiff test writes its results to {}: wait for it, or choose another directory with --output",
            output.display()
        ),
        locked => locked.with_context(failed)?,
    }
    lock.set_len(0).and_then(|()| lock.write_all(MARK)).with_context(failed)?;
    match OpenOptions::new().write(true).create_new(true).open(output.join(".gitignore")) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        file => file.and_then(|mut file| file.write_all(b"*\n")).with_context(failed)?,
    }
    Ok(lock)
}

/// Remove what the last run left of the test `slug`. What looks like something else stays, and is in the way.
pub fn clear(output: &Path, slug: &str) -> Result<()> {
    let dir = output.join(slug);
    let ours = [OUTPUT_LOG, RESULT, SKIFF_LOG, SETUP_LOG].iter().any(|name| dir.join(name).is_file());
    if !ours {
        return Ok(());
    }
    let failed = || format!("cannot remove {}", dir.display());
    // What guests have made in it may be of any depth.
    let below = File::open(output).with_context(failed)?;
    images::tree::remove(std::os::fd::AsFd::as_fd(&below), Path::new(slug)).with_context(failed)
}

/// Remove what a run left half done in its directory that was ended.
pub fn tidy(dir: &Path) {
    let Ok(artifacts) = File::open(dir.join(ARTIFACTS)) else { return };
    for entry in fs::read_dir(dir.join(ARTIFACTS)).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(transfer::ASIDE)) {
            // It may stay as well: the next run removes it with all of the directory.
            let _ = images::tree::remove(std::os::fd::AsFd::as_fd(&artifacts), Path::new(&name));
        }
    }
}

/// Write what the setup has printed into the directory of the test `slug`.
pub fn write_setup_log(output: &Path, slug: &str, log: &[u8]) -> Result<()> {
    let dir = output.join(slug);
    let path = dir.join(SETUP_LOG);
    let write = || fs::create_dir_all(&dir).and_then(|()| create(&path)?.write_all(log));
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// A run's directory.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    output: File,
    room: u64,
}

impl Folder {
    /// Make it, or use it.
    pub fn make(dir: &Path) -> Result<Self> {
        let failed = || format!("cannot write in {}", dir.display());
        fs::create_dir_all(dir).with_context(failed)?;
        let output = create(&dir.join(OUTPUT_LOG)).with_context(failed)?;
        Ok(Self { dir: dir.to_owned(), output, room: MOST })
    }

    /// The command has printed this.
    pub fn output(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = usize::try_from(self.room).unwrap_or(usize::MAX).min(bytes.len());
        self.room = self.room.saturating_sub(len as u64);
        self.output.write_all(bytes.get(..len).unwrap_or_default())
    }

    /// It has printed more than is kept.
    pub fn is_full(&self) -> bool {
        self.room == 0
    }

    /// For what skiff has to say of it.
    pub fn skiff_log(&self) -> Result<File> {
        let path = self.dir.join(SKIFF_LOG);
        create(&path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// For what the guest's console has printed.
    pub fn console_log(&self) -> PathBuf {
        self.dir.join(CONSOLE_LOG)
    }

    /// Where artifacts go; made.
    pub fn artifacts(&self) -> io::Result<PathBuf> {
        let dir = self.dir.join(ARTIFACTS);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Write down what became of it, and leave no empty log.
    pub fn end(&self, ran: &Ran) -> Result<()> {
        let log = self.dir.join(SKIFF_LOG);
        if fs::metadata(&log).is_ok_and(|found| found.len() == 0) {
            // It may stay as well.
            let _ = fs::remove_file(&log);
        }
        let path = self.dir.join(RESULT);
        fs::write(&path, crate::cmd::json(ran)?).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A new file. No link is followed: guests have made some in directories beside.
pub fn create(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    file.set_len(0)?;
    Ok(file)
}

/// The file at `path` as it is, or a new one.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::test::outcome::Verdict;

    #[test]
    fn every_run_has_a_directory_of_its_own() {
        let dir = |round, attempt| of_turn(Path::new("out"), "a", Turn { case: 0, round, attempt });
        assert_eq!(dir(0, 0), Path::new("out/a"));
        assert_eq!(dir(2, 0), Path::new("out/a/round-3"));
        assert_eq!(dir(0, 1), Path::new("out/a/retry-1"));
    }

    #[test]
    fn what_is_written_is_there_and_goes_with_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out");
        drop(begin(&output).unwrap());
        let lock = begin(&output).unwrap();
        let error = format!("{:#}", begin(&output).unwrap_err());
        assert!(error.contains("another skiff test") && error.contains("--output"), "{error}");
        drop(lock);
        assert_eq!(fs::read_to_string(output.join(".gitignore")).unwrap(), "*\n");
        let mut folder = Folder::make(&output.join("a")).unwrap();
        folder.output(b"one\n").unwrap();
        drop(folder.skiff_log().unwrap());
        fs::write(folder.console_log(), "boot").unwrap();
        fs::write(folder.artifacts().unwrap().join("x"), "y").unwrap();
        folder.end(&Ran::without(Verdict::Passed, "")).unwrap();
        let names = |dir: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&output.join("a")), ["artifacts", "console.log", "output.log", "result.json"]);
        clear(&output, "a").unwrap();
        assert!(!output.join("a").exists());
        clear(&output, "a").unwrap();
    }

    #[test]
    fn what_was_fetched_in_part_goes_and_what_was_fetched_stays() {
        let dir = tempfile::tempdir().unwrap();
        tidy(dir.path());
        let artifacts = Folder::make(dir.path()).unwrap().artifacts().unwrap();
        fs::create_dir_all(artifacts.join(format!("{}1/a", transfer::ASIDE))).unwrap();
        fs::write(artifacts.join("whole"), "x").unwrap();
        tidy(dir.path());
        let left: Vec<_> =
            fs::read_dir(&artifacts).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["whole"]);
    }

    #[test]
    fn a_directory_that_is_none_of_these_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        fs::write(dir.path().join("home/notes"), "x").unwrap();
        let error = format!("{:#}", begin(&dir.path().join("home")).unwrap_err());
        assert!(error.contains("has not written") && error.contains("--output"), "{error}");
        assert!(!dir.path().join("home/.gitignore").exists());
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/thesis.tex"), "x").unwrap();
        clear(dir.path(), "a").unwrap();
        assert!(dir.path().join("a/thesis.tex").exists());
    }

    #[test]
    fn no_command_fills_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::make(dir.path()).unwrap();
        folder.room = 5;
        folder.output(b"1234567").unwrap();
        folder.output(b"89").unwrap();
        assert!(folder.is_full());
        assert_eq!(fs::read(dir.path().join(OUTPUT_LOG)).unwrap(), b"12345");
    }
}
