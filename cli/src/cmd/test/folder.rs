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
//! Tests may have the directory too, in a folder that is shared: see [`Dir`].

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::FlockOperation;

use super::report::Ran;
use super::schedule::Turn;
use crate::held::Dir;
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
/// More than the mark has bytes.
const MOST_MARK: u64 = 64;
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

/// Make the directory of all results, or use one that a run before has made: what is in it goes. It is this run's as long as the second of
/// what this returns is there.
pub fn begin(path: &Path) -> Result<(Dir, File)> {
    let failed = || format!("cannot write in {}: choose another directory with --output", path.display());
    let output = Dir::open_or_make(path).with_context(failed)?;
    let mut mark = Vec::new();
    let read = output.file(Path::new(LOCK)).and_then(|file| file.take(MOST_MARK).read_to_end(&mut mark));
    let is_ours = read.is_ok() && mark == MARK;
    // A run that was killed at its very beginning has left it empty.
    let is_new = || Ok::<_, io::Error>(output.names()?.iter().all(|name| name == LOCK));
    if !is_ours && !is_new().with_context(failed)? {
        bail!(
            "{} has files that skiff test has not written: choose a new or empty directory with --output",
            path.display()
        );
    }
    // As it is, for it may be another run's.
    let mut lock = output.open_file(Path::new(LOCK)).with_context(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another skiff test writes its results to {}: wait for it, or choose another directory with --output",
            path.display()
        ),
        locked => locked.with_context(failed)?,
    }
    lock.set_len(0).and_then(|()| lock.write_all(MARK)).with_context(failed)?;
    match output.create_new(OsStr::new(".gitignore")) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        file => file.and_then(|mut file| file.write_all(b"*\n")).with_context(failed)?,
    }
    Ok((output, lock))
}

/// Remove what the last run left of the test `slug`. What looks like something else stays, and is in the way.
pub fn clear(output: &Dir, slug: &str) -> Result<()> {
    let ours = |dir: Dir| {
        [OUTPUT_LOG, RESULT, SKIFF_LOG, SETUP_LOG].iter().any(|name| dir.file(Path::new(name)).is_ok())
    };
    if !output.below(Path::new(slug)).is_ok_and(ours) {
        return Ok(());
    }
    // What guests have made in it may be of any depth.
    let removed = output.remove(OsStr::new(slug));
    removed.with_context(|| format!("cannot remove {}", output.path().join(slug).display()))
}

/// Remove what a run left half done in its directory `dir`, if it has.
pub fn tidy(output: &Dir, dir: &Path) {
    let Ok(artifacts) = output.below(&dir.join(ARTIFACTS)) else { return };
    for name in artifacts.names().unwrap_or_default() {
        if name.to_str().is_some_and(|name| name.starts_with(transfer::ASIDE)) {
            // It may stay as well: the next run removes it with all of the directory.
            let _ = artifacts.remove(&name);
        }
    }
}

/// Write what the setup has printed into the directory of the test `slug`.
pub fn write_setup_log(output: &Dir, slug: &str, log: &[u8]) -> Result<()> {
    let write = || output.make(Path::new(slug))?.create(Path::new(SETUP_LOG))?.write_all(log);
    let failed = || format!("cannot write {}", output.path().join(slug).join(SETUP_LOG).display());
    write().with_context(failed)
}

/// Write down what became of a run that has not come to write it itself.
pub fn write_result(output: &Dir, dir: &Path, ran: &Ran) -> Result<()> {
    let json = crate::cmd::json(ran)?;
    let write = || match output.make(dir)? {
        dir if dir.has(OsStr::new(RESULT)) => Ok(()),
        dir => dir.replace(OsStr::new(RESULT), json.as_bytes()),
    };
    write().with_context(|| format!("cannot write {}", dir.join(RESULT).display()))
}

/// A run's directory.
#[derive(Debug)]
pub struct Folder {
    dir: Dir,
    output: File,
    room: u64,
}

impl Folder {
    /// Make it, or use it.
    pub fn make(output: &Dir, dir: &Path) -> Result<Self> {
        let make = || {
            let dir = output.make(dir)?;
            Ok::<_, io::Error>((dir.create(Path::new(OUTPUT_LOG))?, dir))
        };
        let (output, dir) = make().with_context(|| format!("cannot write in {}", dir.display()))?;
        Ok(Self { dir, output, room: MOST })
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
        let created = self.dir.create(Path::new(SKIFF_LOG));
        created.with_context(|| format!("cannot write {}", self.dir.path().join(SKIFF_LOG).display()))
    }

