//! A guest that can tell whether it has been put back to an instant, all of it: its memory, its disk and its clock.
//!
//! Two threads keep what they know in memory and on disk, and compare the two at every turn. A disk that is put back
//! without its memory, or the other way round, is a problem that they see themselves.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::stream::Noise;

/// How many records the database has, and how long one is.
const RECORDS: u64 = 256;
const RECORD: usize = 4096;
/// How long a turn of the clock is.
const TURN: Duration = Duration::from_millis(250);

/// Lives in the directory, for ever.
pub fn live(dir: &Path) -> io::Result<()> {
    let written = Arc::new(AtomicU64::new(0));
    let mut database = Database::make(&dir.join("database"))?;
    let count = Arc::clone(&written);
    let writer = std::thread::spawn(move || -> io::Result<()> {
        loop {
            database.turn()?;
            count.store(database.written, Ordering::SeqCst);
        }
    });
    let files = dir.join("files");
    fs::create_dir(&files)?;
    for n in 1_u64.. {
        if writer.is_finished() {
            break;
        }
        mark(&files, n)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
        let written = written.load(Ordering::SeqCst);
        println!("skiff-guest: tick n={n} wall={} random={} written={written}", now.as_millis(), random()?);
        std::thread::sleep(TURN);
    }
    writer.join().map_err(|_| io::Error::other("a thread died"))?
}

/// Each turn leaves a file, and finds those of the turns before it and of no other.
fn mark(files: &Path, n: u64) -> io::Result<()> {
    File::create_new(files.join(n.to_string()))?.sync_all()?;
    File::open(files)?.sync_all()?;
    let count = fs::read_dir(files)?.count() as u64;
    if count != n {
        return Err(io::Error::other(format!("{count} files in turn {n}")));
    }
    Ok(())
}

fn random() -> io::Result<String> {
    let mut bytes = [0; 8];
    // SAFETY: the buffer is ours and as long as is said.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got != 8 {
        return Err(io::Error::last_os_error());
    }
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// A file of records, each written in place and synced before it counts.
struct Database {
    path: PathBuf,
    file: File,
    written: u64,
}

impl Database {
    fn make(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Self { path: path.to_owned(), file, written: 0 })
    }

    /// Write one record and check another.
    fn turn(&mut self) -> io::Result<()> {
        let place = self.written % RECORDS * RECORD as u64;
        self.file.write_all_at(&record(self.written), place)?;
        self.file.sync_data()?;
        self.written += 1;
        // Some record that is there, never the same for long.
        let oldest = self.written.saturating_sub(RECORDS);
        self.check(oldest + self.written.wrapping_mul(0x9e37_79b9) % (self.written - oldest))
    }

    fn check(&self, number: u64) -> io::Result<()> {
        // Not what the page cache has of it.
        // SAFETY: the descriptor is open for the call's length.
        unsafe { libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        let mut found = [0; RECORD];
        File::open(&self.path)?.read_exact_at(&mut found, number % RECORDS * RECORD as u64)?;
        if found == record(number) {
            return Ok(());
        }
        let found = u64::from_le_bytes(found[..8].try_into().map_err(io::Error::other)?);
        Err(io::Error::other(format!("record {number} of {} is {found:#x}", self.written)))
    }
}

fn record(number: u64) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Noise::new(number).fill(&mut bytes[8..]);
    bytes
}