    /// For what the guest's console has printed.
    pub fn console_log(&self) -> io::Result<File> {
        self.dir.create(Path::new(CONSOLE_LOG))
    }

    /// Where artifacts go; made.
    pub fn artifacts(&self) -> io::Result<Dir> {
        self.dir.make(Path::new(ARTIFACTS))
    }

    /// Write down what became of it, and leave no empty log.
    pub fn end(&self, ran: &Ran) -> Result<()> {
        let log = self.dir.file(Path::new(SKIFF_LOG)).and_then(|log| log.metadata());
        if log.is_ok_and(|found| found.len() == 0) {
            // It may stay as well.
            let _ = self.dir.remove(OsStr::new(SKIFF_LOG));
        }
        let written = self.dir.replace(OsStr::new(RESULT), crate::cmd::json(ran)?.as_bytes());
        written.with_context(|| format!("cannot write {}", self.dir.path().join(RESULT).display()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        let (held, _lock) = begin(&output).unwrap();
        assert_eq!(fs::read_to_string(output.join(".gitignore")).unwrap(), "*\n");
        let mut folder = Folder::make(&held, Path::new("a")).unwrap();
        folder.output(b"one\n").unwrap();
        drop(folder.skiff_log().unwrap());
        folder.console_log().unwrap().write_all(b"boot").unwrap();
        fs::write(folder.artifacts().unwrap().path().join("x"), "y").unwrap();
        folder.end(&Ran::without(Verdict::Passed, "")).unwrap();
        let names = |dir: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&output.join("a")), ["artifacts", "console.log", "output.log", "result.json"]);
        clear(&held, "a").unwrap();
        assert!(!output.join("a").exists());
        clear(&held, "a").unwrap();
    }

    #[test]
    fn what_was_fetched_in_part_goes_and_what_was_fetched_stays() {
        let dir = tempfile::tempdir().unwrap();
        let held = Dir::open(dir.path()).unwrap();
        tidy(&held, Path::new("a"));
        let artifacts = Folder::make(&held, Path::new("a")).unwrap().artifacts().unwrap();
        let artifacts = artifacts.path();
        fs::create_dir_all(artifacts.join(format!("{}1/a", transfer::ASIDE))).unwrap();
        fs::write(artifacts.join("whole"), "x").unwrap();
        tidy(&held, Path::new("a"));
        let left: Vec<_> = fs::read_dir(artifacts).unwrap().map(|entry| entry.unwrap().file_name()).collect();
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
        clear(&Dir::open(dir.path()).unwrap(), "a").unwrap();
        assert!(dir.path().join("a/thesis.tex").exists());
    }

    #[test]
    fn what_a_guest_puts_in_the_place_of_results_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out");
        let (held, _lock) = begin(&output).unwrap();
        fs::write(dir.path().join("profile"), "mine").unwrap();
        let folder = Folder::make(&held, Path::new("a")).unwrap();
        for name in [RESULT, CONSOLE_LOG, SKIFF_LOG] {
            std::os::unix::fs::symlink("../../profile", output.join("a").join(name)).unwrap();
        }
        std::os::unix::fs::symlink("../..", output.join("a").join(ARTIFACTS)).unwrap();
        assert!(folder.console_log().is_err() && folder.skiff_log().is_err() && folder.artifacts().is_err());
        folder.end(&Ran::without(Verdict::Failed, "x")).unwrap();
        assert!(fs::read_to_string(output.join("a/result.json")).unwrap().contains("\"x\""));
        std::os::unix::fs::symlink("..", output.join("b")).unwrap();
        assert!(Folder::make(&held, Path::new("b")).is_err());
        assert!(write_setup_log(&held, "b", b"x").is_err());
        assert_eq!(fs::read_to_string(dir.path().join("profile")).unwrap(), "mine");
    }

    #[test]
    fn no_command_fills_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::make(&Dir::open(dir.path()).unwrap(), Path::new(".")).unwrap();
        folder.room = 5;
        folder.output(b"1234567").unwrap();
        folder.output(b"89").unwrap();
        assert!(folder.is_full());
        assert_eq!(fs::read(dir.path().join(OUTPUT_LOG)).unwrap(), b"12345");
    }
}
